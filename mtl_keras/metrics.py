"""Metrics that Keras does not have, and how names and functions become metrics.

Sums and counts live in the metrics' weights, so the scores do not depend on how a
split is cut into batches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mtl_keras.cityscapes import (
    DISPARITY_STEPS,
    IMAGE_SIZE,
    MAX_CODE,
    evaluated_index_table,
    evaluated_labels,
)
from mtl_keras.hints import Tensor
from mtl_keras.losses import first_line


@keras.saving.register_keras_serializable(package="mtl_keras")
class EvaluatedMeanIoU(keras.metrics.IoU):
    """Mean intersection over union of the evaluated classes, in 0..1.

    Those are the 19 of the official evaluation, or the 7 of the label set `categories`.

    It is computed from one confusion matrix of the whole split. Pixels whose true
    label is not evaluated do not count; predicting such a label where another is true
    is a miss. Classes that neither occur nor are predicted are left out of the mean.

    Args:
        label_set: str, a key of `cityscapes.LABEL_SETS`: what the class indices
            of targets and predictions mean.
        name: str. Defaults to `"miou"`.
        **kwargs: passed on to `keras.metrics.IoU`.

    Call arguments:
        y_true: class indices, `(batch, height, width)`; others than those of the
            label set do not count.
        y_pred: logits or probabilities, `(batch, height, width, num_classes)`.
        sample_weight: optional mask, `(batch, height, width)`. Pixels above 0 count,
            all alike.

    Returns:
        The mean so far, a scalar.

    Raises:
        ValueError: for an unknown label set.

    Example:
    >>> metric = EvaluatedMeanIoU("train_ids")
    >>> truth, prediction = ops.array([[[0, 1]]]), ops.array([[[0, 0]]])
    >>> float(metric(truth, ops.one_hot(prediction, 19)))  # of 1/2 and 0
    0.25

    References:
     - `evalPixelLevelSemanticLabeling.py` of
       [cityscapesScripts](https://github.com/mcordts/cityscapesScripts)
    """

    def __init__(self, label_set: str, name: str = "miou", **kwargs: Any) -> None:
        evaluated = evaluated_labels(label_set)
        super().__init__(
            num_classes=len(evaluated) + 1,  # the last one: any ignored class
            target_class_ids=range(len(evaluated)),
            name=name,
            **kwargs,
        )
        self.label_set = label_set
        self._names = [label.name for label in evaluated]
        table = evaluated_index_table(label_set)
        self._table = np.where(table < 0, len(self._names), table)

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        table = ops.convert_to_tensor(self._table, "int32")
        y_true = ops.cast(y_true, "int32")
        # 255 and -1, the usual marks of pixels without a label, are not classes.
        is_class = ops.logical_and(y_true >= 0, y_true < len(self._table))
        y_true = ops.take(table, ops.where(is_class, y_true, 0))
        y_pred = ops.take(table, ops.argmax(y_pred, axis=-1))
        counts = ops.logical_and(is_class, y_true < len(self._names))
        if sample_weight is not None:
            valid = ops.cast(ops.convert_to_tensor(sample_weight), "float32") > 0
            counts = ops.logical_and(counts, ops.reshape(valid, ops.shape(counts)))
        super().update_state(y_true, y_pred, ops.cast(counts, "int32"))

    def result(self) -> Tensor:
        # Keras adds an epsilon, which leaves a perfect prediction below 1.
        hits = ops.diagonal(self.total_cm)
        union = ops.sum(self.total_cm, axis=0) + ops.sum(self.total_cm, axis=1) - hits
        hits, union = hits[: len(self._names)], union[: len(self._names)]
        occurs = ops.cast(union > 0, "float32")
        iou = ops.cast(hits, "float32") / ops.cast(ops.maximum(union, 1), "float32")
        return ops.sum(iou) / ops.maximum(ops.sum(occurs), 1.0)

    def per_class_iou(self) -> dict[str, float | None]:
        """`{class name: IoU}`; `None` for a class that neither occurs nor is
        predicted."""
        matrix = ops.convert_to_numpy(self.total_cm).astype(np.int64)
        hits = np.diagonal(matrix)
        union = matrix.sum(0) + matrix.sum(1) - hits
        return {
            name: float(hits[i] / union[i]) if union[i] else None
            for i, name in enumerate(self._names)
        }

    def confusion(self) -> np.ndarray:
        """Pixels by true class, in rows, and predicted class, `(n, n + 1)` int64.
        The last column is that of the classes that the evaluation ignores."""
        matrix = ops.convert_to_numpy(self.total_cm).astype(np.int64)
        return matrix[: len(self._names)]

    def get_config(self) -> dict[str, Any]:
        return {"label_set": self.label_set, "name": self.name}


def euclidean_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """The lengths of the differences of vectors: `(..., n)` to `(...)`."""
    return ops.sqrt(ops.sum(ops.square(y_true - y_pred), axis=-1))


def raw_absolute_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """The absolute error of disparity in the unit of MTAN's protocol: the value that
    `*_disparity.png` of Cityscapes would have, `256 d + 1` with d in pixels of an image
    that is 2048 wide, divided by 65535.

    Args:
        y_true: `(batch, H, W, 1)`, disparity in pixels of the width W.
        y_pred: the same.

    Returns:
        `(batch, H, W)`.
    """
    return ops.mean(ops.abs(y_true - y_pred), axis=-1) * _raw_per_pixel(y_true)


def raw_relative_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """`raw_absolute_error` divided by the true value in the same unit: a ratio, not
    per cent.

    The papers report its mean over pixels, which is above 20: a true disparity of 0
    has the value 1 / 65535, so that distant pixels weigh most.

    Arguments and result are those of `raw_absolute_error`.
    """
    disparity = ops.maximum(ops.mean(y_true, axis=-1), 0.0)  # what is masked may be < 0
    true = disparity * _raw_per_pixel(y_true) + 1.0 / MAX_CODE
    return raw_absolute_error(y_true, y_pred) / true


def _raw_per_pixel(disparity):
    return DISPARITY_STEPS * IMAGE_SIZE[1] / disparity.shape[-2] / MAX_CODE


class Lowest(keras.metrics.Metric):
    """The lowest of all values so far and 0; `update_state` takes a scalar.

    Args:
        name: str.
        **kwargs: passed on to `keras.metrics.Metric`.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.lowest = self.add_variable((), "zeros", name="lowest")

    def update_state(self, value: Tensor) -> None:
        value = ops.cast(ops.stop_gradient(value), self.lowest.dtype)
        self.lowest.assign(ops.minimum(self.lowest, value))

    def result(self) -> Tensor:
        return ops.convert_to_tensor(self.lowest)


def get_metrics(
    task: str, metrics: Any, loss: Any = None
) -> list[keras.metrics.Metric]:
    """Turns what Keras accepts as metrics into a list of `keras.metrics.Metric`.

    Args:
        task: str, for error messages.
        metrics: a metric, its name or a function, or a list of them, or `None`.
        loss: optional `keras.losses.Loss` of the task, which decides what the name
            `accuracy` means.

    Raises:
        ValueError: for anything else, and for `accuracy` if the loss does not say
            which is meant.
    """
    if metrics is None:
        return []
    if not isinstance(metrics, (list, tuple)):
        metrics = [metrics]
    return [_get_metric(task, metric, loss) for metric in metrics]


def _get_metric(task, identifier, loss):
    is_accuracy = str(identifier).lower() in ("accuracy", "acc")
    try:
        if is_accuracy:
            metric = _choose_accuracy(task, loss)
        else:
            metric = keras.metrics.get(identifier)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`task_metrics` of {task!r} must be Keras metrics or their names. "
            f"Received: {identifier!r} ({first_line(error)})"
        ) from error
    if not isinstance(metric, keras.metrics.Metric):
        name = getattr(metric, "__name__", None)
        if not callable(metric):
            raise ValueError(
                f"`task_metrics` of {task!r} must be Keras metrics or their names. "
                f"Received: {identifier!r}"
            )
        metric = keras.metrics.MeanMetricWrapper(metric, name=name)
    if isinstance(identifier, str):
        metric.name = identifier
    return metric


def _choose_accuracy(task, loss):
    name = getattr(loss, "fn", loss)
    name = getattr(name, "__name__", type(name).__name__).replace("_", "").lower()
    if name.startswith("binary"):
        config = loss.get_config()
        threshold = 0.0 if config.get("from_logits") else 0.5
        return keras.metrics.BinaryAccuracy(threshold=threshold)
    if name.startswith("sparsecategorical"):
        return keras.metrics.SparseCategoricalAccuracy()
    if name.startswith("categorical"):
        return keras.metrics.CategoricalAccuracy()
    raise ValueError(
        "which accuracy is meant does not follow from the loss; name it, as in "
        "'sparse_categorical_accuracy'"
    )


def build_metrics(
    task_metrics: Mapping[str, Sequence[keras.metrics.Metric]],
    outputs: Mapping[str, Tensor],
) -> None:
    """Makes metrics that create their variables at first use, such as `R2Score`,
    create them now, since inside a step of JAX it is too late.

    Args:
        task_metrics: dict of lists of metrics by task.
        outputs: dict of tensors by task, `(batch, ..., channels)`. Metrics of an
            output with an unknown size are left as they are.
    """
    for task, metrics in task_metrics.items():
        shape = tuple(outputs[task].shape)
        if None in shape[1:]:
            continue
        for metric in metrics:
            if not getattr(metric, "_built", True):
                zeros = ops.zeros((2, *shape[1:]))
                metric.update_state(zeros, zeros)
                metric.reset_state()


def check_metrics_built(
    task_metrics: Mapping[str, Sequence[keras.metrics.Metric]],
) -> None:
    """Raises `ValueError` for metrics that would create variables in a step of JAX."""
    if keras.backend.backend() != "jax":
        return
    for task, metrics in task_metrics.items():
        for metric in metrics:
            if not getattr(metric, "_built", True):
                raise ValueError(
                    f"The metric {metric.name!r} of task {task!r} creates its "
                    "variables when it is first updated, which is impossible in a step "
                    "of JAX: update and reset it once before, or use a functional "
                    "network."
                )


def check_metrics(task_metrics: Mapping[str, Sequence[keras.metrics.Metric]]) -> None:
    """Raises `ValueError` if two tasks share a metric, or logs of a task a name."""
    owners: dict[int, str] = {}
    for task, metrics in task_metrics.items():
        names = ["loss", "sigma", "weight"]
        for metric in metrics:
            if id(metric) in owners:
                raise ValueError(
                    f"The tasks {owners[id(metric)]!r} and {task!r} share the metric "
                    f"{metric.name!r}, which would mix them; make one for each."
                )
            if metric.name in names:
                raise ValueError(
                    f"The task {task!r} logs {metric.name!r} twice; give the metric "
                    "another `name`."
                )
            owners[id(metric)] = task
            names.append(metric.name)
