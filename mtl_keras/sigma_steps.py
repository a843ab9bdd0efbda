"""What a step does to the log variances besides the optimizer's update.

Those of absent tasks stay where they are, in spite of momentum and averages; those of
tasks that are starting move to their equilibrium.
"""

from typing import NamedTuple

import keras
from keras import ops

from mtl_keras.hints import Tensor
from mtl_keras.weighting import UncertaintyWeighting


class State(NamedTuple):
    """Copies from before a step, scalars; `averages` is empty without `use_ema`."""

    iterations: Tensor
    log_variances: dict[str, Tensor]
    first_counts: dict[str, Tensor]
    averages: dict[str, Tensor]


def copy_state(
    weighting: UncertaintyWeighting, optimizer: keras.optimizers.Optimizer
) -> State:
    """Copies what `settle` goes back to; called before the step.

    Args:
        weighting: `UncertaintyWeighting`.
        optimizer: `keras.optimizers.Optimizer` of its log variances.
    """
    averages = {}
    if optimizer.built and optimizer.use_ema:
        averages = {
            task: _average_of(s, optimizer)
            for task, s in weighting.log_variances.items()
        }

    def copy(group):
        return {task: ops.copy(variable) for task, variable in group.items()}

    return State(
        iterations=ops.copy(optimizer.iterations),
        log_variances=copy(weighting.log_variances),
        first_counts=copy(weighting.first_counts),
        averages=copy(averages),
    )


def settle(
    weighting: UncertaintyWeighting,
    optimizer: keras.optimizers.Optimizer,
    before: State,
) -> None:
    """Puts absent tasks back after a step, and moves those that are starting.

    Args:
        weighting, optimizer: as for `copy_state`.
        before: what `copy_state` returned.
    """
    iterations, log_variances, first_counts, averages = before
    is_updated = ops.not_equal(optimizer.iterations, iterations)
    for task, s in weighting.log_variances.items():
        # Momentum would move the `s` of an absent task on. `seen` covers all batches
        # since the last update, which several may make together.
        seen = ops.convert_to_tensor(weighting.seen[task])
        value = ops.convert_to_tensor(s)
        s.assign(ops.where(seen > 0, value, log_variances[task]))
        # On JAX, what the forward pass assigns to trainable weights is lost.
        count = ops.convert_to_tensor(weighting.first_counts[task])
        starts = ops.not_equal(count, first_counts[task])
        weighting.move_to_start(task, starts)
        if task in averages:
            average, s = _average_of(s, optimizer), ops.convert_to_tensor(s)
            momentum = ops.where(iterations > 0, optimizer.ema_momentum, 0.0)
            held = momentum * averages[task] + (1 - momentum) * s
            value = ops.where(seen > 0, ops.convert_to_tensor(average), held)
            average.assign(ops.where(starts, s, value))
        weighting.seen[task].assign(ops.where(is_updated, 0.0, seen))


def _average_of(s, optimizer):
    """The optimizer's moving average of a log variance."""
    index = optimizer._get_variable_index(s)
    return optimizer._model_variables_moving_average[index]
