"""How fast training batches come, from records that are made and in memory.

    python -m benchmarks.input_pipeline

Rendered streets at 128x256, batches of 4, with the targets of one task and of all, on
one core and on all; beside it the seconds to the first batch in a process of its own,
without those of importing TensorFlow, and the memory over five passes. Then crops of
512x512 pixels with all targets, at 0.7 to 2 times the size, of rendered streets of
1024x2048 pixels in records of their size, with noise that makes their files as large as
those of Cityscapes.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.frame_jobs import make_tree
from benchmarks.tables import format_spread, make_table, write_results
from mtl_keras.cityscapes import IMAGE_SIZE
from mtl_keras.experiments.environment import describe
from mtl_keras.workers import count_cores

TASKS = {
    "semantic": ("semantic",),
    "all tasks": ("semantic", "instance", "depth"),
}
CROPS = "all tasks, crops"
BATCH_SIZE = 4
PASS = 500  # batches of a pass over 2000 frames
LARGE_FRAMES = 48
ROUNDS = 5


def read(tasks, cores, data_dir):
    """Times one process: prints JSON, called in a process of its own."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    import tensorflow as tf  # noqa: F401  not a part of the first batch

    from mtl_keras.data import pipelines, records
    from mtl_keras.data.augmentation import Augmentation

    started = time.perf_counter()
    settings, steps = {}, PASS
    if tasks == CROPS:
        builder = open_large(data_dir)
        augmentation = Augmentation(crop=(512, 512), scales=(0.7, 2.0), jitter=0.2)
        settings = {"augmentation": augmentation, "image_size": IMAGE_SIZE}
        steps = LARGE_FRAMES // BATCH_SIZE
    else:
        builder = records.prepare("", (128, 256), TASKS["all tasks"], data_dir)
    batches = iter(
        pipelines.make_training_dataset(
            builder,
            TASKS.get(tasks, TASKS["all tasks"]),
            "train_ids",
            BATCH_SIZE,
            **settings,
        )
    )
    next(batches)
    first = time.perf_counter() - started
    rates, memory = [], []
    for number in range(ROUNDS + 1):
        started = time.perf_counter()
        for _ in range(steps):
            next(batches)
        if number:  # the first pass decodes the records
            rates.append(steps * BATCH_SIZE / (time.perf_counter() - started))
        memory.append(_resident_mib())
    print(json.dumps({"first": first, "rates": rates, "memory": memory[1:]}))


def open_large(directory):
    """The builder of the large frames, which are made if there are none."""
    from mtl_keras.data import records

    root = pathlib.Path(directory) / "tree"
    if not root.exists():
        make_tree(root, LARGE_FRAMES)
    tasks = TASKS["all tasks"]
    return records.prepare_cityscapes(root, None, tasks, directory, ["train"])


def _resident_mib():
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def call_worker(tasks, cores, data_dir):
    command = [sys.executable, "-m", "benchmarks.input_pipeline", "--worker"]
    command += [tasks, str(cores), "--data-dir", str(data_dir)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="data", help="where the records are")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results")
    )
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        tasks, cores = arguments.worker
        read(tasks, int(cores), arguments.data_dir)
        return
    from mtl_keras.data import records

    records.prepare("", (128, 256), TASKS["all tasks"], arguments.data_dir)
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as large:
        open_large(large)
        for cores in dict.fromkeys((1, count_cores())):
            for tasks in (*TASKS, CROPS):
                data_dir = large if tasks == CROPS else arguments.data_dir
                found = call_worker(tasks, cores, data_dir)
                results[f"{tasks}, {cores} cores"] = found
                memory = f"{found['memory'][0]:.0f} to {found['memory'][-1]:.0f}"
                rates = format_spread(found["rates"], 4)
                rows.append([tasks, str(cores), rates, f"{found['first']:.2f}", memory])
                print(rows[-1], flush=True)
    header = ["targets", "cores", "images per second", "first batch, s"]
    table = make_table([*header, f"MiB after passes 2 to {ROUNDS + 1}"], rows)
    machine = describe(("tensorflow",))
    text = f"On {machine['cores']} cores of {machine['cpu']}, {machine['date']}.\n\n"
    print(text + table)
    results = {"machine": machine, "pipelines": results}
    write_results(arguments.output, "input_pipeline", text + table, results)


if __name__ == "__main__":
    main()
