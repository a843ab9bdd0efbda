"""Gradients with respect to Keras variables, under TensorFlow and JAX."""

import keras
import numpy as np
from keras import ops


def value_and_gradients(function, variables):
    """`function()` and its gradients, as arrays; zeros where nothing depends."""
    values = [variable.value for variable in variables]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = function()
        gradients = tape.gradient(value, values, unconnected_gradients="zero")
    elif keras.backend.backend() == "jax":
        import jax

        def stateless(values):
            with keras.StatelessScope(list(zip(variables, values))):
                return function()

        value, gradients = jax.value_and_grad(stateless)(values)
    else:
        raise NotImplementedError("gradients here are those of TensorFlow and JAX")
    return ops.convert_to_numpy(value), [
        np.asarray(ops.convert_to_numpy(gradient)) for gradient in gradients
    ]
