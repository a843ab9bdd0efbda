"""Every format returns what the network does, found by name."""

import importlib.util
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras.errors import UserError
from mtl_keras.experiments.kinds import EXPORTS
from mtl_keras.model import build_network, build_small_network
from mtl_keras.serving import ModelFacts, build_serving_model, export, formats
from mtl_keras.serving.model_card import format_card

SIZE = (32, 64)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return build_network(backbone="small", image_size=SIZE, num_classes=19)


def make_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


def run_saved_model(directory, images):
    signature = tf.saved_model.load(directory).signatures["serving_default"]
    return {name: v.numpy() for name, v in signature(image=images).items()}


def run_onnx(directory, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images})))


def run_litert(directory, images):
    from ai_edge_litert.interpreter import Interpreter

    path = str(directory / "model.tflite")
    runner = Interpreter(path).get_signature_runner()
    return runner(image=images)


RUNNERS = {
    "tf_saved_model": run_saved_model,
    "onnx": run_onnx,
    "litert": run_litert,
    "litert_float16": run_litert,
}


@pytest.mark.slow
@pytest.mark.parametrize("format", RUNNERS)
@pytest.mark.parametrize("count", [1, 3])
def test_every_format_answers_as_the_network_does(network, format, count, tmp_path):
    images = make_images(count, *SIZE, 3)
    export(network, tmp_path / "model", format)
    found = RUNNERS[format](tmp_path / "model", images)
    expected = build_serving_model(network).predict_on_batch(images)
    assert set(found) == {"semantic", "instance", "depth"}
    for task, values in expected.items():
        tolerance = 1e-4 if format != "litert_float16" else 0.02
        scale = np.abs(values).max()
        np.testing.assert_allclose(
            found[task], values, rtol=tolerance, atol=tolerance * scale, err_msg=task
        )


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_small_networks_too(format, tmp_path):
    keras.utils.set_random_seed(0)
    network = build_small_network((8, 8), 10, ("class", "reconstruction"))
    images = make_images(2, 8, 8, 1)
    export(network, tmp_path / "model", format)
    found = RUNNERS[format](tmp_path / "model", images)
    expected = build_serving_model(network).predict_on_batch(images)
    assert set(found) == {"class", "reconstruction"}
    for task, values in expected.items():
        np.testing.assert_allclose(found[task], values, atol=1e-4, err_msg=task)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mtl", "kendall"])
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_network_of_mixed_precision_leaves_in_float32(
    architecture, precision, set_policy, tmp_path
):
    """No tool that runs these formats has all operations in 16-bit floats."""
    pair = []
    for policy in ("float32", precision):
        set_policy(policy)
        keras.utils.set_random_seed(0)
        pair.append(build_network(architecture, "small", SIZE, 19))
    exact, mixed = pair
    assert formats.rebuild_in_float32(exact) is exact
    mixed.set_weights(exact.get_weights())
    images = make_images(2, *SIZE, 3)
    expected = build_serving_model(exact).predict_on_batch(images)
    for format in ("onnx", "litert"):
        export(mixed, tmp_path / format, format)
        found = RUNNERS[format](tmp_path / format, images)
        for task, values in expected.items():
            scale = np.abs(values).max()
            np.testing.assert_allclose(found[task], values, 1e-4, 1e-4 * scale)


@pytest.mark.slow
def test_float16_takes_half_the_room(network, tmp_path):
    sizes = []
    for format in ("litert", "litert_float16"):
        export(network, tmp_path / format, format)
        sizes.append((tmp_path / format / "model.tflite").stat().st_size)
    assert 0.45 < sizes[1] / sizes[0] < 0.6


def test_formats_have_a_place_in_a_run():
    assert list(EXPORTS) == list(formats.FORMATS)


def test_an_export_has_a_model_card(network, tmp_path):
    facts = ModelFacts(
        label_set="train_ids",
        training_data="the split train of streets",
        settings={"--epochs": 7},
        scores={"semantic/miou": 0.375, "depth/rms": 1.5},
        scored_on="the split val of streets",
    )
    export(network, tmp_path / "model", facts=facts)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    for part in (
        "| `image` | (batch, 32, 64, 3) | uint8 |",
        "| `semantic` | (batch, 32, 64, 19) | float32 |",
        "| 13 | car | 26 |",
        "the split train of streets",
        "Settings, where they are not the defaults of train.py:",
        "- --epochs: 7",
        "On the split val of streets.",
        "| mIoU % | 37.5 |",
        "| depth RMS px | 1.5 |",
    ):
        assert part in card, part
    manifest = json.loads((tmp_path / "model" / "mtl_keras_export.json").read_text())
    assert manifest["label_set"] == "train_ids" and "README.md" in manifest["files"]


def test_a_card_says_what_is_not_known():
    model = build_serving_model(
        build_small_network((8, 8), 3, ("class", "reconstruction"))
    )
    facts = ModelFacts(class_names=("a", "b", "c"))
    card = format_card(model, facts, "a stone", "Throw it.", "2001-02-03")
    assert "exported as a stone on 2001-02-03" in card and "Throw it." in card
    assert "| 2 | c |" in card and "label id" not in card
    assert "Data: not recorded." in card and "## Scores\n\nNot recorded." in card


def test_unknown_formats_and_labels_are_refused(network, tmp_path):
    with pytest.raises(ValueError, match="tf_saved_model, onnx, litert.*'coreml'"):
        export(network, tmp_path / "model", "coreml")
    with pytest.raises(ValueError, match="'label_ids' has 34 classes, the network 19"):
        export(network, tmp_path / "model", facts=ModelFacts("label_ids"))
    assert not any(tmp_path.iterdir())


def test_a_missing_package_is_named(network, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "tf2onnx" else find(name),
    )
    with pytest.raises(UserError, match=r"tf2onnx is not installed.*\[onnx\]"):
        export(network, tmp_path / "model", "onnx")
    assert not any(tmp_path.iterdir())
