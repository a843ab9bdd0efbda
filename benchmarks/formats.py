"""What the formats of a trained network cost: scores, time and size.

    python -m benchmarks.formats runs/demo

Exports the best checkpoint of a run to every format and scores each on the validation
split, with one frame at a time.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import numpy as np

from benchmarks.tables import make_table, write_results
from mtl_keras.commands.console import start_tensorflow
from mtl_keras.experiments import runs, setup
from mtl_keras.experiments.environment import describe
from mtl_keras.experiments.evaluation import Batch, MapScores
from mtl_keras.experiments.options import TrainOptions, read_options
from mtl_keras.experiments.problems import open_problem
from mtl_keras.serving import ModelFacts, export
from mtl_keras.serving.formats import FORMATS
from mtl_keras.tasks import METRICS, main_metric


def open_saved_model(directory):
    import tensorflow as tf

    signature = tf.saved_model.load(directory).signatures["serving_default"]
    return lambda image: {k: v.numpy() for k, v in signature(image=image).items()}


def open_onnx(directory):
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {"image": image})))


def open_litert(directory):
    from ai_edge_litert.interpreter import Interpreter

    path = str(directory / "model.tflite")
    runner = Interpreter(path, num_threads=2).get_signature_runner()
    return lambda image: runner(image=image)


OPENERS = {
    "tf_saved_model": open_saved_model,
    "onnx": open_onnx,
    "litert": open_litert,
    "litert_float16": open_litert,
}


def measure(run, problem):
    """`{format: {"scores": dict, "milliseconds": float, "megabytes": float}}`."""
    options = problem.options
    trainer = setup.build_trainer(problem)
    runs.restore_best(trainer, run)
    facts = ModelFacts(label_set=options.label_set)
    results, models = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            directory = pathlib.Path(folder) / name
            export(trainer.network, directory, name, facts)
            files = [path for path in directory.rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files) / 1e6
            models[name] = OPENERS[name](directory)
            results[name] = {"megabytes": size, "seconds": []}
        scores = {name: MapScores(problem.make_metrics()) for name in models}
        for images, targets, masks in problem.make_batches("val", 1):
            image = np.asarray(images)
            for name, predict in models.items():  # in turn, so that noise is shared
                started = time.perf_counter()
                predictions = predict(image)
                results[name]["seconds"].append(time.perf_counter() - started)
                scores[name].update(Batch([], image, targets, masks), predictions)
    for name, result in results.items():
        result["milliseconds"] = 1e3 * statistics.median(result.pop("seconds"))
        result["scores"] = scores[name].result()["metrics"]
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path, help="a run of train.py")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results")
    )
    arguments = parser.parse_args()
    start_tensorflow()
    options = read_options(TrainOptions, arguments.run / "options.json")
    results = measure(arguments.run, open_problem(options))
    metrics = [(key, METRICS[key]) for key in map(main_metric, options.tasks)]
    rows = [
        [name, f"{found['megabytes']:.2f}", f"{found['milliseconds']:.3g}"]
        + [f"{found['scores'][key] * metric.factor:.5g}" for key, metric in metrics]
        for name, found in results.items()
    ]
    header = ["format", "MB", "ms per frame", *(metric.header for _, metric in metrics)]
    table = make_table(header, rows)
    print(table)
    machine = describe(("tensorflow", "onnxruntime", "ai-edge-litert"))
    write_results(
        arguments.output, "formats", table, {"machine": machine, "formats": results}
    )


if __name__ == "__main__":
    main()
