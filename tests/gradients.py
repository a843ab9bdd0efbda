"""Gradients with respect to Keras variables, under every backend."""

import keras
import numpy as np
from keras import ops


def value_and_gradients(function, variables):
    """`function()` and its gradients, as arrays; zeros where nothing depends."""
    values = [variable.value for variable in variables]
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = function()
        gradients = tape.gradient(value, values, unconnected_gradients="zero")
    elif backend == "jax":
        import jax

        def stateless(values):
            with keras.StatelessScope(list(zip(variables, values))):
                return function()

        value, gradients = jax.value_and_grad(stateless)(values)
    else:
        import torch

        value = function()
        gradients = torch.autograd.grad(value, values, materialize_grads=True)
    return ops.convert_to_numpy(value), [
        np.asarray(ops.convert_to_numpy(gradient)) for gradient in gradients
    ]
