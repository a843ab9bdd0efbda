"""Weighting of task losses, learned or fixed."""

import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

import keras
from keras import ops

from mtl_keras.hints import Tensor
from mtl_keras.likelihoods import LIKELIHOODS
from mtl_keras.losses import as_float

# An equilibrium is found from at least this many elements. The mean of one or two may
# be tiny by chance; the next losses would then have enormous gradients.
FIRST_ELEMENTS = 8


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

    A constant loss `L` drives `s` to its equilibrium `log(a * L / c)`, where the
    task's weight `a * exp(-s)` is `c / L`. The total may be negative: `c * s` has no
    floor, and a task whose loss is small has a negative `s`. Watch the task losses.

    The layer sees only scalars; masks are applied before. The losses should be means,
    or the batch size and the number of outputs would change the balance. Every `s` is
    float32 under every dtype policy.

    Args:
        likelihoods: dict. Task name to `"softmax"`, `"gaussian"`,
            `"laplace"` or `"mtl"`.
        initial_log_variance: optional float, or dict of floats by task. Start
            value of every `s`. A task without one has 0 and waits for `start`, which
            `MultiTaskTrainer` calls: it then begins at the equilibrium of its first
            loss, whatever the units of its targets. If that is the mean of fewer than
            8 elements, the next losses count as well, until there are 8.
        bounds: pair of float. `s` stays between them; with the default, weights
            between 1e-13 and 1e13. They are a constraint of the variables, which
            every optimizer of Keras respects. Defaults to `(-30.0, 30.0)`.
        priorities: optional dict. Task name to a number above 0 that its whole term,
            loss and regularizer, is multiplied by. Its equilibrium stays where it is,
            and its weight there becomes `priority * c / L`. Defaults to 1 for every
            task.
        nonnegative: bool. Whether the regularizer is `c * log(1 + exp(s))` in place of
            `c * s`, that is `log(1 + sigma^2)` with the likelihood `mtl`. The total is
            then never negative; the weight of a small loss tends to infinity with
            its inverse root only. Defaults to `False`.
        **kwargs: passed on to `keras.layers.Layer`.

    Call arguments:
        losses: dict of scalar tensors. The keys are tasks of `likelihoods`; a
            task that is left out contributes nothing.
        present: optional dict of scalars by task, 0 for a task without a valid target
            in this batch. It then contributes neither its loss nor its regularizer.
        held: optional dict of bool scalars by task, whether its `s` gets no gradient.

    Returns:
        The total, a scalar: float32, or float64 if a loss is.

    Raises:
        ValueError: for no task, an unknown likelihood or task, `bounds` that are not
            increasing numbers in -80..80, a start outside the bounds, or a priority
            that is not a number above 0.

    Example:
    >>> layer = UncertaintyWeighting({"semantic": "softmax", "depth": "gaussian"})
    >>> float(layer({"semantic": ops.array(2.0), "depth": ops.array(4.0)}))
    4.0

    References:
     - [Kendall et al., 2018](https://arxiv.org/abs/1705.07115), section 3.2
     - [Liebel and Koerner, 2018](https://arxiv.org/abs/1805.06334), `nonnegative`
    """

    def __init__(
        self,
        likelihoods: Mapping[str, str],
        initial_log_variance: float | Mapping[str, float] | None = None,
        bounds: tuple[float, float] = (-30.0, 30.0),
        priorities: Mapping[str, float] | None = None,
        nonnegative: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        if not likelihoods:
            raise ValueError("`likelihoods` must name at least one task.")
        for task, name in likelihoods.items():
            if name not in LIKELIHOODS:
                raise ValueError(
                    f"Unknown likelihood {name!r} for task {task!r}. "
                    f"Expected one of {', '.join(LIKELIHOODS)}."
                )
        low, high = bounds
        if not -80 <= low < high <= 80:  # float32 overflows at exp(89)
            raise ValueError(
                "`bounds` must be a pair of increasing numbers between -80 and 80. "
                f"Received: {bounds}"
            )
        self.likelihoods = dict(likelihoods)
        self.initial_log_variance = initial_log_variance
        self.bounds = (float(low), float(high))
        self.priorities = {t: float(p) for t, p in (priorities or {}).items()}
        check_tasks("priorities", self.priorities, self.likelihoods)
        for task, priority in self.priorities.items():
            if not 0 < priority < float("inf"):
                raise ValueError(
                    f"The priority of task {task!r} must be a number above 0. "
                    f"Received: {priority}"
                )
        self.nonnegative = nonnegative
        starts = self._spread(initial_log_variance)
        self.log_variances: dict[str, keras.Variable] = {}
        self.first_totals: dict[str, keras.Variable] = {}
        self.first_counts: dict[str, keras.Variable] = {}
        self.seen: dict[str, keras.Variable] = {}
        # Optimizers store their state by position, so this does not depend on the
        # order in which the tasks are named.
        for task in sorted(self.likelihoods, key=str):
            self._add_weights_of(task, starts.get(task))
        self.built = True

    def _add_weights_of(self, task, start):
        self.log_variances[task] = self._add_scalar(
            f"{task}_log_variance",
            0.0 if start is None else start,
            constraint=_Bounds(*self.bounds),
        )
        # The losses that `s` starts from: their sum over the elements.
        self.first_totals[task] = self._add_scalar(
            f"{task}_first_total", 0.0, trainable=False
        )
        self.first_counts[task] = self._add_scalar(
            f"{task}_first_count",
            0.0 if start is None else FIRST_ELEMENTS,
            trainable=False,
        )
        # Whether the task has been present since the last update of `s`.
        self.seen[task] = self._add_scalar(f"{task}_seen", 0.0, trainable=False)

    def _spread(self, start):
        """The start value of every task that has one, `{task: float or None}`."""
        starts = start
        if not isinstance(start, Mapping):
            starts = dict.fromkeys(self.likelihoods, start)
        check_tasks("initial_log_variance", starts, self.likelihoods)
        low, high = self.bounds
        for task, value in starts.items():
            if value is not None and not low <= value <= high:
                raise ValueError(
                    f"`initial_log_variance` of task {task!r} must lie within the "
                    f"`bounds`, {low} to {high}. Received: {value}"
                )
        return starts

    def _add_scalar(self, name, value, **options):
        return self.add_weight(
            name=name.replace("/", "_").replace(".", "_"),
            shape=(),
            initializer=keras.initializers.Constant(value),
            autocast=False,
            aggregation="only_first_replica",  # every replica has the same value
            **options,
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, a tuple."""
        return tuple(self.likelihoods)

    def call(
        self,
        losses: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        held: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        check_tasks("losses", losses, self.likelihoods)
        total = 0.0
        for task, loss in losses.items():
            loss = as_float(loss)
            a, c, _ = LIKELIHOODS[self.likelihoods[task]]
            s = ops.convert_to_tensor(self.log_variances[task])
            if held is not None:
                s = ops.where(held[task], ops.stop_gradient(s), s)
            s = ops.cast(s, loss.dtype)
            regularizer = ops.softplus(s) if self.nonnegative else s
            term = a * ops.exp(-s) * loss + c * regularizer
            if task in self.priorities:
                term *= self.priorities[task]
            if present is not None:
                term *= ops.cast(ops.cast(present[task], "float32") > 0, loss.dtype)
            total += term
        return total

    def start(self, losses: Mapping[str, Any]) -> None:
        """Starts every task that has not begun yet, at the equilibrium of its loss.

        Training loops of your own call it once, before the first step, with the losses
        of a sample. `MultiTaskTrainer` starts tasks itself.

        Args:
            losses: dict of scalars by task. Their values have to be known, which they
                are not inside a compiled function.

        Raises:
            ValueError: for an unknown task, a negative loss, or one without a value.
        """
        check_tasks("losses", losses, self.likelihoods)
        for task, loss in losses.items():
            check_loss(task, loss)
            try:
                loss = float(ops.stop_gradient(ops.convert_to_tensor(loss)))
            except TypeError as error:
                raise ValueError(
                    "`start` needs the values of the losses; call it before the first "
                    "step, outside compiled functions."
                ) from error
            self.observe(task, ops.convert_to_tensor(loss), FIRST_ELEMENTS)

    def observe(self, task: str, loss: Tensor, count: Tensor) -> Tensor:
        """Notes that a task is present, and moves its `s` while the task is starting.

        `MultiTaskTrainer` calls it in every step. A compiled step of JAX loses what is
        assigned to `s`; a later call of `move_to_start` makes up for that.

        Args:
            task: str.
            loss: scalar.
            count: scalar, the number of elements that the loss is the mean of.

        Returns:
            Scalar bool: whether the task is starting. Its `s` must get no gradient
            then, or the optimizer's momentum would carry it away from its start.
        """
        if not self.trainable:
            return ops.convert_to_tensor(False)
        loss = ops.cast(ops.stop_gradient(loss), "float32")
        count = ops.cast(count, "float32")
        seen = self.seen[task]
        seen.assign(ops.maximum(seen, ops.cast(count > 0, "float32")))
        counts = self.first_counts[task]
        has_begun = ops.convert_to_tensor(counts) >= FIRST_ELEMENTS
        is_usable = (loss > 0) & ops.isfinite(loss)
        added = ops.where(is_usable & ~has_begun, count, ops.zeros_like(count))
        total = added * ops.where(is_usable, loss, ops.zeros_like(loss))
        self.first_totals[task].assign_add(total)
        counts.assign_add(added)
        self.move_to_start(task, added > 0)
        return added > 0

    def move_to_start(self, task: str, condition: Tensor) -> None:
        """Sets `s` to the equilibrium of the first losses of a task.

        Args:
            task: str.
            condition: scalar bool tensor, whether to do so.
        """
        a, c, _ = LIKELIHOODS[self.likelihoods[task]]
        s, total = self.log_variances[task], self.first_totals[task]
        mean = total / ops.maximum(self.first_counts[task], 1e-30)
        mean = ops.where(condition, mean, ops.ones_like(mean))
        variance = a / c * mean
        if self.nonnegative:  # where a * L / x = c * x / (1 + x)
            variance = (variance + ops.sqrt(variance) * ops.sqrt(variance + 4.0)) / 2.0
        equilibrium = ops.clip(ops.log(variance), *self.bounds)
        s.assign(ops.where(condition, equilibrium, ops.convert_to_tensor(s)))

    def compute_output_shape(
        self,
        losses: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        held: Mapping[str, Tensor] | None = None,
    ) -> tuple[()]:
        return ()

    def compute_output_spec(
        self,
        losses: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        held: Mapping[str, Tensor] | None = None,
    ) -> keras.KerasTensor:
        return keras.KerasTensor((), "float32")

    def sigmas(self) -> dict[str, float]:
        """The current noise levels, `{task: float}`; for `laplace`, the scale b."""
        logs = self.logs()
        return {task: float(logs[f"{task}/sigma"]) for task in self.likelihoods}

    def task_weights(self) -> dict[str, float]:
        """What each loss is currently multiplied by, `{task: float}`."""
        logs = self.logs()
        return {task: float(logs[f"{task}/weight"]) for task in self.likelihoods}

    def logs(self) -> dict[str, Tensor]:
        """`{task}/sigma` and `{task}/weight` as tensors, for the training step."""
        logs = {}
        for task, likelihood in self.likelihoods.items():
            a, _, sigma_power = LIKELIHOODS[likelihood]
            s = ops.stop_gradient(ops.convert_to_tensor(self.log_variances[task]))
            logs[f"{task}/sigma"] = ops.exp(s / sigma_power)
            logs[f"{task}/weight"] = self.priorities.get(task, 1.0) * a * ops.exp(-s)
        return logs

    def save_own_variables(self, store: Any) -> None:
        # By name: a layer that names its tasks in another order finds its own.
        for key, variable in self._named_scalars().items():
            store[key] = keras.ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        for key, variable in self._named_scalars().items():
            if key not in store.keys():
                found = ", ".join(map(urllib.parse.unquote, sorted(store.keys())))
                raise ValueError(
                    f"The file has no {urllib.parse.unquote(key)!r} for {self.name}. "
                    f"It has {found}."
                )
            variable.assign(store[key])

    def _named_scalars(self):
        kinds = {
            "log_variance": self.log_variances,
            "first_total": self.first_totals,
            "first_count": self.first_counts,
            "seen": self.seen,
        }
        return {
            f"{urllib.parse.quote(str(task), safe=' ')}_{kind}": variable
            for kind, variables in kinds.items()
            for task, variable in variables.items()
        }

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "likelihoods": dict(self.likelihoods),
            "initial_log_variance": self.initial_log_variance,
            "bounds": self.bounds,
            "priorities": dict(self.priorities),
            "nonnegative": self.nonnegative,
        }


@keras.saving.register_keras_serializable(package="mtl_keras")
class FixedWeighting(keras.layers.Layer):
    """Adds up task losses with fixed weights, the baseline of every table.

    Args:
        weights: dict. Task name to a finite weight of 0 or more; 0 switches
            the task off.
        **kwargs: passed on to `keras.layers.Layer`.

    Call arguments:
        losses: dict of scalar tensors. The keys are tasks of `weights`.
        present: ignored; the loss of an absent task is 0 anyway.

    Returns:
        The weighted sum, a scalar: float32, or float64 if a loss is.

    Raises:
        ValueError: for no task, an unknown task, or a weight that is negative or not
            finite.

    Example:
    >>> layer = FixedWeighting({"semantic": 0.5, "depth": 0.25})
    >>> float(layer({"semantic": ops.array(2.0), "depth": ops.array(4.0)}))
    2.0
    """

    def __init__(self, weights: Mapping[str, float], **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        if not weights:
            raise ValueError("`weights` must name at least one task.")
        for task, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(
                    f"The weight of task {task!r} must be finite and not "
                    f"negative. Received: {weight}"
                )
        self.weights_by_task = {task: float(w) for task, w in weights.items()}
        self.built = True

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, a tuple."""
        return tuple(self.weights_by_task)

    def call(
        self, losses: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        check_tasks("losses", losses, self.weights_by_task)
        # A task of weight 0 is left out, not multiplied: 0 * nan is nan.
        terms = [
            self.weights_by_task[task] * as_float(loss)
            for task, loss in losses.items()
            if self.weights_by_task[task]
        ]
        return sum(terms, start=ops.zeros(()))

    def compute_output_shape(
        self, losses: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> tuple[()]:
        return ()

    def compute_output_spec(
        self, losses: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> keras.KerasTensor:
        return keras.KerasTensor((), "float32")

    def sigmas(self) -> dict[str, float]:
        """No noise level is learned: `{}`."""
        return {}

    def task_weights(self) -> dict[str, float]:
        """What each loss is multiplied by, `{task: float}`."""
        return dict(self.weights_by_task)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weights": dict(self.weights_by_task)}


class _Bounds(keras.constraints.Constraint):
    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, s):
        return ops.clip(s, self.low, self.high)


def check_loss(
    task: str, loss: Any, explanation: str = "no noise level explains"
) -> None:
    """Raises `ValueError` for a negative loss, if its value is known already.

    Args:
        task: str.
        loss: scalar.
        explanation: what the message says about it.
    """
    try:
        value = float(ops.stop_gradient(ops.convert_to_tensor(loss)))
    except (TypeError, ValueError):  # symbolic, while a function is compiled
        return
    if value < 0:
        raise ValueError(
            f"The loss of task {task!r} is negative, which {explanation}: "
            "weigh it with `FixedWeighting`, or add a constant to it."
        )


def check_tasks(argument: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises `ValueError` if the names given for an argument are not all known."""
    unknown = sorted(set(given) - set(known), key=str)
    if unknown:
        raise ValueError(
            f"`{argument}` names {', '.join(map(repr, unknown))}, but the tasks are "
            f"{', '.join(map(repr, known))}."
        )
