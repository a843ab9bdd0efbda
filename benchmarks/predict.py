"""How long predicting pictures takes, beside reading and writing them alone.

    python -m benchmarks.predict runs/demo

Rendered scenes at 1024x2048 go through what `predict.py` does once it has its model;
against this stands, on as many threads, decoding the same inputs and encoding the
same outputs. The two take turns. Takes some minutes, most of them for the scenes.
"""

import argparse
import concurrent.futures
import pathlib
import tempfile
import time

import cv2

from benchmarks.tables import format_spread, make_table, write_results
from mtl_keras.commands import predict
from mtl_keras.experiments.environment import describe
from mtl_keras.experiments.options import PredictOptions
from mtl_keras.png import encode_png
from mtl_keras.serving.pictures import name_answers, read_picture
from mtl_keras.streets import render_scene, scene_seed
from mtl_keras.workers import count_cores

SIZE = (1024, 2048)


def time_files(inputs, outputs):
    """Seconds to decode the inputs and encode the contents of the outputs."""
    contents = [
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for path in outputs
        if path.suffix == ".png"
    ]
    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(count_cores()) as pool:
        jobs = [pool.submit(read_picture, path) for path in inputs]
        jobs += [pool.submit(encode_png, content) for content in contents]
        for job in jobs:
            job.result()
    return time.perf_counter() - started


def measure(run, count, rounds, only, place):
    """Times by turns, `{"predict": [...], "files alone": [...]}`, in seconds."""
    inputs = [place / f"scene{i}.png" for i in range(count)]
    for i, path in enumerate(inputs):
        scene = render_scene(scene_seed(0, "val", i), SIZE)
        path.write_bytes(encode_png(scene["image"]))
    stems = name_answers(inputs)
    options = PredictOptions(output=str(place / "out"), only=only, overwrite=True)
    model, camera_of = predict.open_model(run, options)
    pathlib.Path(options.output).mkdir()
    predict.predict_all(options, model, camera_of, stems)  # traces the network
    times = {"predict": [], "files alone": []}
    for _ in range(rounds):
        started = time.perf_counter()
        num_written = predict.predict_all(options, model, camera_of, stems)
        times["predict"].append(time.perf_counter() - started)
        assert num_written == count
        written = sorted(pathlib.Path(options.output).iterdir())
        times["files alone"].append(time_files(inputs, written))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="a run of train.py")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results")
    )
    options = parser.parse_args()
    rows, results = [], {}
    for only in ((), ("classes", "json")):
        with tempfile.TemporaryDirectory() as place:
            times = measure(
                options.run, options.pictures, options.rounds, only, pathlib.Path(place)
            )
        name = ",".join(only) or "all files"
        results[name] = times
        ratios = [a / b for a, b in zip(times["predict"], times["files alone"])]
        rows.append(
            [name]
            + [
                format_spread([t / options.pictures for t in values])
                for values in times.values()
            ]
            + [format_spread(ratios)]
        )
    machine = describe(("tensorflow", "keras", "numpy", "opencv-python-headless"))
    header = [
        "written",
        "predict, s per picture",
        "files alone, s per picture",
        "ratio",
    ]
    text = (
        f"{options.pictures} pictures of 1024x2048 on {machine['cores']} cores of "
        f"{machine['cpu']}, {machine['date']}; {options.rounds} rounds.\n\n"
        + make_table(header, rows)
    )
    print(text)
    write_results(options.output, "predict", text, {"machine": machine, **results})


if __name__ == "__main__":
    main()
