"""Checkpoints of a run that are whole or not there.

A checkpoint is a directory with the weights, the sigmas and the optimizer
(`latest.weights.h5`), the number of finished epochs (`training_metadata.json`) and the
checksum of both (`manifest.json`). It is written aside and renamed when it is on the
disk; the one before is kept until then and after.
"""

import hashlib
import json
import os
import pathlib
import shutil

import keras

VERSION = 1
WEIGHTS, METADATA, MANIFEST = (
    "latest.weights.h5",
    "training_metadata.json",
    "manifest.json",
)


class Checkpoints(keras.callbacks.BackupAndRestore):
    """Keras's `BackupAndRestore`, which writes its two files into a directory of their
    own, `last`, and keeps the directory before, `before`.

    Keras writes the files in place and one after the other: a process that is killed
    between them leaves the weights of one epoch and the number of another.

    Args:
        directory: `checkpoints` of the run.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__(str(directory / "last"), delete_checkpoint=False)
        self.directory = directory

    def _save_model(self):
        unfinished = self.directory / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        self.model.save_weights(unfinished / WEIGHTS)
        epoch = {"epoch": self._current_epoch, "batch": 0}
        (unfinished / METADATA).write_text(json.dumps(epoch), encoding="utf-8")
        write_manifest(unfinished)
        for path in (*unfinished.iterdir(), unfinished):
            _flush(path)
        last, before = self.directory / "last", self.directory / "before"
        if last.exists():
            shutil.rmtree(before, ignore_errors=True)
            last.rename(before)
        unfinished.rename(last)
        _flush(self.directory)


def write_manifest(checkpoint: pathlib.Path) -> None:
    """Writes the version and the checksums of a checkpoint into it."""
    files = {name: _checksum(checkpoint / name) for name in (WEIGHTS, METADATA)}
    text = json.dumps({"version": VERSION, "files": files}, indent=2) + "\n"
    (checkpoint / MANIFEST).write_text(text, encoding="utf-8")


def find_damage(checkpoint: pathlib.Path) -> str:
    """What is wrong with a checkpoint, `""` if nothing is."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        for name in (WEIGHTS, METADATA):
            if _checksum(checkpoint / name) != manifest["files"][name]:
                return f"{checkpoint / name} is damaged"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{checkpoint} is incomplete"
    return ""


def _checksum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path):
    """Has the disk hold what was written to a file, or renamed in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
