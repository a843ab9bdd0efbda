"""Other weightings of task losses, to compare the learned one with.

Each is called as `UncertaintyWeighting` is. `update`, which `MultiTaskTrainer` calls in
every training step, moves what a weighting remembers; calling the layer does not.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
from keras import ops

from mtl_keras.hints import Tensor
from mtl_keras.losses import as_float
from mtl_keras.weighting import check_tasks

SMALLEST_LOSS = 1e-7  # what a smaller loss counts as, where it is divided by


class _Weighting(keras.layers.Layer):
    """What the weightings below share: the weights of the last step, to be logged."""

    needs_positive_losses = True

    def __init__(self, tasks: Iterable[str], **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.tasks = tuple(tasks)
        if not self.tasks or isinstance(tasks, str):
            raise ValueError(
                f"`tasks` must be a list of at least one name. Received: {tasks!r}"
            )
        self.last_weights = self._add_scalars("weight", self._first_weight())
        self.built = True

    def _first_weight(self):
        return 1.0 / len(self.tasks)

    def _add_scalars(self, kind, value):
        """A scalar per task, in an order that does not depend on that of the tasks."""
        return {
            task: self._add_scalar(f"{task}_{kind}", value)
            for task in sorted(set(self.tasks), key=str)
        }

    def _add_scalar(self, name, value):
        return self.add_weight(
            name=name.replace("/", "_").replace(".", "_"),
            shape=(),
            initializer=keras.initializers.Constant(value),
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",  # every replica has the same value
        )

    def _weigh(self, losses, present):
        """`{task: weight}`, which gets no gradient; 0 for an absent task."""
        raise NotImplementedError  # of this base class; every weighting has its own

    def update(
        self,
        losses: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Notes the losses of a training step; called before the layer itself.

        `MultiTaskTrainer` does so. Training loops of your own have to.

        Args:
            losses, present: as for the call.
        """
        losses, present = self._prepare(losses, present)
        losses = {task: ops.stop_gradient(loss) for task, loss in losses.items()}
        for task, weight in self._weigh(losses, present).items():
            self.last_weights[task].assign(ops.cast(weight, "float32"))

    def _prepare(self, losses, present):
        """Losses as float tensors, and 1.0 or 0.0 for present and absent tasks."""
        check_tasks("losses", losses, self.tasks)
        losses = {task: as_float(loss) for task, loss in losses.items()}
        if present is None:
            return losses, {task: ops.ones_like(x) for task, x in losses.items()}
        present = {task: ops.convert_to_tensor(present[task]) for task in losses}
        return losses, {
            task: ops.cast(ops.cast(present[task], "float32") > 0, loss.dtype)
            for task, loss in losses.items()
        }

    def call(
        self,
        losses: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        losses, present = self._prepare(losses, present)
        constants = {task: ops.stop_gradient(loss) for task, loss in losses.items()}
        weights = self._weigh(constants, present)
        return sum(weights[task] * loss for task, loss in losses.items())

    def compute_output_shape(
        self,
        losses: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
    ) -> tuple[()]:
        return ()

    def compute_output_spec(
        self,
        losses: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
    ) -> keras.KerasTensor:
        return keras.KerasTensor((), "float32")

    def sigmas(self) -> dict[str, float]:
        """No noise level is learned: `{}`."""
        return {}

    def task_weights(self) -> dict[str, float]:
        """What each loss was multiplied by in the last step, `{task: float}`; before
        the first, equal numbers."""
        return {
            task: float(ops.convert_to_numpy(self.last_weights[task]))
            for task in self.tasks
        }

    def logs(self) -> dict[str, Tensor]:
        """`{task}/weight` as tensors, for the training step."""
        return {
            f"{task}/weight": ops.convert_to_tensor(self.last_weights[task])
            for task in self.tasks
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "tasks": self.tasks}


@keras.saving.register_keras_serializable(package="mtl_keras")
class DynamicWeightAverage(_Weighting):
    """Weighs a task the more, the slower its loss has fallen of late.

    With the mean losses `L1` of the last epoch and `L2` of the one before, returns the
    sum of `w * loss` with `w = K * softmax(L1 / L2 / temperature)` over the `K` tasks.
    All weights are 1 in the first two epochs. An epoch in which a task has no valid
    target is no epoch for that task.

    The layer counts the steps itself, so that a training goes on exactly where its
    weights were saved.

    Args:
        tasks: list of str.
        steps_per_epoch: int, after how many calls of `update` an epoch ends.
        temperature: float above 0; the larger, the more alike the weights. Defaults to
            `2.0`.
        **kwargs: passed on to `keras.layers.Layer`.

    Call arguments:
        losses: dict of scalar tensors of 0 or more. The keys are names in `tasks`.
        present: optional dict of scalars by task, 0 for a task without a valid target
            in this batch, which contributes nothing.

    Returns:
        The weighted sum, a scalar: float32, or float64 if a loss is.

    Raises:
        ValueError: for no task, an unknown one, or a number that is not positive.

    References:
     - [Liu et al., 2019](https://arxiv.org/abs/1803.10704), equation 7
    """

    def __init__(
        self,
        tasks: Iterable[str],
        steps_per_epoch: int,
        temperature: float = 2.0,
        **kwargs: Any,
    ) -> None:
        _check_positive("steps_per_epoch", steps_per_epoch)
        _check_positive("temperature", temperature)
        super().__init__(tasks, **kwargs)
        self.steps_per_epoch = int(steps_per_epoch)
        self.temperature = float(temperature)
        self.steps = self._add_scalar("steps", 0.0)  # of this epoch
        self.totals = self._add_scalars("total", 0.0)
        self.counts = self._add_scalars("count", 0.0)
        self.last_means = self._add_scalars("last_mean", 0.0)
        self.earlier_means = self._add_scalars("earlier_mean", 0.0)

    def _first_weight(self):
        return 1.0

    def update(
        self,
        losses: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
    ) -> None:
        # The weights of this step come from the epochs before it.
        ratios = {task: self._ratio(task) for task in self.last_weights}
        shares = _softmax(ratios, self.temperature)
        for task, variable in self.last_weights.items():
            variable.assign(len(shares) * shares[task])
        losses, present = self._prepare(losses, present)
        self.steps.assign_add(1.0)
        steps = ops.convert_to_tensor(self.steps)
        is_over = steps >= self.steps_per_epoch
        for task, loss in losses.items():
            loss = ops.cast(ops.stop_gradient(loss), "float32")
            is_usable = ops.isfinite(loss) & (present[task] > 0)
            self.totals[task].assign_add(ops.where(is_usable, loss, 0.0))
            self.counts[task].assign_add(ops.cast(is_usable, "float32"))
        for task in self.totals:
            self._end_epoch(task, is_over)
        self.steps.assign(ops.where(is_over, 0.0, steps))

    def _ratio(self, task):
        last = ops.convert_to_tensor(self.last_means[task])
        earlier = ops.convert_to_tensor(self.earlier_means[task])
        return ops.where(earlier > 0, last / ops.maximum(earlier, SMALLEST_LOSS), 1.0)

    def _end_epoch(self, task, is_over):
        total = ops.convert_to_tensor(self.totals[task])
        count = ops.convert_to_tensor(self.counts[task])
        last = ops.convert_to_tensor(self.last_means[task])
        earlier = ops.convert_to_tensor(self.earlier_means[task])
        is_known = is_over & (count > 0)
        mean = total / ops.maximum(count, 1.0)
        self.earlier_means[task].assign(ops.where(is_known, last, earlier))
        self.last_means[task].assign(ops.where(is_known, mean, last))
        self.totals[task].assign(ops.where(is_over, 0.0, total))
        self.counts[task].assign(ops.where(is_over, 0.0, count))

    def _weigh(self, losses, present):
        return {
            task: present[task] * ops.cast(self.last_weights[task], loss.dtype)
            for task, loss in losses.items()
        }

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "steps_per_epoch": self.steps_per_epoch,
            "temperature": self.temperature,
        }


@keras.saving.register_keras_serializable(package="mtl_keras")
class RandomWeighting(_Weighting):
    """Draws the weights of the losses anew in every step.

    Returns the sum of `w * loss`, where `w` is the softmax of standard normal numbers,
    one per task. They add up to 1, absent tasks included. Evaluation has the weights
    of the last step.

    Args:
        tasks: list of str.
        seed: int. The state of the generator is saved with the weights of the layer.
            Defaults to `0`.
        **kwargs: passed on to `keras.layers.Layer`.

    Call arguments:
        losses: dict of scalar tensors. The keys are names in `tasks`.
        present: optional dict of scalars by task, 0 for a task without a valid target
            in this batch, which contributes nothing.

    Returns:
        The weighted sum, a scalar: float32, or float64 if a loss is.

    Raises:
        ValueError: for no task or an unknown one.

    References:
     - [Lin et al., 2022](https://arxiv.org/abs/2111.10603), random loss weighting
    """

    needs_positive_losses = False

    def __init__(self, tasks: Iterable[str], seed: int = 0, **kwargs: Any) -> None:
        super().__init__(tasks, **kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def update(
        self,
        losses: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
    ) -> None:
        check_tasks("losses", losses, self.tasks)
        draws = keras.random.normal((len(self.last_weights),), seed=self.seed_generator)
        weights = ops.softmax(draws)
        for i, variable in enumerate(self.last_weights.values()):
            variable.assign(weights[i])

    def _weigh(self, losses, present):
        return {
            task: present[task] * ops.cast(self.last_weights[task], loss.dtype)
            for task, loss in losses.items()
        }

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        # Keras saves generators with whole models, but not with weights alone.
        store["seed_state"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(
            {key: store[key] for key in store.keys() if key != "seed_state"}
        )
        self.seed_generator.state.assign(store["seed_state"])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable(package="mtl_keras")
class GeometricMean(_Weighting):
    """The geometric mean of the task losses, whatever their units.

    Returns `exp(mean(log(loss)))` over the tasks that are present, or 0 if none is. The
    weight of a task is the total divided by its loss and by the number of tasks. A loss
    below 1e-7 counts as 1e-7 and gets no gradient.

    Args:
        tasks: list of str.
        **kwargs: passed on to `keras.layers.Layer`.

    Call arguments:
        losses: dict of scalar tensors of 0 or more. The keys are names in `tasks`.
        present: optional dict of scalars by task, 0 for a task without a valid target
            in this batch, which is left out of the mean.

    Returns:
        The mean, a scalar: float32, or float64 if a loss is.

    Raises:
        ValueError: for no task or an unknown one.

    Example:
    >>> layer = GeometricMean(["semantic", "depth"])
    >>> f"{float(layer({'semantic': ops.array(2.0), 'depth': ops.array(8.0)})):.3f}"
    '4.000'

    References:
     - [Chennupati et al., 2019](https://arxiv.org/abs/1904.08492), geometric loss
       strategy
    """

    def call(
        self,
        losses: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        losses, present = self._prepare(losses, present)
        count = sum(present.values())
        logs = sum(present[task] * _log(loss) for task, loss in losses.items())
        mean = ops.exp(logs / ops.maximum(count, ops.ones_like(count)))
        return ops.where(count > 0, mean, ops.zeros_like(mean))

    def _weigh(self, losses, present):
        total = self.call(losses, present)
        count = sum(present.values())
        count = ops.maximum(count, ops.ones_like(count))
        return {
            task: present[task] * _inverse(loss) * total / count
            for task, loss in losses.items()
        }


@keras.saving.register_keras_serializable(package="mtl_keras")
class LogSum(_Weighting):
    """The sum of the logarithms of the task losses, also called scale invariant.

    The weight of a task is `1 / loss`: what `UncertaintyWeighting` tends to, but for
    the constant c, without the way there. The total may be negative. A loss below 1e-7
    counts as 1e-7 and gets no gradient.

    Args:
        tasks: list of str.
        **kwargs: passed on to `keras.layers.Layer`.

    Call arguments:
        losses: dict of scalar tensors of 0 or more. The keys are names in `tasks`.
        present: optional dict of scalars by task, 0 for a task without a valid target
            in this batch, which contributes nothing.

    Returns:
        The sum, a scalar: float32, or float64 if a loss is.

    Raises:
        ValueError: for no task or an unknown one.

    Example:
    >>> layer = LogSum(["semantic", "depth"])
    >>> f"{float(layer({'semantic': ops.array(2.0), 'depth': ops.array(0.5)})):.3f}"
    '0.000'
    """

    def call(
        self,
        losses: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        losses, present = self._prepare(losses, present)
        return sum(present[task] * _log(loss) for task, loss in losses.items())

    def _weigh(self, losses, present):
        return {task: present[task] * _inverse(x) for task, x in losses.items()}


@keras.saving.register_keras_serializable(package="mtl_keras")
class SoftOptimalWeighting(_Weighting):
    """Soft optimal uncertainty weighting (UW-SO).

    Returns the sum of `w * loss`, with `w` the softmax of `1 / loss / temperature` over
    the tasks that are present. No gradient flows through `w`. A loss below 1e-7 counts
    as 1e-7 in `w`.

    Args:
        tasks: list of str.
        temperature: float above 0, to be tuned: the larger, the more alike the weights.
            Defaults to `1.0`.
        **kwargs: passed on to `keras.layers.Layer`.

    Call arguments:
        losses: dict of scalar tensors of 0 or more. The keys are names in `tasks`.
        present: optional dict of scalars by task, 0 for a task without a valid target
            in this batch, which is left out of the softmax.

    Returns:
        The weighted sum, a scalar: float32, or float64 if a loss is.

    Raises:
        ValueError: for no task, an unknown one, or a temperature that is not positive.

    References:
     - [Kirchdorfer et al., 2024](https://arxiv.org/abs/2408.07985)
    """

    def __init__(
        self, tasks: Iterable[str], temperature: float = 1.0, **kwargs: Any
    ) -> None:
        _check_positive("temperature", temperature)
        super().__init__(tasks, **kwargs)
        self.temperature = float(temperature)

    def _weigh(self, losses, present):
        scores = {task: _inverse(loss) for task, loss in losses.items()}
        return _softmax(scores, self.temperature, present)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature}


def _softmax(scores, temperature, present=None):
    """`{task: share}` of the tasks that are present; all 0 if none is."""
    exponents = {task: score / temperature for task, score in scores.items()}
    present = present or {task: ops.ones_like(x) for task, x in exponents.items()}
    largest = None
    for task, exponent in exponents.items():
        exponent = ops.where(
            present[task] > 0, exponent, ops.full_like(exponent, -1e30)
        )
        largest = exponent if largest is None else ops.maximum(largest, exponent)
    powers = {
        task: present[task] * ops.exp(ops.minimum(x - largest, ops.zeros_like(x)))
        for task, x in exponents.items()
    }
    total = sum(powers.values())
    total = ops.where(total > 0, total, ops.ones_like(total))
    return {task: power / total for task, power in powers.items()}


def _log(loss):
    return ops.log(ops.maximum(loss, SMALLEST_LOSS))


def _inverse(loss):
    return 1.0 / ops.maximum(loss, SMALLEST_LOSS)


def _check_positive(name, value):
    if not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be a number above 0. Received: {value}")
