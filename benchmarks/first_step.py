"""Times the start of a training process, up to its first steps.

    python -m benchmarks.first_step

Prints a Markdown table and writes `first_step.md` and `first_step.json`. Fresh
processes take turns: one trains with this package's fused batch normalization and Adam,
the other with Keras's, which are the same functions. Both train ResNet-101 at 128x256,
batch 1, float32, with learned weights, by `fit`. TensorFlow only.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

from benchmarks import machine
from benchmarks.tables import format_spread, make_table, write_results

KERNELS = ("keras", "fused")
STAGES = {
    "import": "import",
    "build": "build network, trainer and optimizer",
    "first": "first step, tracing included",
    "later": "a later step",
    "total": "start of the process to the end of the first step",
}


def measure(kernels, backbone):
    """Trains a few steps in this process; the seconds of each stage but `total`."""
    marks = [time.perf_counter()]
    import keras

    from benchmarks import workload
    from mtl_keras import model, optimizers

    if kernels == "keras":
        model.FusedBatchNormalization = keras.layers.BatchNormalization
        optimizers.FusedAdam = keras.optimizers.Adam
    marks.append(time.perf_counter())
    trainer = workload.build_trainer(backbone=backbone)
    marks.append(time.perf_counter())
    images, targets, masks = workload.make_batch(1, (128, 256))

    def mark(batch, logs=None):
        marks.append(time.perf_counter())

    timer = keras.callbacks.LambdaCallback(
        on_train_batch_begin=mark, on_train_batch_end=mark
    )
    for _ in range(4):
        trainer.fit(
            images, targets, 1, verbose=0, sample_weight=masks, callbacks=[timer]
        )
    start, imported, built, *steps = marks
    return {
        "import": imported - start,
        "build": built - imported,
        "first": steps[1] - built,
        "later": steps[-1] - steps[-2],
        "ended": steps[1] - start,
    }


def run_process(kernels, backbone):
    """`measure` in a fresh process, with the time that the process itself took."""
    started = time.time()
    command = [sys.executable, "-m", "benchmarks.first_step", "--child", kernels]
    command += ["--backbone", backbone]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds = json.loads(done.stdout.splitlines()[-1])
    seconds["total"] = seconds.pop("ended") + seconds.pop("began") - started
    return seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="resnet101")
    parser.add_argument("--child", choices=KERNELS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results")
    )
    options = parser.parse_args()
    if options.child:
        began = time.time()
        print(json.dumps(measure(options.child, options.backbone) | {"began": began}))
        return

    rounds = []
    for number in range(1, options.rounds + 1):
        rounds.append({k: run_process(k, options.backbone) for k in KERNELS})
        totals = ", ".join(f"{k} {s['total']:.1f} s" for k, s in rounds[-1].items())
        print(f"round {number} of {options.rounds}: {totals}", file=sys.stderr)
    rows = [
        [name, *(format_spread([r[k][stage] for r in rounds]) for k in KERNELS)]
        + [format_spread([r["keras"][stage] / r["fused"][stage] for r in rounds])]
        for stage, name in STAGES.items()
    ]
    described = machine.describe(("tensorflow", "keras", "numpy"))
    table = make_table(["seconds", "Keras's kernels", "fused", "ratio"], rows)
    text = (
        f"mtl, {options.backbone}, float32, batch 1, 128x256. "
        f"{described['cores']} cores of {described['cpu']}; {described['date']}; "
        f"{options.rounds} rounds.\n\n{table}"
    )
    print(text)
    result = {"machine": described, "backbone": options.backbone, "rounds": rounds}
    write_results(options.output, "first_step", text, result)


if __name__ == "__main__":
    main()
