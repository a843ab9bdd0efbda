"""The callbacks of a run: progress, checkpoints, logs, all of them resumable."""

import csv
import functools
import math
import pathlib
import sys
import time
from typing import Any

import keras
import tensorflow as tf
from tqdm import tqdm

from mtl_keras.experiments.board import StepBoard
from mtl_keras.experiments.checkpoints import BestWeights, Checkpoints
from mtl_keras.experiments.divergence import CheckLosses
from mtl_keras.experiments.interruption import StopRequest
from mtl_keras.experiments.problems import Problem
from mtl_keras.experiments.runs import find_best, read_history
from mtl_keras.experiments.schedules import PLATEAU, ResumablePlateau
from mtl_keras.experiments.validation import WholeFrameValidation
from mtl_keras.tasks import METRICS, TASKS, best_metric, main_metric


class ProgressReport(keras.callbacks.Callback):
    """A progress bar over the whole training, and a line when an epoch ends.

    Args:
        epochs: int, of the whole run.
        steps_per_epoch: int.
    """

    def __init__(self, epochs: int, steps_per_epoch: int) -> None:
        super().__init__()
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.bar: Any = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.bar is None:
            total = self.epochs * self.steps_per_epoch
            done = (epoch + 1) * self.steps_per_epoch - self.params["steps"]
            self.bar = tqdm(total=total, initial=done, unit="step", desc="train")
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self.bar.update()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs = logs or {}
        seconds = time.perf_counter() - self.started
        scores = [
            f"{METRICS[key].header} {_in_words(logs['val_' + key], METRICS[key])}"
            for key in map(main_metric, TASKS)
            if "val_" + key in logs
        ]
        self.bar.write(
            f"epoch {epoch + 1}/{self.epochs}: loss {logs['loss']:.3f}, val "
            f"{', '.join(scores)} ({seconds:.0f} s)"
        )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _in_words(score, metric):
    return "absent" if math.isnan(score) else f"{score * metric.factor:.3g}"


class EpochClock(keras.callbacks.Callback):
    """Writes a line per epoch to `epochs.csv`: the seconds of its training and of its
    validation, the images trained per second, and the learning rate at its end. Of an
    epoch that was interrupted, it is the part after that.

    Args:
        directory: that of the run.
        batch_size: int.
    """

    def __init__(self, directory: pathlib.Path, batch_size: int) -> None:
        super().__init__()
        self.path = directory / "epochs.csv"
        self.batch_size = batch_size

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.started = self.trained = time.perf_counter()

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if batch + 1 == self.params["steps"]:
            self.trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        seconds = self.trained - self.started
        images = self.params["steps"] * self.batch_size
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        row = {
            "epoch": epoch,
            "train_seconds": round(seconds, 3),
            "val_seconds": round(time.perf_counter() - self.trained, 3),
            "images_per_second": images / (seconds or math.nan),
            "learning_rate": float(rate),
        }
        is_new = not self.path.exists() or not self.path.stat().st_size
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if is_new:
                writer.writeheader()
            writer.writerow(row)


class Dispensable(keras.callbacks.Callback):
    """A callback that a training can do without: if it cannot write, it says so once
    and is left alone from then on.

    Args:
        callback: `keras.callbacks.Callback`.
    """

    HOOKS = (
        "on_train_begin",
        "on_epoch_begin",
        "on_train_batch_begin",
        "on_train_batch_end",
        "on_test_begin",
        "on_test_batch_begin",
        "on_test_batch_end",
        "on_test_end",
        "on_epoch_end",
        "on_train_end",
    )

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        super().__init__()
        self.callback = callback
        for hook in self.HOOKS:
            setattr(self, hook, functools.partial(self._call, hook))

    def set_model(self, model: keras.Model) -> None:
        self.callback.set_model(model)

    def set_params(self, params: dict[str, Any]) -> None:
        self.callback.set_params(params)

    def _call(self, hook, *args, **kwargs):
        try:
            getattr(self.callback, hook)(*args, **kwargs)
        except (OSError, tf.errors.OpError) as error:
            print(
                f"\nNote: {type(self.callback).__name__} cannot write "
                f"({' '.join(str(error).split())}); the training goes on without it.",
                file=sys.stderr,
            )
            for name in self.HOOKS:
                setattr(self, name, lambda *args, **kwargs: None)


def make_callbacks(
    directory: pathlib.Path,
    problem: Problem,
    epochs: int,
    steps_per_epoch: int,
    request: StopRequest | None = None,
) -> list[keras.callbacks.Callback]:
    """Checkpoints, logs and progress of a run, all resumable, and the schedule
    `"plateau"`, with which the learning rate of an epoch is in `history.csv`, too. The
    last one is the `Checkpoints`.
    """
    tasks, schedule = problem.options.tasks, problem.options.schedule
    best = best_metric(tasks)
    monitor, mode = f"val_{best}", "max" if METRICS[best].higher_is_better else "min"
    plateau = []
    if schedule == "plateau":
        losses = [row["val_loss"] for row in read_history(directory)]
        plateau = [ResumablePlateau(losses, **PLATEAU)]
    checkpoints = Checkpoints(
        directory / "checkpoints",
        steps_per_epoch,
        problem.options.checkpoint_minutes,
        request,
    )
    of_whole_frames = WholeFrameValidation(problem, checkpoints.on_test_batch_end)
    return [
        *([of_whole_frames] if problem.has_crops else []),
        CheckLosses(steps_per_epoch),
        ProgressReport(epochs, steps_per_epoch),
        Dispensable(EpochClock(directory, problem.options.batch_size)),
        *plateau,  # before what logs and saves the learning rate
        BestWeights(
            directory / "checkpoints",
            monitor=monitor,
            mode=mode,
            initial_value_threshold=find_best(directory, tasks).get(monitor),
        ),
        keras.callbacks.CSVLogger(directory / "history.csv", append=True),
        Dispensable(
            keras.callbacks.TensorBoard(directory / "tensorboard", write_graph=False)
        ),
        Dispensable(StepBoard(directory, problem, epochs, steps_per_epoch)),
        checkpoints,
    ]
