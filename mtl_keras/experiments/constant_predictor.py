"""What is reached without looking at the image says how much a score is worth."""

import collections
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mtl_keras.cityscapes import DISPARITY_STEPS
from mtl_keras.errors import UserError
from mtl_keras.tasks import TASKS


class ConstantPredictor:
    """Predicts of every task the constant that its row in `tasks.TASKS` names.

    Args:
        constants: dict. Task name to a class index (`"majority"`), a number
            (`"zero"`, `"median"`) or an image as nested lists (`"median_image"`).
        num_classes: int. Channels of the tasks with classes.
    """

    def __init__(self, constants: Mapping[str, Any], num_classes: int) -> None:
        self.constants = constants
        self.num_classes = num_classes

    @classmethod
    def fit(cls, batches: Iterable[tuple], num_classes: int) -> "ConstantPredictor":
        """Finds the constants of a data set of `(images, targets, masks)`.

        Only valid elements count, except in a median image, whose targets are valid
        everywhere. Medians are rounded as Cityscapes codes disparity,
        to 1/256.

        Raises:
            UserError: for a task without a valid element.
        """
        gathered: dict[str, Any] = {}
        absent = set()
        for _, targets, masks in batches:
            for task, target in targets.items():
                if task not in gathered:
                    gathered[task] = _GATHERED[TASKS[task].constant]()
                    absent.add(task)
                valid = np.asarray(masks[task]) > 0
                if valid.any():
                    absent.discard(task)
                gathered[task].add(np.asarray(target), valid)
        for task in sorted(absent):
            raise UserError(
                f"The training split has no valid pixel of the task {task} to learn "
                "from; see to its labels, or leave the task out of --tasks."
            )
        constants = {task: found.result() for task, found in gathered.items()}
        return cls(constants, num_classes)

    def predict(self, targets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Predictions in the shapes of the network's, for `targets` by task."""
        return {
            task: self._predict(task, np.shape(target))
            for task, target in targets.items()
        }

    def _predict(self, task, shape):
        constant = self.constants[task]
        if TASKS[task].constant == "majority":
            one_hot = np.eye(self.num_classes, dtype=np.float32)[constant]
            return np.broadcast_to(one_hot, (*shape, self.num_classes))
        return np.broadcast_to(np.asarray(constant, np.float32), shape)


def check_constants(
    constants: Mapping[str, Any],
    tasks: Iterable[str],
    num_classes: int,
    image_shape: tuple[int, ...],
) -> None:
    """Raises `ValueError` for what is not a constant of each of the tasks.

    Args:
        constants: as for `ConstantPredictor`, from a file.
        tasks: names of tasks.
        num_classes: int.
        image_shape: `(height, width, channels)` of a median image.
    """
    for task in tasks:
        if task not in constants:
            raise ValueError(f"there is no {task}")
        kind, constant = TASKS[task].constant, constants[task]
        shape = image_shape if kind == "median_image" else ()
        array = np.asarray(constant)
        if array.dtype.kind not in "if" or array.shape != shape:
            raise ValueError(f"{task} is {str(constant)[:40]}")
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(array.astype(np.float32)).all()
        is_class = array.dtype.kind == "i" and 0 <= np.max(array) < num_classes
        if not is_finite or (kind == "majority" and not is_class):
            raise ValueError(f"{task} is {str(constant)[:40]}")


class _Zero:
    def add(self, values, valid):
        pass

    def result(self):
        return 0.0


class _Majority:
    steps = 1.0

    def __init__(self):
        self.counts = collections.Counter()

    def add(self, values, valid):
        chosen = np.rint(values[valid] * self.steps).astype(np.int64).ravel()
        if chosen.size:
            low = chosen.min()
            counts = np.bincount(chosen - low)
            for index in np.flatnonzero(counts):
                self.counts[int(low + index)] += int(counts[index])

    def result(self):
        return max(sorted(self.counts), key=self.counts.get, default=0)


class _Median(_Majority):
    steps = DISPARITY_STEPS

    def result(self):
        half, below = self.counts.total() / 2, 0
        for value in sorted(self.counts):
            below += self.counts[value]
            if below >= half:
                return value / self.steps
        return 0.0


class _MedianImage:
    def __init__(self):
        self.images = []

    def add(self, values, valid):
        self.images.append(values)

    def result(self):
        return np.median(np.concatenate(self.images), axis=0).tolist()


_GATHERED = {
    "zero": _Zero,
    "majority": _Majority,
    "median": _Median,
    "median_image": _MedianImage,
}
