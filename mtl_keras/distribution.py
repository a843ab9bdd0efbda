"""Sums and means over all replicas of `tf.distribute`; elsewhere there is only one.

JAX needs none of them: under `keras.distribution` its arrays are already global. It
only wants batches that can be cut into equal parts.
"""

from typing import Any

import keras
from keras import ops

from mtl_keras.hints import Tensor


def replica_context() -> Any:
    """The context of the replica that TensorFlow is tracing or running, or `None`.

    It is `None` if there is only one replica, as on every other backend, and outside
    `strategy.run`.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf  # here only: the library runs without it

    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return None
    return tf.distribute.get_replica_context()  # None outside `strategy.run`


def count_devices() -> int:
    """The number of devices among which the current `keras.distribution`, which is of
    this thread alone, cuts every batch into equal parts; 1 if there is none."""
    distribution = keras.distribution.distribution()
    return distribution.device_mesh.devices.size if distribution else 1


def num_replicas() -> int:
    """The number of replicas that share the batch."""
    context = replica_context()
    return context.num_replicas_in_sync if context else 1


def sum_over_replicas(value: Tensor) -> Tensor:
    """The sum of a scalar over the replicas."""
    context = replica_context()
    return context.all_reduce("SUM", value) if context else value


def mean_over_replicas(total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of values of which every replica holds a part.

    Its value is `sum(total) / sum(count)`, the same on all replicas, and 0 if there
    are no elements. Its gradient is that of this replica's own part, times the number
    of replicas. Whatever is computed from it must be divided by that number, since
    the gradients of the replicas are added up.

    Args:
        total: scalar, the sum over the elements of this replica.
        count: scalar, the number of these elements, or the sum of their weights.

    Returns:
        Two scalars: the mean, and the count over all replicas.
    """
    all_counts = sum_over_replicas(count)
    divisor = ops.where(all_counts > 0, all_counts, ops.ones_like(all_counts))
    own = num_replicas() * total / divisor
    if replica_context() is None:
        return own, all_counts
    mean = sum_over_replicas(ops.stop_gradient(total)) / divisor
    return mean + own - ops.stop_gradient(own), all_counts
