"""Whether memory stays flat: over many steps, over a long evaluation, and over the runs
of a table in one process.

    python -m benchmarks.memory

Rendered streets of 32x64 pixels and the small network, each case in a process of its
own. Prints the resident memory at the end of each tenth. Linux only.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from benchmarks.tables import make_table, write_results
from mtl_keras.experiments.environment import describe

STEPS, FRAMES, RUNS, PARTS = 5000, 2000, 20, 10


def resident_mib():
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return round(int(line.split()[1]) / 1024)


def open_streets(data_dir):
    from mtl_keras.experiments.options import TrainOptions
    from mtl_keras.experiments.problems import open_problem

    options = TrainOptions(image_size=(32, 64), batch_size=2, data_dir=data_dir)
    return open_problem(options)


def train_long(data_dir):
    """Yields the memory after each part of a training."""
    from mtl_keras.experiments import setup

    problem = open_streets(data_dir)
    trainer = setup.build_trainer(problem)
    trainer.compile(setup.build_optimizer(problem.options, STEPS), jit_compile=False)
    batches = iter(problem.make_training_batches(0))
    for _ in range(PARTS):
        for _ in range(STEPS // PARTS):
            trainer.train_on_batch(*next(batches))
        yield resident_mib()


def evaluate_long(data_dir):
    """Yields the memory after each part of an evaluation, objects included."""
    import os

    from tqdm import tqdm

    from mtl_keras.data.batches import Batch
    from mtl_keras.experiments import evaluation, setup
    from mtl_keras.figures.objects import ObjectGallery
    from mtl_keras.instances.objects import ObjectScorer

    problem = open_streets(data_dir)
    trainer = setup.build_trainer(problem)
    total = problem.count_frames("train")
    batch_size, found = 4, []

    def load():
        ids = problem.load_ids("train")
        true_ids = problem.load_instance_ids("train", batch_size)
        batches = problem.make_batches("train", batch_size)
        for number, (batch, instance_ids) in enumerate(zip(batches, true_ids)):
            first = number * batch_size
            yield Batch(ids[first : first + batch_size], *batch, instance_ids)
            if (first + batch_size) % (total // PARTS) == 0:
                found.append(resident_mib())

    with ObjectScorer(total, "train_ids") as scorer:
        gallery = ObjectGallery(pathlib.Path(data_dir) / "objects.png", total)
        evaluators = [
            evaluation.MapScores(problem.make_metrics()),
            evaluation.ObjectEvaluator(scorer, gallery),
        ]
        bar = tqdm(total=total, file=open(os.devnull, "w", encoding="utf-8"))
        evaluation.evaluate(trainer.network, load(), evaluators, batch_size, bar)
    yield from found


def train_table(data_dir):
    """Yields the memory after each other run of a table."""
    from mtl_keras.commands import train
    from mtl_keras.experiments.tables import plan_runs

    arguments = ["--table", "C", "--dataset", "digits", "--train-frames", "64"]
    arguments += ["--epochs", "2", "--batch-size", "32", "--jit", "off"]
    planned = plan_runs([*arguments, "--output", f"{data_dir}/C", "--seeds", "4"])
    train_one, found = train.train, []

    def train_and_look(*args, **kwargs):
        train_one(*args, **kwargs)
        found.append(resident_mib())

    train.train = train_and_look
    train.train_all(planned[:RUNS])
    yield from found[1 :: RUNS // PARTS]


CASES = {
    f"{STEPS} training steps": train_long,
    f"evaluation of {FRAMES} frames, with objects": evaluate_long,
    f"{RUNS} runs of a table": train_table,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results")
    )
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, data_dir = options.case
        found = [*CASES[name](data_dir)]
        print(json.dumps(found))
        return
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as data_dir:
        for name in CASES:
            command = [sys.executable, "-m", "benchmarks.memory", "--case", name]
            done = subprocess.run(
                [*command, data_dir], check=True, stdout=subprocess.PIPE, text=True
            )
            found = results[name] = json.loads(done.stdout.splitlines()[-1])
            rows.append([name, *(str(found[i]) for i in (0, 1, 4, -1))])
            print(rows[-1], flush=True)
    machine = describe(("tensorflow", "keras"))
    header = ["MiB after", "a tenth", "two tenths", "half", "all"]
    text = f"On {machine['cpu']}, {machine['date']}.\n\n{make_table(header, rows)}"
    print(text)
    write_results(options.output, "memory", text, {"machine": machine, **results})


if __name__ == "__main__":
    main()
