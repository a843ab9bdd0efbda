"""Losses of individual elements, summed where a mask says that they count."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import ops, tree
from keras.src.backend import get_keras_mask  # has no public name

from mtl_keras.distribution import mean_over_replicas, num_replicas
from mtl_keras.hints import Tensor


@keras.saving.register_keras_serializable(package="mtl_keras")
class MaskedLoss(keras.losses.Loss):
    """The mean of a Keras loss over the elements whose mask is set.

    `MultiTaskTrainer` averages every loss in this way itself. This class is for other
    training loops, in which Keras divides by the number of all elements, including
    those that a mask leaves out.

    Before the loss sees them, targets and predictions are replaced by 0 where the
    mask is 0. Nothing there, NaN included, reaches the value or the gradient. The
    sum is divided by the sum of the mask; an empty mask gives 0.

    Args:
        loss: a `keras.losses.Loss`, such as `keras.losses.MeanAbsoluteError()`, or
            the name of one, or a function of targets and predictions. It is not
            changed; its reduction, which must not be `"sum"`, has no effect.
        name: optional str.
        **kwargs: passed on to `keras.losses.Loss`.

    Call arguments:
        y_true: targets, `(batch, ...)` or `(batch, ..., channels)`.
        y_pred: predictions, `(batch, ..., channels)`.
        sample_weight: mask of any dtype, 0 or a positive weight, as `sum_loss`
            takes it. `None` counts every element.

    Returns:
        The mean, a scalar: float32, or float64 if the loss is.

    Raises:
        ValueError: for what `get_loss` refuses, or if the mask fits neither the
            elements nor the samples.

    Example:
    >>> loss = MaskedLoss(keras.losses.MeanAbsoluteError())
    >>> target = ops.zeros((1, 2, 1))
    >>> prediction = ops.array([[[3.0], [float("nan")]]])
    >>> float(loss(target, prediction, ops.array([[1.0, 0.0]])))
    3.0
    """

    def __init__(self, loss: Any, name: str | None = None, **kwargs: Any) -> None:
        kwargs.pop("reduction", None)
        loss = get_loss(loss, "MaskedLoss")
        super().__init__(
            name=name or getattr(loss, "name", None),
            reduction="mean_with_sample_weight",
            **kwargs,
        )
        self.loss = loss

    def __call__(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        total, weight, _ = sum_loss(self.loss, y_true, y_pred, sample_weight, self.name)
        mean, _ = mean_over_replicas(total, weight)
        return mean / num_replicas()  # Keras adds up the losses of the replicas

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "loss": keras.saving.serialize_keras_object(self.loss)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MaskedLoss":
        loss = keras.saving.deserialize_keras_object(config.pop("loss"))
        return cls(loss, **config)


@keras.saving.register_keras_serializable(package="mtl_keras")
class L1Norm(keras.losses.Loss):
    """The sum of the absolute errors of a vector, `|dy| + |dx|` for an offset.

    Keras's `MeanAbsoluteError` is the mean over the components, for an offset half
    of this.

    Args:
        name: str. Defaults to `"l1_norm"`.
        **kwargs: passed on to `keras.losses.Loss`.

    Call arguments:
        y_true: targets, `(batch, ..., components)`.
        y_pred: predictions of the same shape.

    Returns:
        The mean of the norms, or what else the `reduction` says.

    Example:
    >>> float(L1Norm()(ops.zeros((1, 2)), ops.array([[1.0, -3.0]])))
    4.0

    References:
     - [Kendall et al., 2018](https://arxiv.org/abs/1705.07115), section 4.2
    """

    def __init__(self, name: str = "l1_norm", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return ops.sum(ops.abs(y_true - y_pred), axis=-1)


@keras.saving.register_keras_serializable(package="mtl_keras")
class FunctionLoss(keras.losses.Loss):
    """A loss made of a function of targets and predictions.

    Args:
        fn: function `(y_true, y_pred)` that returns a value per element, `(batch,
            ...)`.
        name: optional str. Defaults to that of the function.
        **kwargs: passed on to `keras.losses.Loss`.
    """

    def __init__(
        self, fn: Callable[..., Tensor], name: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(name=name or getattr(fn, "__name__", None), **kwargs)
        self.fn = fn

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return self.fn(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "fn": keras.saving.serialize_keras_object(self.fn)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FunctionLoss":
        fn = keras.saving.deserialize_keras_object(config.pop("fn"))
        return cls(fn, **config)


def get_loss(identifier: Any, whose: str) -> Callable[..., Tensor]:
    """Turns what Keras accepts as a loss into something that `sum_loss` can sum.

    Args:
        identifier: a `keras.losses.Loss`, its class or its name, a function of
            targets and predictions that returns a value per element, or a callable
            with the argument `sample_weight` that returns a scalar.
        whose: str, what error messages call the owner of the loss.

    Returns:
        A `keras.losses.Loss`, or the callable with `sample_weight`.

    Raises:
        ValueError: for anything else, and for a loss with the reduction `"sum"`.
    """
    try:
        loss = keras.losses.get(identifier)
    except (TypeError, ValueError):
        loss = None
    if loss is None:
        raise ValueError(
            f"The loss of {whose} must be a Keras loss, its name, or a function of "
            f"targets and predictions. Received: {identifier!r}"
        )
    if isinstance(loss, MaskedLoss):
        return loss.loss
    if not isinstance(loss, keras.losses.Loss):
        return loss if _takes_weights(loss) else FunctionLoss(loss)
    if loss.reduction == "sum":
        raise ValueError(
            f"The loss of {whose} has the reduction 'sum', but it is averaged over the "
            "valid elements; leave the reduction out."
        )
    return loss


def serialize_loss(loss: Any) -> Any:
    """Serializes a loss with all of its options; Keras forgets some, such as the
    `delta` of `Huber`."""
    serialized = keras.saving.serialize_keras_object(loss)
    if isinstance(loss, keras.losses.Loss):
        options = getattr(loss, "_fn_kwargs", {})
        serialized["config"] = {**options, **serialized["config"]}
    return serialized


def sum_loss(
    loss: Any,
    y_true: Tensor,
    y_pred: Tensor,
    mask: Tensor | None = None,
    whose: str = "the task",
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums a loss over the valid elements of a batch.

    An element is what the predictions have channels for: a sample, a step of a
    sequence, a pixel. It is valid if the mask is above 0 there, if the mask that
    layers of the network carry along is set, and if the loss itself does not ignore
    it (`ignore_class`). What lies under a mask, NaN included, reaches neither the
    sum nor its gradient.

    Args:
        loss: what `get_loss` returned.
        y_true: targets, `(batch, ...)` or `(batch, ..., channels)`.
        y_pred: predictions, `(batch, ..., channels)` or `(batch,)`.
        mask: optional, of any dtype: a weight per element, `(batch, ...)` or
            `(batch, ..., 1)`, or per sample, `(batch,)` or `(batch, 1)`. Where it is
            0, negative or NaN, nothing counts.
        whose: str, what error messages call the owner of loss and mask.

    Returns:
        Three scalars, float32 or float64: the sum of weight times loss; the sum of
        the weights, by which to divide it; and the number of valid elements. A
        callable that takes `sample_weight` and returns a mean is given weights whose
        mean is 1, and may divide by their sum or by their number.

    Raises:
        ValueError: for a mask of another shape, for a callable that does not return a
            scalar, for a loss that cannot be masked, and for targets that a loss of
            Keras would broadcast to the shape of the predictions.
    """
    if not _is_elementwise(loss):
        return _sum_weighted_mean(loss, y_true, y_pred, mask, whose)
    y_true, y_pred, weights = align(y_true, y_pred, mask, whose, loss.dtype)
    _check_shapes(loss, y_true, y_pred, weights, whose)
    try:
        values = loss.call(y_true, y_pred)
    except Exception as error:
        raise ValueError(f"The loss of {whose} fails: {first_line(error)}") from error
    kept = get_keras_mask(values)  # by `ignore_class`
    values = as_float(values)
    weights = _fit_weights(weights, values, whose)
    if kept is not None:
        kept = ops.cast(kept, values.dtype)
        weights = kept if weights is None else weights * kept
    if weights is None:
        is_mean = not len(values.shape)
        if is_mean:
            _check_replicas(whose)
        count = ops.shape(y_pred)[0] if is_mean else ops.size(values)
        count = ops.cast(count, values.dtype)
        return (values * count if is_mean else ops.sum(values)), count, count
    weights = ops.broadcast_to(ops.cast(weights, values.dtype), ops.shape(values))
    weighted = ops.where(weights > 0, values * weights, ops.zeros_like(values))
    return ops.sum(weighted), ops.sum(weights), _count(weights)


def align(
    y_true: Tensor,
    y_pred: Tensor,
    mask: Tensor | None = None,
    whose: str = "the task",
    dtype: str | None = None,
    ignore_class: int | None = None,
    keep_finite: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gives targets, predictions and mask of a task matching shapes.

    Args:
        y_true, y_pred, mask, whose: as for `sum_loss`.
        dtype: optional str, the dtype to convert targets and predictions to. Defaults
            to their own, or float32 for half precision.
        ignore_class: optional int. Targets of this class do not count.
        keep_finite: bool. Whether finite values under the mask stay as they are and
            NaN and infinity become 1, in place of 0 for all. This is for metrics,
            which multiply by the weights but may divide by the values.

    Returns:
        The targets; the predictions, `(batch, ..., channels)`; both 0 where the mask
        is 0; and the float weights, `(batch, ...)` or `(batch, 1, ...)`, or `None` if
        every element counts.

    Raises:
        ValueError: for a mask of another shape.
    """
    carried = get_keras_mask(y_pred)

    def convert(values):
        if dtype is not None:
            return ops.convert_to_tensor(values, dtype)
        values = ops.convert_to_tensor(values)
        is_float = "float" in keras.backend.standardize_dtype(values.dtype)
        return as_float(values) if is_float else values

    y_pred, y_true = convert(y_pred), tree.map_structure(convert, y_true)
    if len(y_pred.shape) == 1:
        y_pred = ops.expand_dims(y_pred, -1)
    if not tree.is_nested(y_true) and y_pred.shape[-1] == 1:
        # Otherwise Keras drops the predictions' last axis, or pairs all with all.
        if len(y_true.shape) == len(y_pred.shape) - 1:
            y_true = ops.expand_dims(y_true, -1)
    kept = None
    if ignore_class is not None:
        kept = ops.not_equal(y_true, ops.cast(ignore_class, y_true.dtype))
    weights = None
    for given in (mask, carried, kept):
        if given is not None:
            given = _as_weights(given, tuple(y_pred.shape[:-1]), whose)
            weights = given if weights is None else weights * given
    if weights is not None:
        y_true, y_pred = tree.map_structure(
            lambda y: _select(weights, y, keep_finite), (y_true, y_pred)
        )
    return y_true, y_pred, weights


def _as_weights(mask, elements, whose):
    """A mask as weights of the rank of the elements, 0 where it is not above 0."""
    mask = ops.convert_to_tensor(mask)
    shape, rank = tuple(mask.shape), len(elements)
    has_channel = len(shape) == rank + 1 and shape[-1] == 1
    if has_channel or shape[1:] == (1,) != elements[1:]:
        shape = shape[:-1]
    agree = all(m == e or None in (m, e) for m, e in zip(shape, elements))
    if not agree or len(shape) not in (1, rank):
        raise ValueError(
            f"The mask of {whose} must have one value per element, here "
            f"{_as_text(elements)}, or one per sample, {_as_text(elements[:1])}; a "
            f"last axis of 1 does no harm. Received: shape {_as_text(mask.shape)}"
        )
    mask = ops.cast(mask, "float32")
    mask = ops.where(mask > 0, mask, ops.zeros_like(mask))  # NaN is not above 0 either
    if len(shape) == 1:
        return ops.reshape(mask, (-1, *[1] * (rank - 1)))
    return ops.squeeze(mask, -1) if has_channel else mask


def _select(weights, values, keep_finite):
    """`values` where `weights` are above 0, else 0 (or as `align` says)."""
    for _ in range(len(values.shape) - len(weights.shape)):
        weights = ops.expand_dims(weights, -1)
    is_float = "float" in keras.backend.standardize_dtype(values.dtype)
    if keep_finite and is_float:
        is_kept = ops.logical_or(weights > 0, ops.isfinite(values))
        return ops.where(is_kept, values, ops.ones_like(values))
    return ops.where(weights > 0, values, ops.zeros_like(values))


def _fit_weights(weights, values, whose):
    """The weights with the rank of what a loss returned."""
    if weights is None:
        return None
    rank, missing = len(values.shape), len(values.shape) - len(weights.shape)
    if missing >= 0:
        for _ in range(missing):
            weights = ops.expand_dims(weights, -1)
        return weights
    if rank == 0 or any(size != 1 for size in weights.shape[1:]):
        what = "sample" if rank else "batch"
        raise ValueError(
            f"The loss of {whose} returns one value per {what}, to which a mask of the "
            f"shape {_as_text(weights.shape)} cannot be applied; let it return a value "
            "per element, or take `sample_weight`."
        )
    return ops.reshape(weights, (-1, *[1] * (rank - 1)))


def _sum_weighted_mean(loss, y_true, y_pred, mask, whose):
    """`sum_loss` of a callable that takes weights and returns a mean."""
    _check_replicas(whose)
    carried = get_keras_mask(y_pred)
    y_true = tree.map_structure(ops.convert_to_tensor, y_true)
    count, scaled = ops.cast(ops.shape(y_pred)[0], "float32"), None
    elements = count
    if mask is not None or carried is not None:
        target, prediction, weights = align(y_true, y_pred, mask, whose)
        all_weights = ops.broadcast_to(weights, ops.shape(prediction)[:-1])
        count, elements = ops.sum(all_weights), _count(all_weights)
        size = ops.cast(ops.size(weights), weights.dtype)
        # Without a valid element all errors and gradients are 0. The weights are 1
        # then, or the loss would divide by 0.
        scaled = weights * size / ops.maximum(ops.sum(weights), 1e-30)
        scaled = ops.where(count > 0, scaled, ops.ones_like(scaled))
        # Back to the shapes that they came in.
        if carried is None:
            scaled = ops.reshape(scaled, ops.shape(mask))
        y_pred = ops.reshape(prediction, ops.shape(y_pred))
        if not tree.is_nested(y_true):
            target = ops.reshape(target, ops.shape(y_true))
        y_true = target
    value = as_float(ops.convert_to_tensor(loss(y_true, y_pred, scaled)))
    if len(value.shape):
        raise ValueError(
            f"The loss of {whose} must be a scalar. Received: shape "
            f"{_as_text(value.shape)}"
        )
    count = ops.cast(count, value.dtype)
    total = ops.where(count > 0, value * count, ops.zeros_like(value))
    return total, count, elements


def _check_replicas(whose):
    if num_replicas() > 1:
        raise ValueError(
            f"The loss of {whose} returns one number for the batch, and may or may not "
            "have divided it by the number of replicas, as Keras's own losses do; let "
            "it return a value per element."
        )


def _check_shapes(loss, y_true, y_pred, weights, whose):
    """Refuses what a loss of Keras would get wrong: a mask where it compares samples
    with one another, channels that are not on the last axis, and targets that it would
    broadcast to the shape of the predictions."""
    owner = getattr(loss, "fn", type(loss))
    name = getattr(owner, "__name__", "").lower()
    if name == "circle" and weights is not None:
        raise ValueError(
            f"The loss of {whose} compares the samples of a batch with one another, so "
            "none can be masked."
        )
    axis = getattr(loss, "_fn_kwargs", {}).get("axis", -1)
    if isinstance(axis, int) and axis not in (-1, len(y_pred.shape) - 1):
        raise ValueError(
            f"The loss of {whose} has its channels on axis {axis}; they must be on the "
            "last one."
        )
    takes_classes = name.startswith(("sparse", "ctc", "circle", "categorical_general"))
    module = str(getattr(owner, "__module__", ""))
    is_known = module.startswith(("keras.", "mtl_keras."))
    if takes_classes or not is_known or tree.is_nested(y_true):
        return
    found, expected = tuple(y_true.shape), tuple(y_pred.shape)
    agree = all(m == n or None in (m, n) for m, n in zip(found, expected))
    if not agree or len(found) != len(expected):
        raise ValueError(
            f"The targets of {whose} must have the shape of its predictions, "
            f"{_as_text(expected)}. Received: {_as_text(found)}"
        )


def _count(weights):
    return ops.sum(ops.cast(weights > 0, weights.dtype))


def as_float(values: Tensor) -> Tensor:
    """Values in float32, or in float64 if they are that already, as sums and counts
    need them."""
    values = ops.convert_to_tensor(values)
    dtype = keras.backend.standardize_dtype(values.dtype)
    return ops.cast(values, dtype if dtype == "float64" else "float32")


def _is_elementwise(loss):
    """Whether `loss.call` returns a value per element."""
    return (
        isinstance(loss, keras.losses.Loss)
        and type(loss).__call__ is keras.losses.Loss.__call__
    )


def _takes_weights(function):
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    required = [p for p in parameters if p.default is p.empty and p.kind in positional]
    return len(required) > 2 or any(p.name == "sample_weight" for p in parameters)


def first_line(error: Exception) -> str:
    """The first line of an exception's message; Keras and TensorFlow add many more."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _as_text(shape):
    sizes = ["batch" if size is None else str(size) for size in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"
