"""Run directories: what is in one, and how it is kept whole.

options.json     the options of train.py
checkpoints/     best.weights.h5; last/ and before/ to go on from
result.json      the scores after the last step; diverged.txt if there are none
test_result.json     those on the split test, of a row of a table
history.csv      losses, metrics, sigmas and weights by epoch
epochs.csv       seconds, images per second and learning rate by epoch
environment.json     machine and versions that it was trained with
report.html      all of this as a page
tensorboard/     the same for TensorBoard
constant.json    the constant predictor of the training split, and its scores
lock             held by the process that trains
saved_model/     exports, one directory per format: onnx/, litert/, litert_float16/
figures/  metrics.json  table.md
"""

import contextlib
import csv
import json
import math
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence

import filelock

from mtl_keras.errors import BusyError, UserError
from mtl_keras.experiments.checkpoints import (
    BEST,
    MANIFEST,
    METADATA,
    WEIGHTS,
    Position,
    check_best,
    find_damage,
    read_position,
)
from mtl_keras.experiments.files import write_whole
from mtl_keras.experiments.options import (
    STARTING_OPTIONS,
    TrainOptions,
    differing_options,
    read_options,
    write_options,
)
from mtl_keras.tasks import METRICS, best_metric
from mtl_keras.training import MultiTaskTrainer

# The scores after the last step, by split; "constant_" before it: those of the constant
# predictor.
RESULTS = {"val": "result.json", "test": "test_result.json"}


def check_directory(options: TrainOptions) -> pathlib.Path:
    """The run directory, which need not exist yet.

    Raises:
        UserError: if it holds a run with other options, or something else.
    """
    directory = pathlib.Path(options.output or f"runs/{options.recipe}")
    path = directory / "options.json"
    if path.exists():
        found = read_options(TrainOptions, path)
        differing = differing_options(found, options, ignored=STARTING_OPTIONS)
        if differing:
            changes = ", ".join(
                f"{flag} {old} there and {new} here"
                for flag, (old, new) in differing.items()
            )
            raise UserError(
                f"{directory} holds a run with other options ({changes}); choose "
                "another --output or remove that directory."
            )
    elif directory.exists() and not _is_empty(directory):
        raise UserError(
            f"{directory} exists and is not a run of train.py; choose another --output."
        )
    return directory


def _is_empty(path):
    """Whether a path is a directory that holds nothing, or what a run that was killed
    before it had written its options left there."""
    return path.is_dir() and {p.name for p in path.iterdir()} <= {"options.json.part"}


@contextlib.contextmanager
def claim_directory(options: TrainOptions, epochs: int) -> Iterator[pathlib.Path]:
    """Makes the run directory, or finds out whether to go on in it, and keeps other
    processes out of it.

    Args:
        options: `TrainOptions`.
        epochs: int. The epochs that the options ask for.

    Yields:
        The directory as a `pathlib.Path`.

    Raises:
        UserError: for an unfinished run that was not asked to be resumed, or as
            `check_directory` does.
        BusyError: if another process trains this run.
    """
    directory = check_directory(options)
    str(directory).encode()  # fails here, not after an epoch; TensorFlow wants UTF-8
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "options.json").exists():
            write_options(options, directory / "options.json")
        lock = filelock.FileLock(directory / "lock").acquire(blocking=False)
    except filelock.Timeout as error:
        raise BusyError(
            f"{directory} is being trained by another process; wait for it, or "
            "choose another --output."
        ) from error
    except (OSError, NotImplementedError) as error:  # the latter: there are no locks
        raise UserError(
            f"{directory} cannot be written ({error}); choose another --output."
        ) from error
    with lock:  # the end of the process, however it ends, lets go of it
        _repair_last_checkpoint(directory)
        is_begun = (directory / "checkpoints").exists()
        if is_begun and not (options.resume or is_trained(directory, epochs)):
            raise UserError(
                f"{directory} holds an unfinished run; go on with --resume, choose "
                "another --output or remove that directory."
            )
        yield directory


def _repair_last_checkpoint(directory):
    """Goes back one checkpoint if a crash or the disk damaged the last one."""
    last, before = (directory / "checkpoints" / name for name in ("last", "before"))
    is_former = (last / METADATA).exists() and not (last / MANIFEST).exists()
    if is_former and not before.exists():
        if (directory / "result.json").exists():
            return  # finished by an earlier version
        raise UserError(
            f"{directory} was begun by an earlier version, whose checkpoints may be "
            "half; train it again in another directory."
        )
    if not last.exists() and not before.exists():
        return  # not even the first epoch was finished
    damage = find_damage(last)
    if not damage:
        return
    if find_damage(before):
        raise UserError(
            f"{damage} and there is no whole one before it; remove {directory} and "
            "train again."
        )
    if last.exists():
        print(f"{damage}; going on from the one before.", file=sys.stderr)
        shutil.rmtree(last)
    before.rename(last)


def find_position(directory: pathlib.Path) -> Position:
    """How far the last checkpoint of a run is."""
    return read_position(directory / "checkpoints")


def finished_epochs(directory: pathlib.Path) -> int:
    """Number of epochs that the last checkpoint holds."""
    return find_position(directory).epoch


def drop_unfinished_epochs(directory: pathlib.Path) -> None:
    """Forgets what was logged after the last checkpoint was written."""
    for path in (directory / "history.csv", directory / "epochs.csv"):
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            kept = finished_epochs(directory)
            write_whole(path, b"".join(lines[: kept + 1]) if kept else b"")


def read_history(
    directory: pathlib.Path, name: str = "history.csv"
) -> list[dict[str, float]]:
    """Rows of `history.csv`, or of `epochs.csv`, `{column: float}`; empty if there is
    none yet."""
    path = pathlib.Path(directory) / name
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [
                {key: float(value) for key, value in row.items()}
                for row in csv.DictReader(file)
            ]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it, or train the run again in "
            "another directory."
        ) from error


def find_best(directory: pathlib.Path, tasks: Sequence[str]) -> dict[str, float]:
    """The row of `history.csv` whose weights `best.weights.h5` holds, the first of
    equally good ones; empty if there is none yet.

    Args:
        directory: that of the run.
        tasks: those that are trained.
    """
    best = best_metric(tasks)
    sign = 1 if METRICS[best].higher_is_better else -1
    rows = [row for row in read_history(directory) if f"val_{best}" in row]
    return max(rows, key=lambda row: sign * row[f"val_{best}"], default={})


def find_best_scores(
    directory: pathlib.Path, tasks: Sequence[str]
) -> dict[str, float | None]:
    """The scores of `best.weights.h5` on the validation split, by key of `METRICS`;
    `None` where no element is valid."""
    row = find_best(directory, tasks)
    found = {key: row[f"val_{key}"] for key in METRICS if f"val_{key}" in row}
    return {key: None if math.isnan(v) else v for key, v in found.items()}


def write_result(directory: pathlib.Path) -> None:
    """Keeps the last scores on the validation split, which are what came of the run,
    and removes the second copy of the last checkpoint: no crash can damage the first
    any more."""
    *_, last = read_history(directory)
    scores = {
        key.removeprefix("val_"): None if math.isnan(value) else value
        for key, value in last.items()
        if key.startswith("val_")
    }
    write_whole(directory / "result.json", json.dumps(scores, indent=2) + "\n")
    (directory / "diverged.txt").unlink(missing_ok=True)
    if (directory / "checkpoints" / "last").exists():
        shutil.rmtree(directory / "checkpoints" / "before", ignore_errors=True)


def read_result(path: pathlib.Path) -> dict[str, float | None]:
    """The scores in `result.json` or `constant_result.json` by key, `None` for those
    of an absent task.

    Raises:
        UserError: if the file holds something else.
    """
    found = read_json(path, "start the training of that run once more, which writes it")
    for key, value in found.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not is_number:
            raise UserError(
                f"{path} is damaged ({key} is {value!r}); remove it and start the "
                "training of that run once more, which writes it again."
            )
    return found


def read_json(path: pathlib.Path, remedy: str = "evaluate.py writes some") -> dict:
    """The object in a JSON file of a run; `UserError` if there is something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it and {remedy} again."
        ) from error
    return found


def is_trained(directory: pathlib.Path, epochs: int) -> bool:
    """Whether the training of a run is complete."""
    return finished_epochs(directory) >= epochs


def restore_best(trainer: MultiTaskTrainer, directory: pathlib.Path) -> None:
    """Loads the best checkpoint of a run.

    Raises:
        UserError: if there is none, if it is damaged, or does not fit the options.
    """
    path = pathlib.Path(directory) / "checkpoints" / BEST
    if not path.exists():
        raise UserError(f"{path} is missing; train the run with train.py first.")
    check_best(path.parent)
    load_checkpoint(trainer, path)


def restore_last(trainer: MultiTaskTrainer, directory: pathlib.Path) -> None:
    """Loads the last checkpoint of a run.

    Raises:
        UserError: as `restore_best` does.
    """
    path = pathlib.Path(directory) / "checkpoints" / "last"
    if damage := find_damage(path):
        raise UserError(f"{damage}; train the run again in another directory.")
    load_checkpoint(trainer, path / WEIGHTS)


def load_checkpoint(trainer: MultiTaskTrainer, path: pathlib.Path) -> None:
    """Loads weights, or raises `UserError` if they do not fit the trainer."""
    try:
        trainer.load_weights(path)
    except (ValueError, KeyError, OSError, RuntimeError) as error:  # the last: of HDF5
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path} does not fit the options in {path.parents[1] / 'options.json'} "
            f"({reason}); train the run again in another directory."
        ) from error
