"""What is measured: a training step of the network on a random batch."""

import numpy as np

TASKS = ("semantic", "instance", "depth")
NUM_CLASSES = 34


def make_batch(batch_size, image_size, seed=0):
    """Random images, targets and masks, as `MultiTaskTrainer` takes them."""
    rng = np.random.default_rng(seed)
    shape = (batch_size, *image_size)
    images = rng.integers(0, 256, (*shape, 3), "uint8")
    targets = {
        "semantic": rng.integers(0, NUM_CLASSES, shape, "int32"),
        "instance": rng.normal(0, 10, (*shape, 2)).astype("float32"),
        "depth": rng.uniform(0, 30, (*shape, 1)).astype("float32"),
    }
    masks = {task: (rng.random(shape) < 0.9).astype("float32") for task in TASKS}
    return images, targets, masks


def build_trainer(precision="float32", jit=False, **network_options):
    """The compiled trainer: Adam, learned weighting, no metrics.

    Args:
        precision: str, the global dtype policy to set.
        jit: whether TensorFlow compiles with XLA. JAX does in any case.
        **network_options: for `build_network`.
    """
    import keras

    from mtl_keras import MultiTaskTrainer, UncertaintyWeighting, build_network
    from mtl_keras.optimizers import FusedAdam
    from mtl_keras.tasks import make_losses

    keras.config.set_dtype_policy(precision)
    trainer = MultiTaskTrainer(
        build_network(num_classes=NUM_CLASSES, **network_options),
        make_losses(TASKS),
        UncertaintyWeighting(dict.fromkeys(TASKS, "mtl"), 0.0),
    )
    jit = jit or keras.backend.backend() == "jax"
    trainer.compile(FusedAdam(1e-4), jit_compile=jit)
    trainer.optimizer.build(trainer.trainable_variables)
    return trainer


def randomize(network, seed=0):
    """Weights under which every layer matters: nothing dies and nothing explodes."""
    rng = np.random.default_rng(seed)
    for variable in network.weights:
        if variable.name == "moving_variance":
            values = rng.uniform(0.5, 2.0, variable.shape)
        elif variable.name == "gamma":
            values = rng.uniform(0.5, 1.0, variable.shape)
        elif len(variable.shape) == 1:
            values = rng.normal(0, 0.1, variable.shape)
        else:
            fan_in = np.prod(variable.shape[:-1])
            values = rng.normal(0, fan_in**-0.5, variable.shape)
        variable.assign(values.astype("float32"))
