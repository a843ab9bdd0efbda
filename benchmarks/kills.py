"""Kills trainings at moments drawn over the whole of them, and compares what comes of
them with trainings that nobody killed.

    python -m benchmarks.kills

Small runs on digits. Half of the moments and more are before one of the process's calls
that change its directory, drawn from all of them: opening a file to write, flushing,
renaming, removing, making a directory. The others are drawn from the time that it
takes. A killed training goes on with the same command, is killed again in every other
case, and goes on once more. Compared are weights, sigmas and optimizer (every array to
the bit), the best weights, `history.csv` and `result.json`, from which tables are made,
of single runs, of a table with six rows, and of a table that two processes train. Exits
with status 1 if anything differs. Linux only.
"""

import argparse
import builtins
import concurrent.futures
import hashlib
import io
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import h5py

from benchmarks.tables import make_table, write_results
from mtl_keras.experiments.environment import describe

ROOT = pathlib.Path(__file__).parents[1]
CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")  # of `os`
QUICK = ["--dataset", "digits", "--train-frames", "64", "--batch-size", "32"]
QUICK += ["--jit", "off", "--checkpoint-minutes", "1e-9"]
RUN = [*QUICK, "--recipe", "C/all", "--epochs", "4", "--resume"]
TABLE = [*QUICK, "--table", "C", "--epochs", "2"]
COMPARED = ("history.csv", "result.json", "*.h5")


class Case(NamedTuple):
    """What is killed.

    Attributes:
        name: str, for the table.
        arguments: of `train.py`.
        num_processes: int, that train at the same time; the first one is killed.
    """

    name: str
    arguments: list[str]
    num_processes: int = 1


CASES = [
    Case("single run", RUN),
    Case("table of six rows", TABLE),
    Case("table, by two processes", TABLE, 2),
]


class Reference(NamedTuple):
    """A training that nobody killed: what came of it, and how long it is."""

    found: dict[str, Any]
    num_changes: int
    seconds: float


def train(arguments, kill_before, output):
    """Trains in this process, which kills itself before a call that changes the
    directory `output`, counted from 1; writes the number of calls to `output.changes`.
    """
    from mtl_keras.commands import console
    from mtl_keras.commands import train as command

    count = 0

    def until_killed(function, is_change):
        def call(*args, **kwargs):
            nonlocal count
            if is_change(*args, **kwargs):
                count += 1
                if count == kill_before:
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    def is_inside(path, *args, **kwargs):
        return isinstance(path, int) or os.fspath(path).startswith(output)

    def writes(path, mode="r", *args, **kwargs):
        return set(mode) & set("wax+") and not isinstance(path, int) and is_inside(path)

    for name in CHANGES:
        setattr(os, name, until_killed(getattr(os, name), is_inside))
    io.open = builtins.open = until_killed(builtins.open, writes)
    console.run_command(command.main, [*arguments, "--output", output])
    pathlib.Path(f"{output}.changes").write_text(str(count), "utf-8")


def start(case, output, kill_before=0):
    command = [sys.executable, "-m", "benchmarks.kills", "--output", str(output)]
    command += ["--train", str(kill_before), *case.arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    _, error = process.communicate()
    if process.returncode:
        raise AssertionError(f"status {process.returncode}: {error[-2000:]}")


def look(output):
    """The digests of what is compared below a directory, by path and array."""
    found = {}
    for path in sorted(p for pattern in COMPARED for p in output.rglob(pattern)):
        name = path.relative_to(output).as_posix()
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                file.visititems(lambda key, item: note(found, f"{name}/{key}", item))
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def note(found, name, item):
    if isinstance(item, h5py.Dataset):
        found[name] = hashlib.sha256(item[()].tobytes()).hexdigest()


def refer(case, directory):
    output = directory / "reference"
    started = time.monotonic()
    finish(start(case, output))
    seconds = time.monotonic() - started
    changes = pathlib.Path(f"{output}.changes").read_text("utf-8")
    return Reference(look(output), int(changes), seconds)


def kill(case, reference, output, seed):
    """Kills a training once or twice and lets it end.

    Returns:
        What was done, as a list of str, and the names of what differs.
    """
    rng, done = random.Random(seed), []
    for _ in range(1 + seed % 2):
        if rng.random() < 0.6:
            moment = rng.randint(1, reference.num_changes)
            processes = [start(case, output, moment)]
            done.append(f"before change {moment} of {reference.num_changes}")
        else:
            moment = rng.uniform(0, reference.seconds)
            processes = [start(case, output)]
            done.append(f"after {moment:.2f} of {reference.seconds:.2f} s")
        processes += [start(case, output) for _ in range(case.num_processes - 1)]
        if "after" in done[-1]:
            time.sleep(moment)
            processes[0].send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate()
            # Killed, or over before that moment, as what is left of it is shorter.
            assert process.returncode in (0, -signal.SIGKILL), process.returncode
    finish(start(case, output))
    found = look(output)
    names = found.keys() | reference.found.keys()
    return done, sorted(n for n in names if found.get(n) != reference.found.get(n))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, nargs=3, default=(20, 6, 4))
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results")
    )
    parser.add_argument("--train", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train is not None:
        kill_before, *arguments = options.train
        train(arguments, int(kill_before), str(options.output))
        return
    rows, results = [], []
    with tempfile.TemporaryDirectory() as place:
        for case, count in zip(CASES, options.kills):
            directory = pathlib.Path(place) / case.name.replace(" ", "-")
            directory.mkdir()
            reference = refer(case, directory)

            def call(seed):
                return kill(case, reference, directory / f"killed-{seed}", seed)

            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                outcomes = list(pool.map(call, range(count)))
            kills = sum(len(done) for done, _ in outcomes)
            same = sum(not different for _, different in outcomes)
            rows.append([case.name, str(kills), str(count), str(same)])
            print(rows[-1], flush=True)
            results += [
                {"case": case.name, "kills": done, "differs": different}
                for done, different in outcomes
            ]
    machine = describe(("tensorflow", "keras"))
    table = make_table(["", "kills", "trainings", "identical in the end"], rows)
    text = f"On {machine['cpu']}, {machine['date']}.\n\n{table}"
    print(text)
    write_results(options.output, "kills", text, {"machine": machine, "runs": results})
    sys.exit(any(result["differs"] for result in results))


if __name__ == "__main__":
    main()
