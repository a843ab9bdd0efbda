import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TREE_IMAGE_SIZE

from mtl_keras.data import augmentation, pipelines, records
from mtl_keras.data.augmentation import Augmentation
from mtl_keras.data.frames import resize_frame
from mtl_keras.instances import encode_offsets
from mtl_keras.losses import L1Norm
from mtl_keras.model import build_network
from mtl_keras.training import MultiTaskTrainer
from mtl_keras.weighting import UncertaintyWeighting

ROOT = pathlib.Path(__file__).parents[1]
ALL = ("semantic", "instance", "depth")


@pytest.fixture(scope="module")
def builder(street_tree, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("records")
    return records.prepare_cityscapes(street_tree, TREE_IMAGE_SIZE, ALL, data_dir)


def make_record(semantic=None, instance=None, disparity=None, source_width=8):
    """A record of 2x4 pixels."""
    maps = {
        "semantic": (semantic, np.uint8),
        "instance": (instance, np.uint16),
        "disparity": (disparity, np.uint16),
    }
    record = {
        name: tf.constant(np.array(values, dtype)[..., None])
        for name, (values, dtype) in maps.items()
        if values is not None
    }
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    return {"image": tf.constant(image), "source_width": source_width, **record}


ROAD, SKY, CAR, CARAVAN, VOID = 7, 23, 26, 29, 0


def test_semantic_targets():
    record = make_record(semantic=[[ROAD, SKY, CAR, CARAVAN], [VOID, 33, 6, 255]])
    expected = {
        "train_ids": [[0, 10, 13, 0], [0, 18, 0, 0]],
        "label_ids": [[7, 23, 26, 29], [0, 33, 6, 0]],
    }
    for label_set, classes in expected.items():
        image, targets, masks = pipelines.encode_record(
            record, ("semantic",), label_set
        )
        np.testing.assert_array_equal(targets["semantic"], classes)
        np.testing.assert_array_equal(masks["semantic"], [[1, 1, 1, 0], [0, 1, 0, 0]])
        assert image.dtype == tf.uint8 and targets["semantic"].dtype == tf.int32
        assert masks["semantic"].dtype == tf.float32


def test_instance_targets():
    record = make_record(
        instance=[[26001, 26001, 7, 24000], [26001, 26, 23, 24000]],
    )
    _, targets, masks = pipelines.encode_record(record, ("instance",), "train_ids")
    np.testing.assert_array_equal(masks["instance"], [[1, 1, 0, 1], [1, 0, 0, 1]])
    third = 1 / 3  # the car's centre is at (1/3, 1/3), the person's at (1/2, 3)
    offsets = [
        [(third, third), (third, third - 1), (0, 0), (0.5, 0)],
        [(third - 1, third), (0, 0), (0, 0), (-0.5, 0)],
    ]
    np.testing.assert_allclose(targets["instance"], offsets, atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_targets_lie_where_their_image_does(flip):
    """A bright car of 90x84 pixels at 32 places, shrunk by 8: the centre it votes for
    is that of its light."""
    apart, disparities = [], []
    for shift in range(32):
        car = np.zeros((256, 512), bool)
        car[60 + shift : 150 + shift, 200 + shift : 284 + shift] = True
        # Disparity falls by a quarter pixel a column, from 128 at the left edge.
        coded = np.broadcast_to(128 * 256 + 1 - 64 * np.arange(512), car.shape)
        frame = {
            "image": np.repeat(car[..., None], 3, axis=2).astype(np.uint8) * 255,
            "semantic": np.where(car, CAR, ROAD).astype(np.uint8),
            "instance": np.where(car, 26001, 0).astype(np.uint16),
            "disparity": coded.astype(np.uint16),
        }
        frame = resize_frame(frame, (32, 64))
        record = {
            kind: tf.constant(array if array.ndim == 3 else array[..., None])
            for kind, array in frame.items()
        }
        record["source_width"] = tf.constant(512)
        record = augmentation.flip(record, tf.constant(flip))
        image, targets, masks = pipelines.encode_record(record, ALL, "train_ids")
        light = image.numpy()[..., 0].astype(float)
        pixels = np.indices(light.shape)
        centre = (pixels * light).sum((1, 2)) / light.sum()
        on_car = masks["instance"].numpy() > 0
        votes = pixels[:, on_car].T + targets["instance"].numpy()[on_car]
        np.testing.assert_allclose(votes - votes[0], 0, atol=1e-5)
        apart.append(votes[0] - centre)
        # In pixels of this width: 16 at the left edge of the image, falling by a
        # quarter a column, whose centres are at 0.5, 1.5, ...; source pixels' at
        # 1/16, 3/16, ...
        expected = 16 - (np.arange(64) + 0.5 - 1 / 16) / 4
        depth = targets["depth"].numpy()[..., 0]
        disparities.append((depth[:, ::-1] if flip else depth) - expected)
    assert np.abs(np.mean(apart, axis=0)).max() < 0.1
    assert np.abs(np.mean(disparities)) < 0.1 / 4  # a tenth of a column
    assert np.abs(disparities).max() < 0.1 / 4


def test_depth_targets():
    record = make_record(
        semantic=[[ROAD, ROAD, ROAD, CAR], [SKY, SKY, VOID, VOID]],
        disparity=[[0, 1, 257, 1 + 256 * 7 + 128], [0, 513, 0, 1025]],
        source_width=8,
    )
    _, targets, masks = pipelines.encode_record(record, ("depth",), "train_ids")
    np.testing.assert_array_equal(masks["depth"], [[0, 1, 1, 1], [1, 1, 0, 1]])
    # In pixels of 4 columns instead of the source's 8; the sky is at infinity.
    expected = np.array([[0, 0, 0.5, 3.75], [0, 0, 0, 2]])
    assert targets["depth"].shape == (2, 4, 1)
    np.testing.assert_allclose(targets["depth"][..., 0], expected)


def test_depth_without_labels_masks_the_sky():
    record = make_record(disparity=[[0, 1, 257, 0], [0, 513, 0, 0]], source_width=4)
    _, targets, masks = pipelines.encode_record(record, ("depth",), "train_ids")
    np.testing.assert_array_equal(masks["depth"], [[0, 1, 1, 0], [0, 1, 0, 0]])
    np.testing.assert_allclose(targets["depth"][..., 0], [[0, 0, 1, 0], [0, 2, 0, 0]])


def test_only_the_chosen_tasks_are_encoded(builder):
    batch = next(
        iter(pipelines.make_dataset(builder, "val", ("depth",), "train_ids", 1))
    )
    assert [set(part) for part in batch[1:]] == [{"depth"}, {"depth"}]


def record_of(builder, number=0, split="train"):
    return list(builder.as_dataset(split, shuffle_files=False))[number]


def assert_equal(first, second):
    tf.nest.assert_same_structure(first, second)
    for one, two in zip(tf.nest.flatten(first), tf.nest.flatten(second)):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("label_set", ["label_ids", "train_ids"])
def test_eager_and_graph_agree(builder, label_set):
    batches = pipelines.make_dataset(builder, "train", ALL, label_set, 3)
    sizes = []
    number = 0
    for batch in batches:
        for i in range(len(batch[0])):
            encoded = pipelines.encode_record(
                record_of(builder, number), ALL, label_set
            )
            assert_equal(tf.nest.map_structure(lambda t: t[i], batch), encoded)
            number += 1
        sizes.append(len(batch[0]))
    assert sizes == [3, 1]
    image, targets, masks = batches.element_spec
    assert image.shape.as_list() == [None, 32, 64, 3]
    assert targets["instance"].shape.as_list() == [None, 32, 64, 2]
    assert masks["instance"].shape.as_list() == [None, 32, 64]


def test_a_flip_mirrors_everything_and_negates_dx(builder):
    record = record_of(builder)
    image, targets, masks = pipelines.encode_record(record, ALL, "label_ids")
    mirrored = augmentation.flip(record, tf.constant(True))
    other_image, other_targets, other_masks = pipelines.encode_record(
        mirrored, ALL, "label_ids"
    )
    assert masks["instance"].numpy().any()
    np.testing.assert_array_equal(other_image, image[:, ::-1])
    for task in ALL:
        np.testing.assert_array_equal(other_masks[task], masks[task][:, ::-1])
    expected = {task: target.numpy()[:, ::-1] for task, target in targets.items()}
    expected["instance"] = expected["instance"] * (1, -1)
    for task in ALL:
        np.testing.assert_allclose(other_targets[task], expected[task], atol=1e-5)
    assert_equal(augmentation.flip(record, tf.constant(False)), record)


def train_batches(builder, count=6, batch_size=2, flip=True, **options):
    batches = pipelines.make_training_dataset(
        builder,
        ALL,
        "train_ids",
        batch_size,
        augmentation=Augmentation(flip),
        **options,
    )
    return list(batches.take(count).as_numpy_iterator())


@pytest.fixture(params=["in memory", "read in every pass"])
def place(request, monkeypatch):
    if request.param != "in memory":
        monkeypatch.setattr(pipelines, "CACHE_BYTES", 0)


@pytest.mark.usefixtures("place")
def test_the_global_seed_changes_nothing(builder):
    expected = train_batches(builder, seed=3)
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)  # as train.py does
        assert_equal(train_batches(builder, seed=3), expected)
    before = tf.random.uniform([])
    keras.utils.set_random_seed(2)
    train_batches(builder, seed=3)
    assert tf.random.uniform([]) == before  # nor is it changed


@pytest.mark.usefixtures("place")
def test_same_seed_same_batches(builder):
    first, again, other = (train_batches(builder, seed=seed) for seed in (3, 3, 4))
    assert_equal(first, again)
    assert any((a[0] != b[0]).any() for a, b in zip(first, other))


@pytest.mark.usefixtures("place")
def test_training_goes_on_where_it_stopped(builder):
    whole = train_batches(builder, 7, seed=1)
    for first in (1, 2, 3, 6):
        rest = train_batches(builder, 7 - first, seed=1, first_step=first)
        assert_equal(whole[first:], rest)


@pytest.mark.usefixtures("place")
def test_every_pass_holds_every_frame_in_another_order(builder):
    stills = [record_of(builder, n)["image"].numpy().tobytes() for n in range(4)]
    batches = train_batches(builder, 24, batch_size=1, flip=False)
    order = [stills.index(image.tobytes()) for image, _, _ in batches]
    passes = [tuple(order[start : start + 4]) for start in range(0, 24, 4)]
    assert all(sorted(frames) == [0, 1, 2, 3] for frames in passes)
    assert len(set(passes)) > 1


@pytest.mark.usefixtures("place")
def test_few_frames_are_spread_over_the_split(builder):
    def images(num_frames):
        dataset = pipelines.make_dataset(
            builder, "train", ("depth",), "train_ids", 1, num_frames
        )
        return [batch[0].numpy().tobytes() for batch in dataset]

    everything = images(0)
    assert len(set(everything)) == 4
    assert images(2) == everything[::2]
    assert images(3) == [everything[i] for i in (0, 2, 3)]
    assert images(4) == images(9) == everything
    trained = train_batches(builder, count=4, batch_size=2, flip=False, num_frames=2)
    shown = {image.tobytes() for images, _, _ in trained for image in images}
    assert shown == {np.frombuffer(i, np.uint8).tobytes() for i in everything[::2]}


def test_half_of_the_frames_are_mirrored(builder):
    stills = [record_of(builder, n)["image"].numpy() for n in range(4)]
    mirrored = 0
    for image, _, _ in train_batches(builder, 60, batch_size=1):
        is_still = any((image[0] == still).all() for still in stills)
        is_mirrored = any((image[0] == still[:, ::-1]).all() for still in stills)
        assert is_still != is_mirrored
        mirrored += is_mirrored
    assert 15 < mirrored < 45


def test_splits_too_large_for_the_memory(builder, monkeypatch):
    cached = list(pipelines.make_dataset(builder, "train", ALL, "train_ids", 2))
    monkeypatch.setattr(pipelines, "CACHE_BYTES", 0)
    monkeypatch.setattr(pipelines, "SHUFFLE_BYTES", 2 * 32 * 64 * 8)
    assert_equal(
        list(pipelines.make_dataset(builder, "train", ALL, "train_ids", 2)), cached
    )
    images = [
        image.tobytes() for image, _, _ in train_batches(builder, 4, 1, flip=False)
    ]
    assert len(set(images)) == 4


def test_ids_are_in_the_order_of_the_data(builder):
    assert pipelines.load_ids(builder, "train") == [
        f"streets_{index:06d}_000019" for index in range(4)
    ]


def test_frames_without_a_label_are_masked(builder):
    ((_, _, masks),) = pipelines.make_dataset(builder, "test", ALL, "train_ids", 4)
    for task in ALL:
        assert not masks[task].numpy().any()


def test_training_survives_frames_without_a_target():
    """No instance and no disparity in the whole batch."""
    record = {
        "image": tf.zeros((32, 64, 3), tf.uint8),
        "semantic": tf.fill((32, 64, 1), tf.constant(ROAD, tf.uint8)),
        "instance": tf.fill((32, 64, 1), tf.constant(ROAD, tf.uint16)),
        "disparity": tf.zeros((32, 64, 1), tf.uint16),
        "source_width": 64,
    }
    element = pipelines.encode_record(record, ALL, "train_ids")
    batch = tf.nest.map_structure(lambda tensor: tensor[None], element)
    _, _, masks = batch
    assert masks["semantic"].numpy().all()
    assert not masks["instance"].numpy().any() and not masks["depth"].numpy().any()
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network = build_network(backbone="small", image_size=(32, 64), num_classes=19)
    trainer = MultiTaskTrainer(
        network,
        {
            "semantic": cross_entropy,
            "instance": L1Norm(),
            "depth": keras.losses.MeanAbsoluteError(),
        },
        UncertaintyWeighting(
            {"semantic": "softmax", "instance": "laplace", "depth": "laplace"}
        ),
    )
    trainer.compile("adam", run_eagerly=True)
    logs = trainer.train_on_batch(*batch, return_dict=True)
    empty = {name for name, value in logs.items() if not np.isfinite(value)}
    assert empty == {"instance/loss", "depth/loss"}  # there is none
    sigmas = trainer.weighting.sigmas()
    assert sigmas["instance"] == sigmas["depth"] == 1.0 != sigmas["semantic"]
    for variable in network.variables:
        assert np.isfinite(variable.numpy()).all(), variable.path


def test_pipelines_do_not_tune_themselves(builder):
    """An iterator would be kept at its end until the tuner's thread wakes."""
    arguments = (("semantic",), "train_ids", 2)
    for batches in (
        pipelines.make_training_dataset(builder, *arguments),
        pipelines.make_dataset(builder, "val", *arguments),
    ):
        assert batches.options().autotune.enabled is False
        assert len(next(iter(batches))[0]) == 2


@pytest.mark.parametrize("ids", [(), (26000,), (24000, 26001, 33999, 65534, 65535, 26)])
def test_offsets_are_those_of_numpy_to_the_last_digit(ids):
    rng = np.random.default_rng(0)
    record = {"instance": rng.choice([7, 11, *ids], (37, 53, 1)).astype(np.uint16)}
    found, mask = pipelines.ENCODERS["instance"](record, "train_ids", "zero")
    expected, inside = encode_offsets(record["instance"][..., 0])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(mask, inside)
    assert found.dtype == tf.float32


def test_no_python_runs_in_the_pipelines(builder):
    """It could be called while the process ends, which then hangs."""
    batches = pipelines.make_training_dataset(builder, ALL, "train_ids", 2)
    graph = batches._as_serialized_graph().numpy()
    assert b"PyFunc" not in graph and b"encode" not in graph


ENDS = """
import sys
from mtl_keras.data import augmentation, pipelines, records
from mtl_keras.data.augmentation import Augmentation

tasks = ("semantic", "instance", "depth")
builder = records.prepare_cityscapes(sys.argv[1], (32, 64), tasks, sys.argv[2])
batches = iter(pipelines.make_training_dataset(builder, tasks, "train_ids", 2))
for _ in range(1000):
    next(batches)
print("read", flush=True)
"""  # and ends with the iterator open


@pytest.mark.slow
def test_processes_end_while_they_read(builder, street_tree):
    """Twenty of them, two at a time."""
    data_dir = builder.data_path.parents[2]
    command = [sys.executable, "-c", ENDS, street_tree, data_dir]
    for _ in range(10):
        pair = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for _ in range(2)
        ]
        try:
            for process in pair:
                assert process.communicate(timeout=120)[0] == "read\n"
                assert process.returncode == 0
        finally:
            for process in pair:
                process.kill()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("num_frames", [0, 3])
def test_frames_of_a_batch_are_named(builder, num_frames):
    settings = {"seed": 5, "num_frames": num_frames}
    stored = {
        os.fsdecode(record["id"].numpy()): record["image"].numpy()
        for record in builder.as_dataset("train", shuffle_files=False)
    }
    batches = train_batches(builder, count=5, flip=False, **settings)
    for step, (images, _, _) in enumerate(batches):
        names = pipelines.load_training_ids(builder, 2, step=step, **settings)
        np.testing.assert_array_equal(images, [stored[name] for name in names])
