"""The examples run, and learn what their docstrings say."""

import keras
import numpy as np
import pytest

from examples import known_noise
from mtl_keras import MultiTaskTrainer, UncertaintyWeighting


@pytest.mark.parametrize("seed", ["0", "7"])
def test_known_noise_is_recovered(seed, capsys):
    sigmas = known_noise.main(["--seed", seed])
    assert sigmas == pytest.approx(known_noise.NOISE, rel=0.1)
    printed = capsys.readouterr().out
    for name, noise in known_noise.NOISE.items():
        line = f"{name}: learned sigma {sigmas[name]:.2f}, true noise {noise:.2f}"
        assert line in printed


def test_the_sigmas_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    known_noise.plot_sigmas({"y1": [2.0, 8.0], "y2": [2.0, 1.0]}, tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_laplace_recovers_the_scale_of_laplace_noise():
    """Absolute errors under `laplace` have the maximum likelihood b = mean |error|,
    whatever the unit: 5 and 0.2 from one input."""
    keras.utils.set_random_seed(3)
    scales = {"wide": 5.0, "narrow": 0.2}
    x = np.random.normal(size=(2000, 1))
    targets = {
        name: 2 * x + 1 + np.random.laplace(0, scale, x.shape)
        for name, scale in scales.items()
    }
    inputs = keras.Input((1,))
    network = keras.Model(
        inputs, {name: keras.layers.Dense(1)(inputs) for name in scales}
    )
    trainer = MultiTaskTrainer(
        network,
        {name: keras.losses.MeanAbsoluteError() for name in scales},
        UncertaintyWeighting(dict.fromkeys(scales, "laplace")),
    )
    trainer.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-2, 600))
    )
    trainer.fit(x, targets, batch_size=100, epochs=30, verbose=0)
    assert trainer.weighting.sigmas() == pytest.approx(scales, rel=0.1)
    predicted = network.predict(x, verbose=0)
    errors = {name: np.abs(predicted[name] - targets[name]).mean() for name in scales}
    assert trainer.weighting.sigmas() == pytest.approx(errors, rel=0.02)
