"""Adam in one operation a weight."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="mtl_keras")
class Adam(keras.optimizers.Adam):
    """Keras's Adam, by TensorFlow's fused kernel.

    The same steps, with the same arguments, state and checkpoints, as
    `keras.optimizers.Adam`, which on TensorFlow updates every weight by about forty
    small operations, of a step on ResNet-101 more than all others together. They
    take long to trace and optimize before the first step, and each passes over the
    weight once more.

    Keras's own code runs on other backends, with `amsgrad`, for gradients of
    embeddings and for weights that are not float32.

    Args:
        **kwargs: passed on to `keras.optimizers.Adam`.

    Example:
    >>> weight = keras.Variable([1.0, 1.0])
    >>> optimizer = Adam(0.1)
    >>> optimizer.apply([ops.array([2.0, -2.0])], [weight])
    >>> [f"{value:.3f}" for value in ops.convert_to_numpy(weight)]
    ['0.900', '1.100']

    References:
     - [Kingma and Ba, 2014](https://arxiv.org/abs/1412.6980), algorithm 1 as
       rearranged at the end of section 2
    """

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if self._has_kernel():  # made once, not once a weight
            beta_1, beta_2, epsilon, rate = (
                ops.cast(ops.convert_to_tensor(value), "float32")
                for value in (self.beta_1, self.beta_2, self.epsilon, learning_rate)
            )
            step = ops.cast(self.iterations + 1, "float32")
            learning_rate = {
                "lr": rate,
                "beta1": beta_1,
                "beta2": beta_2,
                "beta1_power": ops.power(beta_1, step),
                "beta2_power": ops.power(beta_2, step),
                "epsilon": epsilon,
            }
        super()._backend_update_step(grads, trainable_variables, learning_rate)

    def update_step(self, gradient, variable, learning_rate):
        if not self._has_kernel():
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow as tf  # here alone: the module has to do without

        if variable.dtype != "float32" or isinstance(gradient, tf.IndexedSlices):
            return super().update_step(gradient, variable, learning_rate["lr"])
        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            grad=tf.cast(gradient, "float32"),
            **learning_rate,
        )

    def _has_kernel(self):
        return keras.backend.backend() == "tensorflow" and not self.amsgrad
