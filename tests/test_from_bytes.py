"""The exported graph that takes encoded pictures answers as `predict` does."""

import base64
import json
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mtl_keras.model import build_network
from mtl_keras.serving import ModelFacts, export
from mtl_keras.serving.answers import make_answer
from mtl_keras.serving.models import load_saved_model
from mtl_keras.serving.pictures import read_picture

ROOT = pathlib.Path(__file__).parents[1]
SIZE = (32, 64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    keras.utils.set_random_seed(3)
    network = build_network("mtl", "small", SIZE, 19)
    path = tmp_path_factory.mktemp("exports") / "model"
    export(network, path, facts=ModelFacts("train_ids"))
    return path


@pytest.fixture(scope="module")
def from_bytes(model):
    signature = tf.saved_model.load(model).signatures["from_bytes"]

    def call(contents):
        return {
            name: value.numpy()
            for name, value in signature(picture_bytes=tf.constant(contents)).items()
        }

    return call


def make_picture(height, width, seed=0):
    """Colours that change smoothly, so that JPEG keeps them."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 9, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def oriented(orientation):
    exif = Image.Exif()
    exif[0x010F] = "a camera"  # other tags come first
    exif[0x0112] = orientation
    return {"exif": exif, "quality": 95}


def with_alpha(picture):
    opacity = picture.convert("L")
    picture.putalpha(opacity)
    return picture


PICTURES = {
    **{f"orientation {k}": ("a.jpg", lambda p: p, oriented(k)) for k in range(1, 9)},
    "png": ("a.png", lambda p: p, {}),
    "alpha": ("a.png", with_alpha, {}),
    "palette": ("a.png", lambda p: p.convert("P"), {}),
    "grey png": ("a.png", lambda p: p.convert("L"), {}),
    "16 bits": (
        "a.png",
        lambda p: Image.fromarray(np.asarray(p.convert("L")).astype(np.uint16) * 257),
        {},
    ),
    "grey jpeg": ("a.jpg", lambda p: p.convert("L"), {"quality": 95}),
    "cmyk": ("a.jpg", lambda p: p.convert("CMYK"), {"quality": 95}),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_picture_is_answered_as_predict_does(kind, model, from_bytes, tmp_path):
    name, change, options = PICTURES[kind]
    path = tmp_path / name
    change(make_picture(70, 110)).save(path, **options)
    picture = read_picture(path)
    height, width = picture.shape[:2]
    outputs = load_saved_model(model).predict([picture])[0]
    expected = make_answer(outputs, (height, width), "train_ids")
    found = from_bytes([path.read_bytes()])
    assert found["size"].tolist() == [[height, width]]
    assert found["classes"].dtype == np.uint8
    assert np.mean(found["classes"][0] == expected.classes) > 0.999
    assert len(np.unique(expected.classes)) > 1
    np.testing.assert_allclose(
        found["disparity"][0], expected.disparity, rtol=1e-3, atol=1e-3
    )


def test_pictures_of_several_sizes_share_a_request(from_bytes, tmp_path):
    contents = []
    for k, size in enumerate([(20, 50), (90, 30), (32, 64)]):
        make_picture(*size, seed=k).save(tmp_path / "a.png")
        contents.append((tmp_path / "a.png").read_bytes())
    together = from_bytes(contents)
    assert together["size"].tolist() == [[20, 50], [90, 30], [32, 64]]
    assert together["classes"].shape == (3, 90, 64)
    for k, content in enumerate(contents):
        height, width = together["size"][k]
        alone = from_bytes([content])
        for name in ("classes", "offsets", "disparity"):
            inside = together[name][k, :height, :width]
            np.testing.assert_allclose(inside, alone[name][0], rtol=1e-3, atol=1e-3)
            outside = together[name][k].copy()
            outside[:height, :width] = 0
            assert not outside.any()


def test_votes_point_to_the_same_place_in_the_picture(model, from_bytes, tmp_path):
    """At twice the size, each vote is that of the nearest pixel, twice as far from
    the corner of the picture."""
    height, width = (2 * side for side in SIZE)
    # Pixels of two by two, so that no way of averaging makes a difference.
    small = np.asarray(make_picture(*SIZE))
    Image.fromarray(small.repeat(2, 0).repeat(2, 1)).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    offsets = load_saved_model(model).predict([picture])[0]["instance"]
    votes = np.moveaxis(np.indices(SIZE), 0, -1) + offsets
    expected = (votes + 0.5) * 2 - 0.5
    found = from_bytes([(tmp_path / "a.png").read_bytes()])["offsets"][0]
    found = found + np.moveaxis(np.indices((height, width)), 0, -1)
    for y in (0, 1):
        for x in (0, 1):
            np.testing.assert_allclose(found[y::2, x::2], expected, atol=1e-3)


@pytest.mark.parametrize("contents", [[b"hello"], [b""], []])
def test_what_is_not_a_picture_is_refused(from_bytes, contents):
    with pytest.raises(tf.errors.InvalidArgumentError):
        from_bytes(np.array(contents, object).astype("S"))


def test_the_request_of_the_readme_is_answered(from_bytes, tmp_path):
    """As TensorFlow Serving reads a body: values `{"b64": ...}` become bytes."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (body,) = re.findall(r"```json\n(\{.*?\})\n```", text, re.DOTALL)
    request = json.loads(body)
    assert request["signature_name"] == "from_bytes"
    contents = [
        base64.b64decode(instance["b64"], validate=True)
        for instance in request["instances"]
    ]
    found = from_bytes(contents)
    assert found["size"].tolist() == [[2, 3]]
    assert found["classes"].shape == (1, 2, 3)


def test_other_classes_are_returned_by_index(tmp_path):
    keras.utils.set_random_seed(0)
    network = build_network("mtl", "small", SIZE, 5, tasks=("semantic",))
    export(network, tmp_path / "model")
    signature = tf.saved_model.load(tmp_path / "model").signatures["from_bytes"]
    make_picture(*SIZE).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    found = signature(picture_bytes=tf.constant([content]))
    assert set(found) == {"size", "classes"}
    image = read_picture(tmp_path / "a.png")[None]
    logits = np.asarray(network(image)["semantic"])
    np.testing.assert_array_equal(found["classes"][0], logits[0].argmax(-1))
