"""Checkpoints of a run that are whole or not there, after any step.

A checkpoint is a directory with the weights, the sigmas and the optimizer
(`latest.weights.h5`), how far the training is (`training_metadata.json`), within an
epoch the state of its metrics (`metrics.npz`), and the checksums of all of these
(`manifest.json`). It is written aside and renamed when it is on the disk; the one
before is kept until then and after. `best.weights.h5` is written aside, too;
`best.json` holds its checksum.
"""

import hashlib
import json
import math
import os
import pathlib
import shutil
import time
from typing import Any, NamedTuple

import keras
import numpy as np

from mtl_keras.errors import StoppedError, UserError
from mtl_keras.experiments.files import flush, write_whole
from mtl_keras.experiments.interruption import StopRequest

VERSION = 1
WEIGHTS, METADATA, METRICS, MANIFEST = (
    "latest.weights.h5",
    "training_metadata.json",
    "metrics.npz",
    "manifest.json",
)
BYTES_PER_ARRAY = 2**12  # that HDF5 and Keras take beside its values, at most
BEST, BEST_CHECKSUMS = "best.weights.h5", "best.json"


class Position(NamedTuple):
    """How far a training is: the epochs that are finished, validation included, and the
    steps that are done of the next one."""

    epoch: int = 0
    step: int = 0


class Checkpoints(keras.callbacks.Callback):
    """Saves the state of a training into `last` and keeps the state before in `before`:
    after every epoch, after a step every few minutes, and when it is asked to stop.
    Starts from `last` if there is one. It has to come last: what it marks as done has
    been logged and saved.

    Keras's `BackupAndRestore` writes the weights and their epoch in place and one after
    the other, begins an epoch that it finds unfinished with the first batches and with
    empty metrics; `tf.train.CheckpointManager` and Orbax tie a checkpoint to a backend.

    Args:
        directory: `checkpoints` of the run.
        steps_per_epoch: int.
        minutes: float, between two checkpoints within an epoch; 0 for none.
        request: looked at after every step, and every batch of the validation.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        steps_per_epoch: int,
        minutes: float = 0,
        request: StopRequest | None = None,
    ) -> None:
        super().__init__()
        self.directory = directory
        self.steps_per_epoch = steps_per_epoch
        self.minutes = minutes
        self.request = request or StopRequest()
        self.start = read_position(directory)
        self._is_started = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._is_started:  # by the rest of an epoch
            return
        self._is_started = True
        self._saved = time.monotonic()
        if self.start != Position():
            if not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self.model.load_weights(self.directory / "last" / WEIGHTS)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._skipped = self.steps_per_epoch - self.params["steps"]
        if self._skipped:  # Keras has just reset the metrics
            with np.load(self.directory / "last" / METRICS, allow_pickle=False) as file:
                values = [file[name] for name in file.files]
            for variable, value in zip(
                self.model.metrics_variables, values, strict=True
            ):
                variable.assign(value)
            self._trained = self.read_logs(), values

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        step = self._skipped + batch + 1
        is_due = self.minutes and time.monotonic() - self._saved > 60 * self.minutes
        if is_due or self.request.signal or step == self.steps_per_epoch:
            values = map(keras.ops.convert_to_numpy, self.model.metrics_variables)
            self._trained = dict(logs or {}), list(values)  # validation resets them
        if is_due or self.request.signal:
            self._save(Position(self._epoch, step), *self._trained)
        self._stop_if_asked(f"step {self._epoch * self.steps_per_epoch + step}")

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.request.signal:
            self._save(Position(self._epoch, self.steps_per_epoch), *self._trained)
        self._stop_if_asked(f"the steps of epoch {self._epoch + 1}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._save(Position(epoch + 1, 0))
        self._stop_if_asked(f"epoch {epoch + 1}")

    def read_logs(self) -> dict[str, float]:
        """The logs of the last step before the checkpoint that a training starts from,
        if that is within an epoch."""
        return _read_json(self.directory / "last" / METADATA)["logs"]

    def _stop_if_asked(self, after):
        if self.request.signal:
            name, number = self.request.signal.name, self.request.signal.value
            raise StoppedError(f"Stopped by {name} after {after}.", 128 + number)

    def _save(self, position, logs=None, metrics=None):
        unfinished = self.directory / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _make_sure_of_room(self.model, unfinished / WEIGHTS)
        self.model.save_weights(unfinished / WEIGHTS)
        metadata = {"epoch": position.epoch, "batch": position.step}
        if position.step:
            metadata["logs"] = {name: float(value) for name, value in logs.items()}
            np.savez(unfinished / METRICS, *metrics)
        (unfinished / METADATA).write_text(json.dumps(metadata), encoding="utf-8")
        write_manifest(unfinished)
        for path in (*unfinished.iterdir(), unfinished):
            flush(path)
        last, before = self.directory / "last", self.directory / "before"
        if last.exists():
            shutil.rmtree(before, ignore_errors=True)
            last.rename(before)
        unfinished.rename(last)
        flush(self.directory)
        self._saved = time.monotonic()


class BestWeights(keras.callbacks.ModelCheckpoint):
    """Keras's `ModelCheckpoint` of the best weights, written aside and renamed, so that
    they are whole at any time, also for others that read them.

    Args:
        directory: `checkpoints` of the run.
        **kwargs: passed on to `keras.callbacks.ModelCheckpoint`.
    """

    def __init__(self, directory: pathlib.Path, **kwargs: Any) -> None:
        self.directory = directory
        self.unfinished = directory / "unfinished-best.weights.h5"
        # A path in whose name Keras finds nothing to fill in.
        path = str(self.unfinished).replace("{", "{{").replace("}", "}}")
        super().__init__(path, save_best_only=True, save_weights_only=True, **kwargs)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.unfinished.unlink(missing_ok=True)
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        _make_sure_of_room(self.model, self.unfinished)
        super().on_epoch_end(epoch, logs)
        if not self.unfinished.exists():
            return
        flush(self.unfinished)
        best, checksums = (self.directory / name for name in (BEST, BEST_CHECKSUMS))
        new = _checksum(self.unfinished)
        # The old one counts as well until the new file is there.
        old = [_checksum(best)] if best.exists() else []
        for accepted in ([new, *old], [new]):
            write_whole(checksums, json.dumps({"sha256": accepted}))
            if self.unfinished.exists():
                self.unfinished.replace(best)
            flush(self.directory)


def check_best(directory: pathlib.Path) -> None:
    """Raises `UserError` if the best weights in `checkpoints` of a run are damaged;
    earlier versions kept no checksum."""
    path = directory / BEST_CHECKSUMS
    if not path.exists():
        return
    try:
        accepted = list(_read_json(path)["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        accepted = []
    if _checksum(directory / BEST) not in accepted:
        raise UserError(
            f"{directory / BEST} is damaged, or {path.name} beside it; restore them, "
            "or train the run again in another directory."
        )


def read_position(directory: pathlib.Path) -> Position:
    """How far the last checkpoint in `checkpoints` of a run is."""
    path = directory / "last" / METADATA
    if not path.exists():
        return Position()
    metadata = _read_json(path)
    return Position(metadata["epoch"], metadata["batch"])


def write_manifest(checkpoint: pathlib.Path) -> None:
    """Writes the version and the checksums of a checkpoint into it."""
    names = sorted({path.name for path in checkpoint.iterdir()} - {MANIFEST})
    files = {name: _checksum(checkpoint / name) for name in names}
    text = json.dumps({"version": VERSION, "files": files}, indent=2) + "\n"
    (checkpoint / MANIFEST).write_text(text, encoding="utf-8")


def find_damage(checkpoint: pathlib.Path) -> str:
    """What is wrong with a checkpoint, `""` if nothing is; `UserError` if it is of
    another version."""
    try:
        manifest = _read_json(checkpoint / MANIFEST)
        if manifest["version"] != VERSION:
            raise UserError(
                f"{checkpoint} is of version {manifest['version']} of the checkpoints, "
                f"and not {VERSION}; go on with the version of this package that made "
                "it, or train again in another directory."
            )
        for name in {WEIGHTS, METADATA, *manifest["files"]}:
            if _checksum(checkpoint / name) != manifest["files"][name]:
                return f"{checkpoint / name} is damaged"
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return f"{checkpoint} is incomplete"
    return ""


def _make_sure_of_room(model, path):
    """Raises `OSError` if a file of the weights of a model does not fit on its disk or
    into a quota. HDF5 would not raise it: it takes the process down."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *getattr(optimizer, "variables", ())]
    size = sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in variables)
    size += BYTES_PER_ARRAY * (len(variables) + 16)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        path.unlink(missing_ok=True)


def _read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _checksum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
