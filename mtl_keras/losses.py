"""Weighting of task losses, learned or fixed, and losses under a mask."""

from typing import NamedTuple

import keras
from keras import ops


class Likelihood(NamedTuple):
    """The noise model of a task: its loss `L` enters the total as
    `a * exp(-s) * L + c * s`, and `exp(s / sigma_power)` is called sigma."""

    a: float
    c: float
    sigma_power: int


LIKELIHOODS = {
    "softmax": Likelihood(a=1.0, c=0.5, sigma_power=2),  # paper, eq. 10
    "gaussian": Likelihood(a=0.5, c=0.5, sigma_power=2),  # paper, eq. 5 and 7
    "laplace": Likelihood(a=1.0, c=1.0, sigma_power=1),  # -log p of Laplace(0, b)
    "mtl": Likelihood(a=0.5, c=1.0, sigma_power=2),  # the original's code
}


@keras.saving.register_keras_serializable(package="mtl_keras")
class UncertaintyWeighting(keras.layers.Layer):
    """Adds up task losses, each scaled by a learned noise level.

    With one stored scalar `s` per task, returns the sum over tasks of
    `a * exp(-s) * loss + c * s`; `a` and `c` follow from the likelihood:

    | likelihood | a | c | s is | for |
    |---|---|---|---|---|
    | `softmax` | 1 | 1/2 | log sigma^2 | cross entropy (eq. 10) |
    | `gaussian` | 1/2 | 1/2 | log sigma^2 | squared error (eq. 7) |
    | `laplace` | 1 | 1 | log b | absolute error |
    | `mtl` | 1/2 | 1 | log sigma^2 | the formula of the first public code |

    A constant loss `L` drives `s` to `log(a * L / c)`, where the task's weight
    `a * exp(-s)` is `c / L`. The total may be negative: `c * s` has no floor, and
    a task whose loss is small has a negative `s`. Watch the task losses.

    Sees scalars only; masks are applied before. The losses should be means, so
    that neither the batch size nor the number of outputs changes the balance.
    Weights and arithmetic are float32 under every dtype policy.

    Args:
        likelihoods: dict. Task name to `"softmax"`, `"gaussian"`,
            `"laplace"` or `"mtl"`.
        initial_log_variance: float, or dict of floats by task. Start value
            of every `s`. Defaults to `0.0`.
        **kwargs: passed on to `keras.layers.Layer`.

    Call arguments:
        losses: dict of scalar tensors. The keys are tasks of `likelihoods`; a
            task that is left out contributes nothing.
        present: optional dict of scalars, 1 or 0 by task. A task with 0 (no
            valid target in this batch) contributes neither its loss nor its
            regularizer, so that its `s` stays where it is.

    Returns:
        The total, a float32 scalar.

    Raises:
        ValueError: for an unknown likelihood or task.

    Example:
    >>> layer = UncertaintyWeighting({"semantic": "softmax", "depth": "gaussian"})
    >>> float(layer({"semantic": ops.array(2.0), "depth": ops.array(4.0)}))
    4.0

    References:
     - [Kendall et al., 2018](https://arxiv.org/abs/1705.07115), section 3.2
    """

    def __init__(self, likelihoods, initial_log_variance=0.0, **kwargs):
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        if not likelihoods:
            raise ValueError("`likelihoods` names no task.")
        for task, name in likelihoods.items():
            if name not in LIKELIHOODS:
                raise ValueError(
                    f"Unknown likelihood {name!r} for task {task!r}. "
                    f"Expected one of {', '.join(LIKELIHOODS)}."
                )
        self.likelihoods = dict(likelihoods)
        self.initial_log_variance = initial_log_variance
        if isinstance(initial_log_variance, dict):
            starts = initial_log_variance
            _check_tasks("initial_log_variance", starts, self.likelihoods)
        else:
            starts = dict.fromkeys(self.likelihoods, initial_log_variance)
        self.log_variances = {
            task: self.add_weight(
                name=f"{task}_log_variance",
                shape=(),
                initializer=keras.initializers.Constant(starts.get(task, 0.0)),
                autocast=False,
            )
            for task in self.likelihoods
        }
        self.built = True

    def call(self, losses, present=None):
        _check_tasks("losses", losses, self.likelihoods)
        total = 0.0
        for task, loss in losses.items():
            a, c, _ = LIKELIHOODS[self.likelihoods[task]]
            s = ops.convert_to_tensor(self.log_variances[task])
            term = a * ops.exp(-s) * ops.cast(loss, "float32") + c * s
            total += term if present is None else term * present[task]
        return total

    def compute_output_shape(self, losses, present=None):
        return ()

    def compute_output_spec(self, losses, present=None):
        return keras.KerasTensor((), "float32")

    def sigmas(self):
        """The noise levels now, `{task: float}`; for `laplace`, the scale b."""
        logs = self.logs()
        return {task: float(logs[f"{task}/sigma"]) for task in self.likelihoods}

    def task_weights(self):
        """What each loss is multiplied by now, `{task: float}`."""
        logs = self.logs()
        return {task: float(logs[f"{task}/weight"]) for task in self.likelihoods}

    def logs(self):
        """`{task}/sigma` and `{task}/weight` as tensors, for the training step."""
        logs = {}
        for task, s in self.log_variances.items():
            a, _, sigma_power = LIKELIHOODS[self.likelihoods[task]]
            s = ops.convert_to_tensor(s)
            logs[f"{task}/sigma"] = ops.exp(s / sigma_power)
            logs[f"{task}/weight"] = a * ops.exp(-s)
        return logs

    def get_config(self):
        return {
            **super().get_config(),
            "likelihoods": dict(self.likelihoods),
            "initial_log_variance": self.initial_log_variance,
        }


@keras.saving.register_keras_serializable(package="mtl_keras")
class FixedWeighting(keras.layers.Layer):
    """Adds up task losses with fixed weights, the baseline of every table.

    Args:
        weights: dict. Task name to a finite weight of 0 or more; 0 switches
            the task off.
        **kwargs: passed on to `keras.layers.Layer`.

    Call arguments:
        losses: dict of scalar tensors, the keys are tasks of `weights`.
        present: ignored; the loss of an absent task is 0 anyway.

    Returns:
        The weighted sum, a float32 scalar.

    Raises:
        ValueError: for a negative weight or an unknown task.

    Example:
    >>> layer = FixedWeighting({"semantic": 0.5, "depth": 0.25})
    >>> float(layer({"semantic": ops.array(2.0), "depth": ops.array(4.0)}))
    2.0
    """

    def __init__(self, weights, **kwargs):
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        if not weights:
            raise ValueError("`weights` names no task.")
        for task, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(
                    f"The weight of task {task!r} must be finite and not "
                    f"negative. Received: {weight}"
                )
        self.weights_by_task = {task: float(w) for task, w in weights.items()}
        self.built = True

    def call(self, losses, present=None):
        _check_tasks("losses", losses, self.weights_by_task)
        # A task of weight 0 is left out, not multiplied: 0 * nan is nan.
        terms = [
            self.weights_by_task[task] * ops.cast(loss, "float32")
            for task, loss in losses.items()
            if self.weights_by_task[task]
        ]
        return sum(terms, start=ops.zeros(()))

    def compute_output_shape(self, losses, present=None):
        return ()

    def compute_output_spec(self, losses, present=None):
        return keras.KerasTensor((), "float32")

    def sigmas(self):
        """No noise level is learned: `{}`."""
        return {}

    def task_weights(self):
        """What each loss is multiplied by, `{task: float}`."""
        return dict(self.weights_by_task)

    def get_config(self):
        return {**super().get_config(), "weights": dict(self.weights_by_task)}


@keras.saving.register_keras_serializable(package="mtl_keras")
class MaskedLoss(keras.losses.Loss):
    """The mean of a Keras loss over the elements whose mask is set.

    Targets and predictions are replaced by 0 where the mask is 0 before the
    loss sees them, so that nothing there (NaN included) reaches value or
    gradient. The sum is divided by the sum of the mask; an empty mask gives 0.

    Args:
        loss: a `keras.losses.Loss`, such as `keras.losses.MeanAbsoluteError()`.
            Its own reduction is replaced.
        **kwargs: passed on to `keras.losses.Loss`.

    Call arguments:
        y_true: targets, `(batch, ...)` or `(batch, ..., channels)`.
        y_pred: predictions, `(batch, ..., channels)`.
        sample_weight: mask, `(batch, ...)`, 0 or a positive weight an element.
            `None` counts every element.

    Example:
    >>> loss = MaskedLoss(keras.losses.MeanAbsoluteError())
    >>> target = ops.zeros((1, 2, 1))
    >>> prediction = ops.array([[[3.0], [float("nan")]]])
    >>> float(loss(target, prediction, ops.array([[1.0, 0.0]])))
    3.0
    """

    def __init__(self, loss, name=None, **kwargs):
        kwargs.pop("reduction", None)
        super().__init__(
            name=name or loss.name, reduction="mean_with_sample_weight", **kwargs
        )
        self.loss = loss
        self.loss.reduction = None

    def __call__(self, y_true, y_pred, sample_weight=None):
        if sample_weight is not None:
            sample_weight = ops.convert_to_tensor(sample_weight)
            y_true = _select(sample_weight, y_true)
            y_pred = _select(sample_weight, y_pred)
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true, y_pred):
        return self.loss.call(y_true, y_pred)

    def get_config(self):
        config = super().get_config()
        return {**config, "loss": keras.saving.serialize_keras_object(self.loss)}

    @classmethod
    def from_config(cls, config):
        loss = keras.saving.deserialize_keras_object(config.pop("loss"))
        return cls(loss, **config)


@keras.saving.register_keras_serializable(package="mtl_keras")
class L1Norm(keras.losses.Loss):
    """The sum of the absolute errors of a vector, `|dy| + |dx|` for an offset.

    Keras's `MeanAbsoluteError` is the mean over the components; of an offset, half
    of this.

    Args:
        name: str. Defaults to `"l1_norm"`.
        **kwargs: passed on to `keras.losses.Loss`.

    Call arguments:
        y_true: targets, `(batch, ..., components)`.
        y_pred: predictions of the same shape.

    Example:
    >>> float(L1Norm()(ops.zeros((1, 2)), ops.array([[1.0, -3.0]])))
    4.0

    References:
     - [Kendall et al., 2018](https://arxiv.org/abs/1705.07115), section 4.2
    """

    def __init__(self, name="l1_norm", **kwargs):
        super().__init__(name=name, **kwargs)

    def call(self, y_true, y_pred):
        return ops.sum(ops.abs(y_true - y_pred), axis=-1)


def _select(mask, values):
    """`values` where `mask` is set, else 0."""
    values = ops.convert_to_tensor(values)
    for _ in range(len(values.shape) - len(mask.shape)):
        mask = ops.expand_dims(mask, -1)
    return ops.where(mask > 0, values, ops.zeros_like(values))


def _check_tasks(argument, given, known):
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"`{argument}` has no place for {', '.join(map(repr, unknown))}. "
            f"The tasks are {', '.join(map(repr, known))}."
        )
