"""What is done about a loss that is no longer finite."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from mtl_keras.errors import DivergenceError, UserError
from mtl_keras.experiments.files import write_whole
from mtl_keras.experiments.problems import Problem

NAMED = 8  # frames in a sentence; the file of the batch has them all
SENTENCE, BATCH = "diverged.txt", "diverged.npz"


class NonFiniteError(Exception):
    """A loss is NaN or infinite.

    Attributes:
        step: int, the training step, counted from 1.
        logs: dict of float, what Keras logged then.
        is_after: bool, whether the weights are spoiled that the step left behind, and
            not the loss that it began with.
    """

    def __init__(
        self, step: int, logs: Mapping[str, float], is_after: bool = False
    ) -> None:
        super().__init__(f"NaN or infinite loss in step {step}")
        self.step, self.logs, self.is_after = step, logs, is_after


class CheckLosses(keras.callbacks.Callback):
    """Ends a run as soon as its loss is not finite, with a `NonFiniteError`. What the
    last step of an epoch has spoiled shows in the validation. It has to come before
    what logs and saves.

    Args:
        steps_per_epoch: int.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        super().__init__()
        self.steps_per_epoch = steps_per_epoch

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._first = (epoch + 1) * self.steps_per_epoch - self.params["steps"]

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if not np.isfinite((logs or {}).get("loss", 0.0)):
            raise NonFiniteError(self._first + batch + 1, logs or {})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not np.isfinite((logs or {}).get("val_loss", 0.0)):
            step = (epoch + 1) * self.steps_per_epoch
            raise NonFiniteError(step, logs or {}, is_after=True)


@contextlib.contextmanager
def explain_divergence(directory: pathlib.Path, problem: Problem) -> Iterator[None]:
    """Turns a `NonFiniteError` into a `DivergenceError` that names tasks, step and
    frames, and keeps the batch of that step in the run as `BATCH`."""
    try:
        yield
    except NonFiniteError as error:
        batch = next(iter(problem.make_training_batches(error.step - 1)))
        frames = problem.find_training_frames(error.step - 1)
        write_batch(directory / BATCH, error.step, frames, batch)
        message = _explain(directory, error, frames, batch[2])
        write_whole(directory / SENTENCE, message + "\n")
        raise DivergenceError(message) from error


def _explain(directory, error, frames, masks):
    prefix = "val_" if error.is_after else ""
    tasks = [
        task
        for task, mask in masks.items()
        # A task without a valid element so far has no loss.
        if not np.isfinite(error.logs.get(f"{prefix}{task}/loss", 0.0))
        and np.any(np.asarray(mask) > 0)
    ]
    what = f"The loss of {' and '.join(tasks)}" if tasks else "The total loss"
    when = "after" if error.is_after else "in"
    named = [*frames[:NAMED], *(["..."] if len(frames) > NAMED else [])]
    on = f" on the frames {', '.join(named)}" if named else ""
    return (
        f"{what} of {directory} became infinite or NaN {when} step {error.step}{on}; "
        f"python train.py --replay {directory} shows that step. Train again with a "
        "lower --learning-rate, in another --output. The checkpoints before that are "
        "kept."
    )


def write_batch(
    path: pathlib.Path, step: int, frames: Sequence[str], batch: tuple
) -> None:
    """Keeps the `(image, targets, masks)` of a step and the names of its frames."""
    image, targets, masks = batch
    arrays = {"step": step, "frames": np.array(frames, dtype=np.str_), "image": image}
    arrays |= {f"target/{task}": target for task, target in targets.items()}
    arrays |= {f"mask/{task}": mask for task, mask in masks.items()}
    unfinished = path.with_suffix(".part.npz")
    np.savez_compressed(unfinished, **arrays)
    unfinished.replace(path)


def read_batch(path: pathlib.Path) -> tuple[int, list[str], tuple]:
    """The step, the frames and the `(image, targets, masks)` that `explain_divergence`
    kept; `UserError` if they are damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        step = int(arrays["step"])
        frames, image = arrays["frames"].tolist(), arrays["image"]
    except Exception as error:  # of many kinds, by what is damaged
        raise UserError(
            f"{path} is damaged ({error}); train the run again in another directory."
        ) from error
    parts = [
        {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
        for prefix in ("target/", "mask/")
    ]
    return step, frames, (image, *parts)
