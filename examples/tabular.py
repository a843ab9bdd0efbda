"""Three tasks of a table, with missing labels: flats for sale.

Inputs are numbers and a district, and the tasks have other units and other noise:

    price    thousands     linear in the numbers, by district    N(0, 40)
    days     on offer      linear in the numbers                 Laplace(0, 6)
    sold     yes or no     logistic in the numbers               a biased coin

Every task lacks some of its labels, `days` most of them. Missing ones are NaN; their
masks are the sample weights of `fit`, and whatever is under a mask does not count.
Nobody tells the network the noise, nor scales its targets. What it should find:

    price    gaussian    sigma = 40, the standard deviation
    days     laplace     sigma = 6, the scale b = mean |error|
    sold     softmax     sigma = sqrt(2 H), with H the mean entropy of the coins, the
                         cross entropy that no network can go below

    python -m examples.tabular
    KERAS_BACKEND=torch python -m examples.tabular     # on PyTorch, likewise jax
"""

import argparse

import keras
import numpy as np

from mtl_keras import MultiTaskTrainer, UncertaintyWeighting

NUM_NUMBERS, NUM_DISTRICTS = 4, 5
LABELLED = {"price": 0.7, "days": 0.4, "sold": 0.9}
LIKELIHOODS = {"price": "gaussian", "days": "laplace", "sold": "softmax"}
BATCH_SIZE, EPOCHS = 100, 15


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of noise and network")
    seed = parser.parse_args(argv).seed
    if not 0 <= seed < 2**32:
        parser.error(f"--seed must be 0 or more and below 2^32, not {seed}")
    keras.utils.set_random_seed(seed)

    flats, targets, noise = make_table(np.random.default_rng(seed), size=6000)
    masks = {task: np.isfinite(values) for task, values in targets.items()}

    trainer = MultiTaskTrainer(
        build_network(),
        losses={
            "price": keras.losses.MeanSquaredError(),
            "days": keras.losses.MeanAbsoluteError(),
            "sold": keras.losses.BinaryCrossentropy(from_logits=True),
        },
        weighting=UncertaintyWeighting(LIKELIHOODS),
        task_metrics={"price": "mae", "sold": "accuracy"},
    )
    # The rate falls to 0, so that the sigmas come to rest.
    steps = EPOCHS * len(targets["price"]) // BATCH_SIZE
    rate = keras.optimizers.schedules.CosineDecay(1e-2, steps)
    trainer.compile(keras.optimizers.Adam(rate))
    trainer.fit(
        flats,
        targets,
        sample_weight=masks,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        verbose=0,
    )

    sigmas, weights = trainer.weighting.sigmas(), trainer.weighting.task_weights()
    for task in LIKELIHOODS:
        print(
            f"{task:5}: {masks[task].mean():4.0%} labelled, learned sigma "
            f"{sigmas[task]:.3g}, true noise {noise[task]:.3g}, weight of the loss "
            f"{weights[task]:.2g}"
        )
    return sigmas, noise


def make_table(rng, size):
    """Flats, their labels with NaN for missing ones, and the sigmas to be found."""
    numbers = rng.normal(size=(size, NUM_NUMBERS)).astype("float32")
    district = rng.integers(NUM_DISTRICTS, size=size)
    price = 300 + numbers @ [90, 30, -20, 0] + 50 * district
    days = 40 + numbers @ [5, 0, 10, 3]
    probability = 1 / (1 + np.exp(-numbers @ [0.5, -1.0, 0, 1.5]))
    targets = {
        "price": price + rng.normal(0, 40, size),
        "days": days + rng.laplace(0, 6, size),
        "sold": (rng.random(size) < probability).astype(float),
    }
    for task, share in LABELLED.items():
        targets[task][rng.random(size) > share] = np.nan
    entropy = -np.mean(
        probability * np.log(probability) + (1 - probability) * np.log1p(-probability)
    )
    noise = {"price": 40.0, "days": 6.0, "sold": float(np.sqrt(2 * entropy))}
    return {"numbers": numbers, "district": district}, targets, noise


def build_network():
    """Two inputs by name, one output of a single value per task."""
    numbers = keras.Input((NUM_NUMBERS,), name="numbers")
    district = keras.Input((), name="district", dtype="int32")
    embedded = keras.layers.Embedding(NUM_DISTRICTS, 4)(district)
    features = keras.layers.Concatenate()([numbers, embedded])
    features = keras.layers.Dense(32, activation="relu")(features)
    return keras.Model(
        {"numbers": numbers, "district": district},
        {task: keras.layers.Dense(1)(features) for task in LIKELIHOODS},
    )


if __name__ == "__main__":
    main()
