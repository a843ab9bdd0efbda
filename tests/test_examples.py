"""The examples run, and learn what their docstrings say."""

import importlib
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from backends import only_on
from keras import ops

from examples import applications, known_noise, noisy_lines, tabular
from mtl_keras import MultiTaskTrainer, UncertaintyWeighting

BACKEND = keras.backend.backend()
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def loop():
    """The custom loop of the backend that the tests run on."""
    return importlib.import_module(f"examples.custom_loop_{BACKEND}")


def check_printed_noise(sigmas, noise, printed):
    assert sigmas == pytest.approx(noise, rel=0.1)
    for name, value in noise.items():
        line = f"{name}: learned sigma {sigmas[name]:.2f}, true noise {value:.2f}"
        assert line in printed


@pytest.mark.parametrize("seed", ["0", "7"])
def test_known_noise_is_recovered(seed, capsys):
    sigmas = known_noise.main(["--seed", seed])
    check_printed_noise(sigmas, known_noise.NOISE, capsys.readouterr().out)


def test_the_sigmas_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    known_noise.plot_sigmas({"y1": [2.0, 8.0], "y2": [2.0, 1.0]}, tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_custom_loop_recovers_the_noise(loop, capsys):
    sigmas = loop.main(["--seed", "0"])
    check_printed_noise(sigmas, noisy_lines.NOISE, capsys.readouterr().out)


def make_start(loop, seed=3, bounds=(-30.0, 30.0)):
    """Data, a network and a weighting whose log variances have started."""
    keras.utils.set_random_seed(seed)
    data = noisy_lines.make_data(seed)
    network = noisy_lines.build_network()
    weighting = UncertaintyWeighting(noisy_lines.LIKELIHOODS, bounds=bounds)
    loop.start(network, weighting, *noisy_lines.take_sample(data))
    return data, network, weighting


def test_custom_loop_starts_at_the_equilibrium(loop):
    """Of squared errors sigma is the root of their mean, of absolute ones the mean."""
    data, network, weighting = make_start(loop)
    x, targets, _ = noisy_lines.take_sample(data)
    outputs = network.predict(x, verbose=0)
    errors = {task: targets[task] - outputs[task] for task in targets}
    assert weighting.sigmas() == pytest.approx(
        {
            "y1": np.sqrt(np.mean(errors["y1"] ** 2)),
            "y2": np.nanmean(np.abs(errors["y2"])),
        },
        rel=1e-4,
    )


def make_steps(loop, data, steps=60):
    """The first batches of a custom loop, some of them without a label of `y2`."""
    batches = [batch for batch, _ in zip(loop.make_batches(data, 0), range(steps))]
    empty = sum(not np.any(ops.convert_to_numpy(b[2]["y2"])) for b in batches)
    assert 0 < empty < steps
    return batches


def train(loop, network, weighting, batches):
    loop.train(network, weighting, batches, 1 if BACKEND == "torch" else len(batches))


def test_custom_loop_takes_the_steps_of_the_trainer(loop):
    """Absent tasks and all, from log variances that have far to go."""
    data, network, _ = make_start(loop)
    batches = make_steps(loop, data)
    starts = {"y1": 2.0, "y2": -1.0}
    weighting, twin = (
        UncertaintyWeighting(noisy_lines.LIKELIHOODS, starts) for _ in range(2)
    )
    trainer = MultiTaskTrainer(
        keras.models.clone_model(network), noisy_lines.LOSSES, twin
    )
    trainer.network.set_weights(network.get_weights())
    schedule = keras.optimizers.schedules.CosineDecay(
        noisy_lines.LEARNING_RATE, len(batches)
    )
    if BACKEND == "torch":
        optimizer = keras.optimizers.AdamW(schedule, loop.WEIGHT_DECAY)
    else:
        optimizer = keras.optimizers.Adam(schedule)
    trainer.compile(optimizer)
    for batch in batches:
        trainer.train_on_batch(*batch)

    train(loop, network, weighting, batches)
    sigmas = weighting.sigmas()
    assert sigmas == pytest.approx(twin.sigmas(), rel=1e-4)
    assert sigmas["y1"] > 1.5 * np.exp(1.0) and sigmas["y2"] > 1.5 * np.exp(-1.0)
    for own, other in zip(network.get_weights(), trainer.network.get_weights()):
        np.testing.assert_allclose(own, other, rtol=1e-3, atol=1e-4)


def test_custom_loop_keeps_the_bounds(loop):
    """Both noise levels lie above; log sigma^2 of `y1` and log b of `y2` stay."""
    data, network, weighting = make_start(loop, bounds=(-1.0, -0.5))
    train(loop, network, weighting, make_steps(loop, data))
    expected = {"y1": np.exp(-0.25), "y2": np.exp(-0.5)}
    assert weighting.sigmas() == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@only_on("tensorflow", "one run is enough: it starts the other backends")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_custom_loop_sets_its_backend(backend):
    result = subprocess.run(
        [sys.executable, "-m", f"examples.custom_loop_{backend}", "--seed", "1"],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = {}
    for name in noisy_lines.NOISE:
        _, _, line = result.stdout.partition(f"{name}: learned sigma ")
        found[name] = float(line.partition(",")[0])
    assert found == pytest.approx(noisy_lines.NOISE, rel=0.1)


def test_table_finds_the_noise_behind_missing_labels(capsys):
    sigmas, noise = tabular.main([])
    assert noise["price"] == 40 and noise["days"] == 6
    # A fair coin has sqrt(2 log 2), about 1.18; these are biased.
    assert 0.9 < noise["sold"] < 1.05
    assert sigmas == pytest.approx(noise, rel=0.1)
    printed = capsys.readouterr().out
    assert f"40% labelled, learned sigma {sigmas['days']:.3g}, true" in printed


def test_table_has_missing_labels():
    flats, targets, _ = tabular.make_table(np.random.default_rng(0), 2000)
    assert flats["numbers"].shape == (2000, 4) and flats["district"].max() == 4
    for task, share in tabular.LABELLED.items():
        assert np.isfinite(targets[task]).mean() == pytest.approx(share, abs=0.04)


@pytest.mark.slow
@only_on("tensorflow", "takes minutes on a CPU with JAX")
def test_applications_learns_shapes_and_boxes(capsys):
    results = applications.main([])
    before, after = results["before"], results["after"]
    assert after["shape/accuracy"] > 0.9 > 0.5 > before["shape/accuracy"]
    assert after["box/box_iou"] > 2 * results["constant"] > 0.2
    for name in ("shape/loss", "box/loss"):
        assert after[name] < before[name] / 4
    assert (
        f"box: learned sigma {results['sigmas']['box']:.3f}" in capsys.readouterr().out
    )


def test_a_failed_download_is_explained(monkeypatch, capsys):
    def offline(**_):
        raise Exception("URL fetch failure: Name or service not known")

    monkeypatch.setattr(keras.applications, "MobileNet", offline)
    with pytest.raises(SystemExit) as caught:
        applications.main(["--weights", "imagenet"])
    assert caught.value.code == 2
    assert "not known); leave out --weights" in capsys.readouterr().err


def test_iou_of_boxes():
    """2x2 and 2x2 share 1 of 7; equal; apart; and a box turned inside out."""
    truth = np.array([[0, 0, 2, 2]] * 4)
    boxes = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [3, 3, 4, 4], [2, 2, 0, 0]])
    np.testing.assert_allclose(
        ops.convert_to_numpy(applications.box_iou(truth, boxes)), [1 / 7, 1, 0, 0]
    )


def test_boxes_are_those_of_the_shapes():
    pictures, targets = applications.make_pictures(np.random.default_rng(0), 60)
    assert pictures.shape == (60, 64, 64, 3) and pictures.dtype == np.uint8
    assert set(targets["shape"]) == {0, 1, 2}
    for picture, shape, box in zip(pictures, targets["shape"], targets["box"]):
        top, left, bottom, right = np.round(64 * box).astype(int)
        is_shape = picture.mean(axis=-1) > 120
        rows, columns = is_shape.sum(1).nonzero()[0], is_shape.sum(0).nonzero()[0]
        found = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
        np.testing.assert_allclose(found, [top, left, bottom, right], atol=3)
        # Shares of the box: pi / 4 of a disc, all of a square, half of a triangle.
        share = is_shape.sum() / ((bottom - top) * (right - left))
        assert share == pytest.approx([np.pi / 4, 1, 0.5][shape], abs=0.06)


@pytest.mark.parametrize("example", [known_noise, tabular, applications])
def test_a_wrong_seed_is_named(example, capsys):
    with pytest.raises(SystemExit) as caught:
        example.main(["--seed", "-1"])
    assert caught.value.code == 2
    assert "error: --seed must be 0 or more" in capsys.readouterr().err


def test_a_custom_loop_names_a_wrong_seed(loop, capsys):
    with pytest.raises(SystemExit) as caught:
        loop.main(["--seed", "-1"])
    assert caught.value.code == 2
    assert "error: --seed must be 0 or more" in capsys.readouterr().err


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
