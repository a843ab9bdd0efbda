"""Means over all replicas of `tf.distribute`; elsewhere there is only one.

JAX needs nothing of this: under `keras.distribution` its arrays are global already.
"""

from typing import Any

import keras
from keras import ops

from mtl_keras.hints import Tensor


def replica_context() -> Any:
    """The replica that TensorFlow traces or runs now, `None` if it is the only one."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf  # here alone: who imports this may have to do without

    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return None
    return tf.distribute.get_replica_context()  # None outside of `strategy.run`


def num_replicas() -> int:
    """How many replicas share the batch."""
    context = replica_context()
    return context.num_replicas_in_sync if context else 1


def sum_over_replicas(value: Tensor) -> Tensor:
    """The sum of a scalar over the replicas."""
    context = replica_context()
    return context.all_reduce("SUM", value) if context else value


def mean_over_replicas(total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of values of which every replica holds a part.

    Its value is `sum(total) / sum(count)`, the same on all replicas, and 0 without an
    element. Its gradient is that of this replica's own part, times the number of
    replicas: whatever is made of it has to be divided by that number, since the
    gradients of the replicas are added up.

    Args:
        total: scalar, the sum over the elements of this replica.
        count: scalar, how many they are.

    Returns:
        The mean, and the count over all replicas.
    """
    all_counts = sum_over_replicas(count)
    divisor = ops.where(all_counts > 0, all_counts, ops.ones_like(all_counts))
    own = num_replicas() * total / divisor
    if replica_context() is None:
        return own, all_counts
    mean = sum_over_replicas(ops.stop_gradient(total)) / divisor
    return mean + own - ops.stop_gradient(own), all_counts
