"""Learn how noisy two tasks are, and compare with the truth.

One network makes two regressions of the same input. Their targets have Gaussian
noise of standard deviation 10 and 1, which nobody tells the network:

    y1 = 2 x + 8 + N(0, 10)        y2 = 3 x + 3 + N(0, 1)

`UncertaintyWeighting` learns one sigma per task. With squared errors and the likelihood
`gaussian` it is the standard deviation of what cannot be predicted, here the noise,
and the losses are weighted by 1 / (2 sigma^2): the first task by 1/200, the second by
1/2, so that neither drowns the other.

    python -m examples.known_noise
    python -m examples.known_noise --plot sigmas.png     # sigma over the epochs
    KERAS_BACKEND=jax python -m examples.known_noise     # on JAX

Lines and noise are those of an author of the paper,
https://github.com/yaringal/multi-task-learning-example, who has 100 samples in place of
2000, 1024 hidden units in place of 64, 10,000 steps in place of 600, and no factor of
1/2 in the formula; the sigmas are the same.
"""

import argparse

import keras
import numpy as np

from mtl_keras import MultiTaskTrainer, UncertaintyWeighting

NOISE = {"y1": 10.0, "y2": 1.0}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of noise and network")
    parser.add_argument("--plot", metavar="PNG", help="where to draw the sigmas")
    options = parser.parse_args(argv)
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed must be 0 or more and below 2^32, not {options.seed}")
    keras.utils.set_random_seed(options.seed)

    x = np.random.normal(size=(2000, 1))
    clean = {"y1": 2 * x + 8, "y2": 3 * x + 3}
    targets = {
        name: y + np.random.normal(0, NOISE[name], y.shape) for name, y in clean.items()
    }

    inputs = keras.Input((1,))
    features = keras.layers.Dense(64, activation="relu")(inputs)
    network = keras.Model(
        inputs, {name: keras.layers.Dense(1)(features) for name in NOISE}
    )

    trainer = MultiTaskTrainer(
        network,
        losses={name: keras.losses.MeanSquaredError() for name in NOISE},
        weighting=UncertaintyWeighting(dict.fromkeys(NOISE, "gaussian")),
    )
    # 600 steps. The rate falls to 0, so that the sigmas come to rest.
    trainer.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-2, 600))
    )
    history = trainer.fit(x, targets, batch_size=100, epochs=30, verbose=0).history

    sigmas = trainer.weighting.sigmas()
    for name, noise in NOISE.items():
        print(f"{name}: learned sigma {sigmas[name]:.2f}, true noise {noise:.2f}")
    if options.plot:
        plot_sigmas({name: history[f"{name}/sigma"] for name in NOISE}, options.plot)
    return sigmas


def plot_sigmas(sigmas, path):
    """Draws the sigmas by epoch, with the true noise dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, values in sigmas.items():
        (line,) = axes.plot(range(1, len(values) + 1), values, label=f"sigma of {name}")
        axes.axhline(NOISE[name], color=line.get_color(), linestyle="--", linewidth=1)
    axes.set(xlabel="epoch", ylabel="sigma (dashed: true noise)", yscale="log")
    axes.set_yticks([1, 2, 5, 10], labels=["1", "2", "5", "10"])
    axes.legend()
    figure.savefig(path, dpi=120)
    print(f"The sigmas over the epochs are in {path}.")


if __name__ == "__main__":
    main()
