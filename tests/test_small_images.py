"""Classification and reconstruction of small images."""

import io
import json
import urllib.error

import keras
import numpy as np
import pytest

from mtl_keras import FixedWeighting, MultiTaskTrainer, UncertaintyWeighting
from mtl_keras.data import small_images as small
from mtl_keras.data.batches import Batch
from mtl_keras.errors import UserError
from mtl_keras.experiments.constant_predictor import ConstantPredictor
from mtl_keras.figures import small_images as pictures
from mtl_keras.model import build_small_network
from mtl_keras.tasks import make_losses, make_metrics

BOTH = ("class", "reconstruction")


@pytest.fixture(scope="module")
def digits():
    return {split: small.load_split("digits", split) for split in small.SPLITS}


def test_digits_are_split_once_and_for_all(digits):
    (images, labels), (val_images, val_labels) = digits["train"], digits["val"]
    assert images.shape == (1297, 8, 8, 1) and val_images.shape == (500, 8, 8, 1)
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    assert images.min() == 0 and images.max() == 255
    share = np.bincount(labels) / len(labels)
    np.testing.assert_allclose(np.bincount(val_labels) / 500, share, atol=0.002)
    again = small.load_split("digits", "val")
    np.testing.assert_array_equal(again[0], val_images)
    train = {image.tobytes() for image in images}
    # A digit or two occur twice in the data themselves.
    assert sum(image.tobytes() in train for image in val_images) < 5


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="'mnist'.*fashion_mnist, digits"):
        small.load_split("mnist", "train")
    with pytest.raises(UserError, match="'test'.*train, val"):
        small.load_split("digits", "test")
    with pytest.raises(UserError, match="'depth'.*class, reconstruction"):
        build_small_network((8, 8), tasks=("depth",))
    with pytest.raises(UserError, match="at least 4x4"):
        build_small_network((3, 8))


def test_no_connection_is_said_in_a_sentence(tmp_path, monkeypatch):

    def fail(url, timeout):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(UserError, match="take the data set digits") as caught:
        small.load_split("fashion_mnist", "train", tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.tmp*"))


def test_fashion_mnist_comes_as_arrays(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def generate(count):
        for i in range(count):
            yield i, {"image": np.full((28, 28, 1), i, np.uint8), "label": i % 10}

    def make_splits(self, dl_manager):
        return {"train": generate(30), "test": generate(20)}

    probed = []

    def probe(url, timeout):
        probed.append(url)
        return io.BytesIO()

    builder = tfds.builder_cls("fashion_mnist")
    monkeypatch.setattr(builder, "_split_generators", make_splits)
    monkeypatch.setattr("urllib.request.urlopen", probe)
    for split, count in {"train": 30, "val": 20}.items():
        images, labels = small.load_split("fashion_mnist", split, tmp_path)
        assert images.shape == (count, 28, 28, 1) and images.dtype == np.uint8
        assert labels.shape == (count,) and labels.dtype == np.int32
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 10, labels)
        assert sorted(images[:, 0, 0, 0]) == list(range(count))
    assert len(probed) == 1  # records are made once


def test_some_rows_are_taken_evenly():
    rows = np.arange(10), np.arange(10) + 1
    images, labels = small.take_evenly(*rows, 5)
    np.testing.assert_array_equal(images, [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(labels, images + 1)
    assert len(small.take_evenly(*rows, 7)[0]) == 7
    for count in (0, 10, 11):
        np.testing.assert_array_equal(small.take_evenly(*rows, count)[0], rows[0])


def numbered(count):
    """Images that tell their number, and their labels."""
    images = np.zeros((count, 4, 4, 1), np.uint8)
    images[:] = np.arange(count)[:, None, None, None]
    return images, np.arange(count, dtype=np.int32) % 10


def train_batches(count, **options):
    batches = small.make_training_dataset(*numbered(10), BOTH, 3, **options)
    return list(batches.take(count).as_numpy_iterator())


def test_elements():
    batches = list(small.make_dataset(*numbered(5), BOTH, 3).as_numpy_iterator())
    assert [len(images) for images, _, _ in batches] == [3, 2]
    images, targets, masks = batches[1]
    assert images.dtype == np.uint8 and images.shape == (2, 4, 4, 1)
    np.testing.assert_array_equal(targets["class"], [3, 4])
    assert targets["class"].dtype == np.int32
    np.testing.assert_allclose(targets["reconstruction"], images / 255.0, atol=1e-7)
    assert targets["reconstruction"].dtype == np.float32
    np.testing.assert_array_equal(masks["class"], np.ones(2))
    np.testing.assert_array_equal(masks["reconstruction"], np.ones((2, 4, 4)))
    for task in BOTH:
        assert masks[task].dtype == np.float32
        ((_, one_target, one_mask),) = small.make_dataset(*numbered(2), (task,), 3)
        assert set(one_target) == set(one_mask) == {task}


def test_same_seed_same_batches():
    keras.utils.set_random_seed(0)
    first, again, other = (train_batches(6, seed=seed) for seed in (3, 3, 4))
    order = [images[:, 0, 0, 0].tolist() for images, _, _ in first]
    assert order == [images[:, 0, 0, 0].tolist() for images, _, _ in again]
    assert order != [images[:, 0, 0, 0].tolist() for images, _, _ in other]
    for images, targets, _ in first:
        np.testing.assert_array_equal(targets["class"], images[:, 0, 0, 0])


def test_training_goes_on_where_it_stopped():
    keras.utils.set_random_seed(0)
    whole, rest = train_batches(9, seed=1), train_batches(5, seed=1, first_step=4)
    for (images, _, _), (others, _, _) in zip(whole[4:], rest, strict=True):
        np.testing.assert_array_equal(images, others)


def test_every_pass_holds_every_image_in_another_order():
    seen = [int(n) for images, _, _ in train_batches(10) for n in images[:, 0, 0, 0]]
    passes = [tuple(seen[start : start + 10]) for start in (0, 10, 20)]
    assert all(sorted(numbers) == list(range(10)) for numbers in passes)
    assert len(set(passes)) == 3


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (4, 4), (7, 12), (64, 48)])
def test_outputs_have_the_size_of_the_images(size):
    network = build_small_network(size)
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 1), np.uint8)
    outputs = network.predict(images, verbose=0)
    assert set(outputs) == set(BOTH)
    assert outputs["class"].shape == (3, 10)
    assert outputs["reconstruction"].shape == (3, *size, 1)
    for values in outputs.values():
        assert values.dtype == np.float32 and np.isfinite(values).all()
    assert (outputs["reconstruction"] >= 0).all()
    assert (outputs["reconstruction"] <= 1).all()
    as_float = network.predict(images.astype("float32"), verbose=0)
    np.testing.assert_allclose(as_float["class"], outputs["class"], rtol=1e-5)


def test_the_network_is_that_of_the_reproduction():
    """Kernels of the larger convolutional network, counted by hand."""
    network = build_small_network((28, 28))
    shapes = {
        layer.name: tuple(layer.kernel.shape)
        for layer in network.layers
        if hasattr(layer, "kernel")
    }
    assert shapes == {
        "encoder_conv1": (3, 3, 1, 32),
        "encoder_conv2": (3, 3, 32, 32),
        "encoder_conv3": (2, 2, 32, 32),
        "encoder_conv4": (2, 2, 32, 16),
        "encoder_conv5": (2, 2, 16, 16),
        "class_dense": (64, 128),
        "class": (128, 10),
        # Transposed: the channels that go out come first.
        "decoder_conv1": (2, 2, 16, 16),
        "decoder_conv2": (3, 3, 8, 16),
        "decoder_conv3": (2, 2, 4, 8),
        "decoder_conv4": (2, 2, 1, 4),
    }
    assert network.get_layer("code").output.shape == (None, 2, 2, 16)
    code = build_small_network((8, 8)).get_layer("code").output
    assert code.shape == (None, 2, 2, 4)


@pytest.mark.parametrize("task", BOTH)
def test_one_task_alone(task):
    network = build_small_network((8, 8), tasks=(task,))
    assert set(network.output) == {task}
    other = {"class": "decoder", "reconstruction": "class"}[task]
    assert not any(layer.name.startswith(other) for layer in network.layers)


def test_outputs_stay_float32_under_every_policy(set_policy):
    set_policy("mixed_bfloat16")
    for output in build_small_network((8, 8)).output.values():
        assert output.dtype == "float32"


def test_losses_and_metrics_by_hand():
    targets = {"class": np.array([1, 0]), "reconstruction": np.ones((2, 2, 2, 1))}
    # Of two classes alike, cross entropy log 2; both predicted as 0.
    outputs = {
        "class": np.zeros((2, 2), "float32"),
        "reconstruction": np.full((2, 2, 2, 1), 0.75, "float32"),
    }
    outputs["reconstruction"][1] = 0.25
    masks = {"class": np.ones(2), "reconstruction": np.ones((2, 2, 2))}
    found = {}
    for task, loss in make_losses(BOTH).items():
        found[task] = float(loss(targets[task], outputs[task], masks[task]))
        for metric in make_metrics(task):
            metric.update_state(targets[task], outputs[task], masks[task])
            found[f"{task}/{metric.name}"] = float(metric.result())
    expected = {
        "class": np.log(2),
        "class/accuracy": 0.5,
        "reconstruction": 0.5,
        "reconstruction/mean_abs": 0.5,
        "reconstruction/rms": np.sqrt((0.25**2 + 0.75**2) / 2),
    }
    assert found == pytest.approx(expected)
    assert set(make_losses(("class",))) == {"class"}


def fit_constants(images, labels):
    return ConstantPredictor.fit(small.make_dataset(images, labels, BOTH, 64), 10)


def test_the_constant_predictor():
    images = np.zeros((3, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = [0, 51, 255]
    predictor = fit_constants(images, np.array([7, 2, 7], np.int32))
    restored = ConstantPredictor(**json.loads(json.dumps(vars(predictor))))
    targets = {"class": np.zeros(4, int), "reconstruction": np.zeros((4, 2, 2, 1))}
    predictions = restored.predict(targets)
    np.testing.assert_array_equal(predictions["class"].argmax(-1), [7] * 4)
    assert predictions["reconstruction"].shape == (4, 2, 2, 1)
    np.testing.assert_allclose(
        predictions["reconstruction"][3, ..., 0], [[0.2, 0], [0, 0]]
    )
    assert set(restored.predict({"class": targets["class"]})) == {"class"}


def test_no_other_constant_is_better(digits):
    """The median minimizes the mean absolute error, the majority the misses."""
    images, labels = digits["train"]
    predictor = fit_constants(images, labels)
    truth = images / 255.0
    own = predictor.predict({"class": labels, "reconstruction": truth})
    error = np.abs(own["reconstruction"] - truth).mean()
    assert error <= np.abs(truth.mean(0) - truth).mean()
    assert error <= np.abs(truth).mean()
    hits = (own["class"].argmax(-1) == labels).mean()
    assert hits == np.bincount(labels).max() / len(labels)


@pytest.mark.parametrize("tasks", [BOTH, *((task,) for task in BOTH)])
def test_pictures(tasks, digits, tmp_path):
    images, labels = digits["val"][0][:25], digits["val"][1][:25]
    everything = {"class": labels, "reconstruction": images / 255.0}
    targets = {task: everything[task] for task in tasks}
    predictions = build_small_network((8, 8), tasks=tasks).predict(images, verbose=0)
    path = tmp_path / "gallery.png"
    gallery = pictures.SmallImageGallery(path, 25, small.CLASS_NAMES["digits"])
    for start in (0, 10, 20):
        part = slice(start, start + 10)
        gallery.update(
            Batch(
                [""] * len(images[part]),
                images[part],
                {task: target[part] for task, target in targets.items()},
                {},
            ),
            {task: output[part] for task, output in predictions.items()},
        )
    assert len(gallery.rows) == 20
    np.testing.assert_array_equal(gallery.rows[-1].image, images[-1])
    assert gallery.result() == {}
    assert path.read_bytes().startswith(b"\x89PNG")
    pictures.plot_reconstructions(images[:3], {}, predictions, tmp_path / "few.png")
    assert (tmp_path / "few.png").exists()


@pytest.mark.parametrize(
    "weighting",
    [
        FixedWeighting({"class": 0.5, "reconstruction": 0.5}),
        UncertaintyWeighting({"class": "softmax", "reconstruction": "laplace"}),
    ],
)
def test_it_learns(weighting, digits):
    """Both tasks are far better than the constant predictor after a few passes."""
    images, labels = digits["train"]
    truth = images / np.float32(255)
    targets = {"class": labels, "reconstruction": truth}
    constant = fit_constants(images, labels).predict(targets)
    error = np.abs(constant["reconstruction"] - truth).mean()
    keras.utils.set_random_seed(0)
    trainer = MultiTaskTrainer(
        build_small_network((8, 8)),
        make_losses(BOTH),
        weighting,
        {task: make_metrics(task) for task in BOTH},
    )
    trainer.compile(keras.optimizers.Adam(5e-3))
    trainer.fit(images, targets, batch_size=64, epochs=20, verbose=0)
    logs = trainer.evaluate(images, targets, verbose=0, return_dict=True)
    assert logs["class/accuracy"] > 0.8
    assert logs["reconstruction/mean_abs"] < 0.9 * error
