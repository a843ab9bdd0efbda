"""The tasks and the metrics: one row each, from which everything else is derived.

Another task of street scenes takes a row here, an encoder of its targets in
`data.pipelines.ENCODERS` and a painter of its maps in `figures.painters.PAINTERS`.

Losses and metrics are made by functions, since options and recipes need only their
names and should not wait for Keras.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from mtl_keras.cityscapes import labels_of


@dataclasses.dataclass(frozen=True)
class Task:
    """What there is to know about a task.

    Attributes:
        kind: str, what it is a task of: `"scenes"` or `"small_images"`.
        channels: int, the channels of the output; `None` for one per class.
        make_loss: function without arguments that returns a `keras.losses.Loss`.
        metrics: names of its metrics; `{task}/{name}` is a key of `METRICS`. Sweeps,
            progress and the best checkpoint go by the first one.
        likelihood: str, its likelihood under learned weights, unless another is
            given.
        constant: str, what a predictor that does not look at the image says:
            `"majority"` (the most frequent class), `"zero"`, `"median"` (of all
            values) or `"median_image"` (pixel by pixel).
        color: str, the colour of its curves.
        of_things: bool, whether only the pixels of things have a value.
        sky_apart: bool, whether pictures show the sky, which has the value 0 by
            definition, in the colour of its class.
        labels: keys of `cityscapes.FILES`, the label files that targets are made from.
        optional_labels: keys of files that are used if present, and what happens
            if they are missing.
        masked_sky_metrics: names of metrics that are added where the sky is masked, as
            the protocol that they belong to wants it.
    """

    kind: str
    channels: int | None
    make_loss: Callable[[], Any]
    metrics: tuple[str, ...]
    likelihood: str
    constant: str
    color: str
    of_things: bool = False
    sky_apart: bool = False
    labels: tuple[str, ...] = ()
    optional_labels: dict[str, str] = dataclasses.field(default_factory=dict)
    masked_sky_metrics: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Metric:
    """What there is to know about a metric.

    Attributes:
        header: str, the head of its column in a table, with the unit.
        make: function of the name of a label set that returns a
            `keras.metrics.Metric`; `None` for what Keras does not compute.
        factor: float, by which the metric is multiplied for its column.
        higher_is_better: bool, whether larger values are better.
    """

    header: str
    make: Callable[[str], Any] | None
    factor: float = 1.0
    higher_is_better: bool = False


def _cross_entropy():
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _absolute_error():
    import keras

    return keras.losses.MeanAbsoluteError()


def _l1_norm():
    from mtl_keras.losses import L1Norm

    return L1Norm()


def _mean_iou(label_set):
    from mtl_keras.metrics import EvaluatedMeanIoU

    return EvaluatedMeanIoU(label_set)


def _mean_l2(label_set):
    import keras

    from mtl_keras.metrics import euclidean_error

    return keras.metrics.MeanMetricWrapper(euclidean_error, name="mean_l2")


def _raw_error(name):
    def make(label_set):
        import keras

        from mtl_keras import metrics

        error = {
            "abs_err": metrics.raw_absolute_error,
            "rel_err": metrics.raw_relative_error,
        }[name]
        return keras.metrics.MeanMetricWrapper(error, name=name)

    return make


def _of_keras(class_name, name):
    def make(label_set):
        import keras

        return getattr(keras.metrics, class_name)(name=name)

    return make


_accuracy = _of_keras("SparseCategoricalAccuracy", "accuracy")
_pixel_accuracy = _of_keras("SparseCategoricalAccuracy", "pixel_accuracy")
_mean_abs = _of_keras("MeanAbsoluteError", "mean_abs")
_rms = _of_keras("RootMeanSquaredError", "rms")


TASKS = {
    "semantic": Task(
        kind="scenes",
        labels=("semantic",),
        channels=None,
        make_loss=_cross_entropy,
        metrics=("miou", "pixel_accuracy"),
        likelihood="softmax",
        constant="majority",
        color="#0072b2",
    ),
    "instance": Task(
        kind="scenes",
        labels=("instance",),
        channels=2,
        make_loss=_l1_norm,  # |dy| + |dx|: the paper, section 4
        metrics=("mean_abs", "mean_l2", "rms"),
        likelihood="gaussian",
        constant="zero",
        color="#d55e00",
        of_things=True,
    ),
    "depth": Task(
        kind="scenes",
        labels=("disparity",),
        # No stereo matcher sees the sky; where the labels have it, it counts as 0.
        optional_labels={"semantic": "the sky is masked in the targets of depth"},
        channels=1,
        make_loss=_absolute_error,
        metrics=("mean_abs", "rms"),
        masked_sky_metrics=("abs_err", "rel_err"),
        likelihood="gaussian",
        constant="median",
        color="#009e73",
        sky_apart=True,
    ),
    "class": Task(
        kind="small_images",
        channels=None,
        make_loss=_cross_entropy,
        metrics=("accuracy",),
        likelihood="softmax",
        constant="majority",
        color="#0072b2",
    ),
    "reconstruction": Task(
        kind="small_images",
        channels=1,
        make_loss=_absolute_error,
        metrics=("mean_abs", "rms"),
        likelihood="gaussian",
        constant="median_image",
        color="#d55e00",
    ),
}

# Errors of offsets and depth are in pixels, but for `abs_err` and `rel_err`, those of a
# reconstruction in grey values in 0..1; all other metrics are fractions in 0..1.
METRICS = {
    "semantic/miou": Metric("mIoU %", _mean_iou, 100.0, higher_is_better=True),
    "semantic/pixel_accuracy": Metric(
        "pixel accuracy %", _pixel_accuracy, 100.0, higher_is_better=True
    ),
    "instance/mean_abs": Metric("instance mean abs px", _mean_abs),
    "instance/mean_l2": Metric("instance mean L2 px", _mean_l2),
    "instance/rms": Metric("instance RMS px", _rms),
    "instance/ap": Metric("AP %", None, 100.0, higher_is_better=True),
    "instance/ap50": Metric("AP50 %", None, 100.0, higher_is_better=True),
    "depth/mean_abs": Metric("depth mean abs px", _mean_abs),
    "depth/rms": Metric("depth RMS px", _rms),
    "depth/abs_err": Metric("depth Abs Err, raw/65535", _raw_error("abs_err")),
    "depth/rel_err": Metric("depth Rel Err, ratio", _raw_error("rel_err")),
    "class/accuracy": Metric("accuracy %", _accuracy, 100.0, higher_is_better=True),
    "reconstruction/mean_abs": Metric("reconstruction mean abs", _mean_abs),
    "reconstruction/rms": Metric("reconstruction RMS", _rms),
}


def tasks_of(kind: str) -> tuple[str, ...]:
    """The names of the tasks of a kind, in the order of `TASKS`."""
    return tuple(name for name, task in TASKS.items() if task.kind == kind)


def channels_of(task: str, num_classes: int) -> int:
    """The number of channels of a task's output."""
    channels = TASKS[task].channels
    return num_classes if channels is None else channels


def make_losses(tasks: Sequence[str]) -> dict[str, Any]:
    """The losses of tasks, `{task: keras.losses.Loss}`.

    `semantic` and `class`: cross entropy. `instance`: `|dy| + |dx|`. `depth` and
    `reconstruction`: absolute error.
    """
    return {task: TASKS[task].make_loss() for task in tasks}


def make_metrics(
    task: str, label_set: str = "train_ids", sky_is_masked: bool = False
) -> list[Any]:
    """The metrics of a task, a list of `keras.metrics.Metric`.

    `semantic`: `miou` and `pixel_accuracy`, 0..1. `instance`: `mean_abs` of the
    components, `mean_l2` of the vectors and `rms` of the components, in pixels.
    `depth`: `mean_abs` and `rms`, in pixels of disparity; where the sky is masked also
    `abs_err` and `rel_err`, see `metrics.raw_absolute_error`. `class`: `accuracy`,
    0..1. `reconstruction`: `mean_abs` and `rms`, of grey values in 0..1.

    Args:
        task: str, a key of `TASKS`.
        label_set: str, a key of `cityscapes.LABEL_SETS`: what the class indices of
            `semantic` mean.
        sky_is_masked: bool. Whether only pixels with a disparity have a depth.

    Raises:
        ValueError: for an unknown label set.
    """
    labels_of(label_set)  # refuses an unknown one
    names = TASKS[task].metrics + TASKS[task].masked_sky_metrics * sky_is_masked
    rows = [METRICS[f"{task}/{name}"] for name in names]
    return [row.make(label_set) for row in rows if row.make]


def main_metric(task: str) -> str:
    """The key in `METRICS` of the metric that a task is judged by first."""
    return f"{task}/{TASKS[task].metrics[0]}"


def best_metric(tasks: Sequence[str]) -> str:
    """The key in `METRICS` of the metric that decides which checkpoint is best: the
    main metric of the first task where higher is better, else that of the first task.
    """
    main = [main_metric(task) for task in tasks]
    return next((key for key in main if METRICS[key].higher_is_better), main[0])
