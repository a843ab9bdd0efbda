"""How far several devices that share every batch are from one, after a step of SGD.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 KERAS_BACKEND=jax \\
        python -m benchmarks.devices

Street scenes cropped to 32x32, batches of 4. Biases of convolutions before a batch
normalization are left out: their gradient is 0 but for rounding.
"""

import keras
import numpy as np

from mtl_keras.experiments import setup
from mtl_keras.experiments.options import TrainOptions
from mtl_keras.experiments.problems import open_problem


def train_one_step(strategy):
    """The paths and values of the weights after a step, in their order."""
    options = TrainOptions(
        image_size=(32, 64),
        crop=(32, 32),
        train_frames=32,
        strategy=strategy,
        optimizer="sgd",
        learning_rate=1e-3,
        schedule="constant",
    )
    setup.distribute(options)
    keras.utils.set_random_seed(0)
    problem = open_problem(options)
    trainer = setup.build_trainer(problem, None, problem.training_size)
    trainer.compile(setup.build_optimizer(options, 1), jit_compile=True)
    batches = problem.make_training_batches(0)
    trainer.fit(batches, steps_per_epoch=1, verbose=0, shuffle=False)
    return [(weight.path, np.asarray(weight)) for weight in trainer.weights]


def main():
    alone, shared = train_one_step("none"), train_one_step("mirrored")
    difference = {
        path: np.abs(other - weight).max() / max(np.abs(weight).max(), 1e-12)
        for (path, weight), (_, other) in zip(alone, shared, strict=True)
        if not path.endswith("_conv/bias")
    }
    path = max(difference, key=difference.get)
    print(f"largest relative difference: {difference[path]:.1e}, of {path}")


if __name__ == "__main__":
    main()
