"""The learning rate of each family of a table's rows, chosen on val; then all seeds.

    python -m benchmarks.search D --rates 4e-3,8e-3,16e-3 --seeds 5 --output runs/D

Single tasks, fixed weights and learned ones get the same search: every row once with
every rate. The rate of a family is the one whose scores after the last step are best
on average over its rows and their columns, each relative to the best rate of that row
and column. Then every row is trained with the other seeds. Several runs go on side by
side (`--processes`), each by a `train.py` of its own; what is trained is kept, and a
search that was stopped goes on with the same command.
"""

import argparse
import collections
import concurrent.futures
import json
import math
import pathlib
import statistics
import subprocess
import sys
import time

from mtl_keras.experiments.recipes import TABLES
from mtl_keras.tasks import METRICS


def family_of(row):
    """Whose learning rate a row shares."""
    if len(row["tasks"]) == 1:
        return "single"
    return "fixed" if row["weighting"] == "fixed" else "learned"


def choose_rates(table, results):
    """The best learning rate of every family, and how far each is from the best.

    Args:
        table: a value of `TABLES`.
        results: `{(row, rate): {metric: score}}` on the validation split.

    Returns:
        `{family: rate}` and `{family: {rate: mean relative loss}}`.
    """
    lost = collections.defaultdict(lambda: collections.defaultdict(list))
    for key, row in table.rows.items():
        found = {rate: r for (other, rate), r in results.items() if other == key}
        for metric in table.metrics:
            scores = {rate: r[metric] for rate, r in found.items() if metric in r}
            if not scores:
                continue
            higher = METRICS[metric].higher_is_better
            best = (max if higher else min)(scores.values())
            for rate, score in scores.items():
                lost[family_of(row)][rate].append(abs(score / best - 1))
    means = {
        family: {rate: statistics.mean(values) for rate, values in by_rate.items()}
        for family, by_rate in lost.items()
    }
    chosen = {
        family: min(by_rate, key=by_rate.get) for family, by_rate in means.items()
    }
    return chosen, means


def train_runs(jobs, options, deadline):
    """Trains `(row, rate, seed, directory)`, several at a time, and prints each."""

    def train(job):
        key, rate, seed, directory = job
        if (directory / "test_result.json").exists():
            return 0.0
        started = time.monotonic()
        if started > deadline:
            return math.nan
        command = [sys.executable, "train.py", "--recipe", f"{options.table}/{key}"]
        command += ["--learning-rate", str(rate), "--seed", str(seed), "--resume"]
        command += ["--steps", str(options.steps), "--output", str(directory)]
        command += ["--train-frames", str(options.train_frames), "--export", "none"]
        directory.parent.mkdir(parents=True, exist_ok=True)
        log = directory.with_name(directory.name + ".log")
        with open(log, "w", encoding="utf-8") as file:
            done = subprocess.run(command, stdout=file, stderr=file, check=False)
        seconds = time.monotonic() - started
        print(f"{directory}: status {done.returncode}, {seconds:.0f} s", flush=True)
        return seconds

    with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        return [*pool.map(train, jobs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--rates", default="4e-3,8e-3,16e-3")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--train-frames", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no more")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    table, rates = TABLES[options.table], [float(r) for r in options.rates.split(",")]
    search = {
        (key, rate): options.output / f"rate{rate:g}" / f"{key}-seed0"
        for rate in rates
        for key in table.rows
    }
    jobs = [(key, rate, 0, path) for (key, rate), path in search.items()]
    train_runs(jobs, options, deadline)
    results = {
        job: json.loads((path / "result.json").read_text())
        for job, path in search.items()
        if (path / "result.json").exists()
    }
    chosen, means = choose_rates(table, results)
    report = {"chosen": chosen, "mean relative loss": means}
    print(json.dumps(report, indent=2), flush=True)
    (options.output / "search.json").write_text(json.dumps(report, indent=2) + "\n")
    jobs = [
        (key, rate, seed, options.output / f"rate{rate:g}" / f"{key}-seed{seed}")
        for seed in range(1, options.seeds)
        for key, row in table.rows.items()
        for rate in [chosen[family_of(row)]]
    ]
    train_runs(jobs, options, deadline)


if __name__ == "__main__":
    main()
