"""Images per second of a table's network under each weighting, XLA on and off.

    python -m benchmarks.weighting_step --output weighting_step.json

Trains table B's network, ResNet-101 at 128x256, on batches of random images that lie
in memory. Each row is timed in turn after its first steps; the median over rounds.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import time

import keras
import numpy as np

from mtl_keras.experiments import setup, tables
from mtl_keras.experiments.environment import describe
from mtl_keras.experiments.options import TrainOptions
from mtl_keras.experiments.problems import open_problem


def make_batch(options, rng):
    """A batch with the shapes and ranges of street scenes."""
    shape = (options.batch_size, *options.image_size)
    images = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    targets = {
        "semantic": rng.integers(0, 19, shape, dtype=np.int32),
        "instance": rng.normal(0, 5, (*shape, 2)).astype(np.float32),
        "depth": rng.uniform(0, 15, (*shape, 1)).astype(np.float32),
    }
    masks = {task: (rng.random(shape) < 0.7).astype(np.float32) for task in targets}
    return images, targets, masks


def build(options, jit):
    keras.utils.set_random_seed(0)
    problem = open_problem(options)
    trainer = setup.build_trainer(problem)
    trainer.compile(setup.build_optimizer(options, 1000), jit_compile=jit)
    return trainer


def time_steps(trainer, batch, steps):
    """Seconds per step; `fit` waits for the last one."""
    started = time.perf_counter()
    trainer.fit(
        (batch for _ in range(steps)),
        steps_per_epoch=steps,
        epochs=1,
        verbose=0,
        shuffle=False,
    )
    return (time.perf_counter() - started) / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="B/all")
    parser.add_argument("--backbone", default="resnet101")
    parser.add_argument("--image-size", default="128x256")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no more rows")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    given = parser.parse_args()
    deadline = time.monotonic() + given.seconds
    settings = tables.apply_recipe({"recipe": given.recipe})
    size = tuple(int(n) for n in given.image_size.split("x"))
    settings |= {"backbone": given.backbone, "image_size": size, "pretrained": False}
    learned = TrainOptions(**settings)
    tasks = learned.tasks
    others = dict(tasks=tasks, task_weights={}, priorities={})
    fixed = dict.fromkeys(tasks, 1 / 3)
    rows = {
        "learned": (learned, True),
        "fixed": (
            dataclasses.replace(learned, weighting="fixed", task_weights=fixed),
            True,
        ),
        "learned, mixed_bfloat16": (
            dataclasses.replace(learned, precision="mixed_bfloat16"),
            True,
        ),
        "rlw": (dataclasses.replace(learned, weighting="rlw", **others), True),
        "learned, batch 32": (dataclasses.replace(learned, batch_size=32), True),
        "dwa": (dataclasses.replace(learned, weighting="dwa", **others), True),
        "uw-so": (dataclasses.replace(learned, weighting="uw-so", **others), True),
        "learned, XLA off": (learned, False),
    }
    found = {}
    for name, (options, jit) in rows.items():
        if time.monotonic() > deadline:
            print(f"{name}: no time left", flush=True)
            continue
        batch = make_batch(options, np.random.default_rng(0))
        trainer = build(options, jit)
        started = time.perf_counter()
        time_steps(trainer, batch, 2)
        first = time.perf_counter() - started
        steps = given.steps if jit else 3
        seconds = [time_steps(trainer, batch, steps) for _ in range(given.rounds)]
        found[name] = {
            "images_per_second": options.batch_size / statistics.median(seconds),
            "seconds_per_step": seconds,
            "first_two_steps": first,
        }
        print(name, json.dumps(found[name]), flush=True)
        text = json.dumps({"machine": describe(), "rows": found}, indent=2)
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
