"""What a step does to log variances that the optimizer does not know of.

Those of absent tasks stay where they are, against momentum and averages; those of
tasks that start move to their equilibrium.
"""

import keras
from keras import ops

from mtl_keras.weighting import UncertaintyWeighting


def copy_state(
    weighting: UncertaintyWeighting, optimizer: keras.optimizers.Optimizer
) -> tuple:
    """What `settle` goes back to: copies from before the step.

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
    groups = weighting.log_variances, weighting.first_counts, averages
    copies = [
        {task: ops.copy(variable) for task, variable in group.items()}
        for group in groups
    ]
    return ops.copy(optimizer.iterations), *copies


def settle(
    weighting: UncertaintyWeighting,
    optimizer: keras.optimizers.Optimizer,
    before: tuple,
) -> None:
    """Puts absent tasks back after a step, and moves those that start.

    Args:
        weighting, optimizer: as for `copy_state`.
        before: what that returned.
    """
    iterations, log_variances, first_counts, averages = before
    is_updated = ops.not_equal(optimizer.iterations, iterations)
    for task, s in weighting.log_variances.items():
        # Of an absent task: momentum would move it on. `seen` looks back to the
        # last update, which several batches may make together.
        seen = ops.convert_to_tensor(weighting.seen[task])
        value = ops.convert_to_tensor(s)
        s.assign(ops.where(seen > 0, value, log_variances[task]))
        # What the forward pass of JAX assigns to trainable weights is lost.
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
