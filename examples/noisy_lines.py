"""What the custom loops learn: two noisy lines, one of them seldom labelled.

    y1 = 2 x + 8 + N(0, 10)         every sample has a label
    y2 = 3 x + 3 + Laplace(0, 1)    one sample in eight has one, the others are NaN

Squared errors under the likelihood `gaussian` have the standard deviation of the noise
for sigma, absolute errors under `laplace` its scale b: 10 and 1. Batches are small, so
that one in eight has no label of y2 at all.
"""

import argparse

import keras
import numpy as np

from mtl_keras import MaskedLoss

NOISE = {"y1": 10.0, "y2": 1.0}
LIKELIHOODS = {"y1": "gaussian", "y2": "laplace"}
# Keras's own losses would divide by all samples of a batch, labelled or not.
LOSSES = {
    "y1": MaskedLoss(keras.losses.MeanSquaredError()),
    "y2": MaskedLoss(keras.losses.MeanAbsoluteError()),
}
BATCH_SIZE = 16
EPOCHS = 4
LEARNING_RATE = 5e-3
SIGMA_LEARNING_RATE = 10 * LEARNING_RATE


def make_data(seed, size=8000):
    """Inputs `(size, 1)`, and by task targets of that shape and masks, `(size,)`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 1))
    targets = {
        "y1": 2 * x + 8 + rng.normal(0, NOISE["y1"], x.shape),
        "y2": 3 * x + 3 + rng.laplace(0, NOISE["y2"], x.shape),
    }
    targets["y2"][rng.random(size) > 1 / 8] = np.nan
    targets = {task: y.astype("float32") for task, y in targets.items()}
    masks = {task: np.isfinite(y[:, 0]) for task, y in targets.items()}
    return x.astype("float32"), targets, masks


def take_sample(data, size=256):
    """The first `size` samples of `make_data`, enough to have labels of both tasks."""
    return keras.tree.map_structure(lambda values: values[:size], data)


def build_network():
    inputs = keras.Input((1,))
    features = keras.layers.Dense(16, activation="relu")(inputs)
    return keras.Model(
        inputs, {task: keras.layers.Dense(1)(features) for task in NOISE}
    )


def parse_seed(description, argv=None):
    """Reads the command line of a custom loop, and seeds the network."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of noise and network")
    seed = parser.parse_args(argv).seed
    if not 0 <= seed < 2**32:
        parser.error(f"--seed must be 0 or more and below 2^32, not {seed}")
    keras.utils.set_random_seed(seed)
    return seed


def print_sigmas(sigmas):
    for task, noise in NOISE.items():
        print(f"{task}: learned sigma {sigmas[task]:.2f}, true noise {noise:.2f}")
