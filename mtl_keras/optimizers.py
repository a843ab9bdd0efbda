"""Adam in one operation per weight, and a separate learning rate for the sigmas."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mtl_keras.hints import Tensor


@keras.saving.register_keras_serializable(package="mtl_keras")
class FusedAdam(keras.optimizers.Adam):
    """Keras's Adam, by TensorFlow's fused kernel.

    It takes the same steps, with the same arguments, state and checkpoints, as
    `keras.optimizers.Adam`. On TensorFlow, that updates every weight in about forty
    small operations; with ResNet-101 they are more than all other operations of a step
    together. They take long to trace and optimize before the first step, and each
    passes over the weight once more.

    Keras's own code runs on other backends, with `amsgrad`, for gradients of
    embeddings and for weights that are not float32.

    Args:
        **kwargs: passed on to `keras.optimizers.Adam`.

    Example:
    >>> weight = keras.Variable([1.0, 1.0])
    >>> optimizer = FusedAdam(0.1)
    >>> optimizer.apply([ops.array([2.0, -2.0])], [weight])
    >>> [f"{value:.3f}" for value in ops.convert_to_numpy(weight)]
    ['0.900', '1.100']

    References:
     - [Kingma and Ba, 2014](https://arxiv.org/abs/1412.6980), algorithm 1 as
       rearranged at the end of section 2
    """

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if self._has_kernel():  # computed once, not once per weight
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

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        if not self._has_kernel():
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow as tf  # here only: the library runs without it

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


# They keep a copy of every weight, or forget where it started. A log variance could
# neither start at its equilibrium nor be held while its task is absent.
_UNFIT = (keras.optimizers.Ftrl, keras.optimizers.ScheduleFreeAdamW)
DECAYS = ("weight_decay", "adam_weight_decay")  # the latter: Muon's, where it is Adam


@keras.saving.register_keras_serializable(package="mtl_keras")
class WeightingOptimizer(keras.optimizers.MultiOptimizer):
    """One optimizer for a network, another for the weights of its loss weighting.

    By default the second is a copy of the first with `factor` times its learning rate
    at every step, schedules and callbacks included. Everything else is the optimizers'
    own arithmetic: momentum, averaged weights, accumulated gradients, loss scaling.
    Each clips its own gradients, and the second decays nothing.

    `learning_rate` and `iterations` are those of the network's optimizer.

    Args:
        network_optimizer: a `keras.optimizers.Optimizer`.
        sigma_optimizer: optional, another one for the weights of the weighting, in
            place of the copy. It has its own learning rate.
        factor: float. Defaults to `10.0`.
        sigmas: list of `keras.Variable`, the weights of the weighting.
        name: optional str.

    Raises:
        ValueError: for a `network_optimizer` that cannot be copied; and for a
            `sigma_optimizer` with weight decay, or one that would undo where a weight
            starts (`Ftrl`, `ScheduleFreeAdamW`).
    """

    def __init__(
        self,
        network_optimizer: keras.optimizers.Optimizer,
        sigma_optimizer: keras.optimizers.Optimizer | None = None,
        factor: float = 10.0,
        sigmas: Sequence[keras.Variable] = (),
        name: str | None = None,
    ) -> None:
        has_own_sigma_optimizer = sigma_optimizer is not None
        if sigma_optimizer is None:
            sigma_optimizer = _copy_for_sigmas(network_optimizer, factor)
        _check_sigma_optimizer(sigma_optimizer)
        # Sigmas first: the copy asks for the learning rate of this step, not the next.
        super().__init__(
            _OptimizerOfVariable(network_optimizer, sigma_optimizer, sigmas),
            loss_scale_factor=network_optimizer.loss_scale_factor,
            name=name,
        )
        self.network_optimizer = network_optimizer
        self.sigma_optimizer = sigma_optimizer
        self.has_own_sigma_optimizer = has_own_sigma_optimizer
        self.factor = factor

    @property
    def learning_rate(self) -> Any:
        return self.network_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.network_optimizer.learning_rate = value

    @property
    def iterations(self) -> keras.Variable:
        return self.network_optimizer.iterations

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        # Keras's callbacks would set the learning rates of all optimizers alike.
        raise AttributeError("network_optimizer and sigma_optimizer")

    @property
    def _model_variables_moving_average(self):  # for `keras.callbacks.SwapEMAWeights`
        owners = map(self._optimizer_map, self._trainable_variables)
        return [
            owner._model_variables_moving_average[owner._get_variable_index(variable)]
            for owner, variable in zip(owners, self._trainable_variables)
        ]

    def save_own_variables(self, store: Any) -> None:
        # Keras saves the two optimizers by themselves as well; once is enough.
        for i, variable in enumerate(self._variables):
            store[str(i)] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        if len(store.keys()) != len(self._variables):
            warnings.warn(
                f"The file has no state of the optimizer {self.name}, which starts "
                "afresh.",
                stacklevel=2,
            )
            return
        for i, variable in enumerate(self._variables):
            variable.assign(store[str(i)])

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        own = self.sigma_optimizer if self.has_own_sigma_optimizer else None
        return {
            "network_optimizer": serialize(self.network_optimizer),
            "sigma_optimizer": own and serialize(own),
            "factor": self.factor,
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "WeightingOptimizer":
        deserialize = keras.saving.deserialize_keras_object
        optimizers = {
            key: config[key] and deserialize(config[key], custom_objects)
            for key in ("network_optimizer", "sigma_optimizer")
        }
        return cls(**{**config, **optimizers})


class _OptimizerOfVariable:
    """Tells `MultiOptimizer` which optimizer a variable belongs to."""

    def __init__(self, network_optimizer, sigma_optimizer, sigmas):
        self.default_optimizer = network_optimizer
        self.sigma_optimizer = sigma_optimizer
        self.sigmas = {id(variable) for variable in sigmas}

    def values(self):
        return [self.sigma_optimizer]

    def __call__(self, variable):
        is_sigma = id(variable) in self.sigmas
        return self.sigma_optimizer if is_sigma else self.default_optimizer


def _copy_for_sigmas(optimizer, factor):
    """A new optimizer of the same kind with `factor` times its learning rate."""
    config = {
        **optimizer.get_config(),
        "name": f"{optimizer.name}_of_sigmas",
        "learning_rate": lambda: (
            factor * ops.convert_to_tensor(optimizer.learning_rate)
        ),
    }
    try:
        copy = type(optimizer).from_config(config)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{type(optimizer).__name__} cannot be copied for the weights of the "
            f"weighting ({error}); give `compile` a `sigma_optimizer` of their own."
        ) from error
    for name in DECAYS:
        if hasattr(copy, name):
            setattr(copy, name, None)
    return copy


def _check_sigma_optimizer(optimizer):
    if isinstance(optimizer, _UNFIT):
        raise ValueError(
            f"{type(optimizer).__name__} cannot train the weights of the weighting: it "
            "would undo where they start. Give `compile` another `sigma_optimizer` for "
            "them, such as keras.optimizers.Adam(1e-2)."
        )
    for name in DECAYS:
        if decay := getattr(optimizer, name, None):
            raise ValueError(
                "`sigma_optimizer` must have no weight decay, which would pull every "
                f"log variance towards 0. Received: {name}={decay}"
            )


def check_replicated(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises `ValueError` for options that Keras gets wrong on several replicas."""
    clips = "clips the gradient of each replica by itself"
    faults = {
        "clipnorm": clips,
        "global_clipnorm": clips,
        "clipvalue": clips,
        "gradient_accumulation_steps": "fails to accumulate gradients",
        "ema_overwrite_frequency": "fails to overwrite weights with their averages",
    }
    for name, fault in faults.items():
        if getattr(optimizer, name):
            raise ValueError(
                f"On several replicas of tf.distribute Keras {fault}; leave `{name}` "
                "out, or train on JAX with keras.distribution."
            )
