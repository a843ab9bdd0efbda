"""Crops, scales, flips and colours of training frames."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import TREE_IMAGE_SIZE

from mtl_keras.data import augmentation, pipelines, records
from mtl_keras.data.augmentation import Augmentation
from mtl_keras.data.frames import resize_frame
from mtl_keras.data.resizing import resize_record
from mtl_keras.instances import encode_offsets

ALL = ("semantic", "instance", "depth")
ROAD, CAR = 7, 26
SIZE = (64, 128)  # of the frames here
SLOPES = (3.7, 1.93)  # grey values per pixel; whole numbers would round alike
# scale, top, left
CROPS = [
    (1.0, 0.0, 0.0),
    (1.0, 0.6, 0.3),
    (0.7, 0.2, 0.9),
    (0.75, 0.5, 0.5),
    (0.5, 0.1, 0.7),
    (1.3, 0.4, 0.6),
    (2.0, 0.55, 0.45),
    (1.7, 1.0, 1.0),
]


def make_record(frame, source_width=None):
    record = {
        kind: tf.constant(array if array.ndim == 3 else array[..., None])
        for kind, array in frame.items()
    }
    width = source_width or frame["image"].shape[1]
    return {**record, "source_width": tf.constant(width)}


def make_ramp_frame(size=SIZE):
    """Grey values and disparity that rise with the position, and one large object."""
    rows, columns = np.indices(size)
    # Differently rounded in every row and column, so that the mean is not.
    down = rows * SLOPES[0] + columns * 0.618 % 1
    right = columns * SLOPES[1] + rows * 0.618 % 1
    ramp = np.stack([down - 0.5, right - 0.5, rows], axis=-1).clip(0)
    car = (rows > size[0] // 4) & (columns > size[1] // 4)
    return {
        "image": np.rint(ramp).astype(np.uint8),
        "semantic": np.where(car, CAR, ROAD).astype(np.uint8),
        "instance": np.where(car, 26001, ROAD).astype(np.uint16),
        "disparity": (256 * columns + 257).astype(np.uint16),  # column + 1
    }


def encode_record(record):
    return pipelines.encode_record(record, ALL, "train_ids")


def encode(frame, mirrored=False):
    return encode_record(augmentation.flip(make_record(frame), tf.constant(mirrored)))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("scale, top, left", CROPS)
def test_everything_agrees_to_a_tenth_of_a_pixel(scale, top, left, mirrored):
    """The image says for each pixel where in the frame it comes from."""
    frame = make_ramp_frame()
    element = encode(frame, mirrored)
    image, targets, masks = augmentation.crop(element, (32, 48), scale, top, left, 0.5)
    assert image.shape == (32, 48, 3) and image.dtype == tf.uint8
    inside = masks["semantic"].numpy() > 0
    assert inside.all()
    # Grey values are rounded: the ramps as lines through them.
    found = np.stack(
        [fit_line(image.numpy()[..., axis], axis) for axis in (0, 1)], axis=-1
    )
    slope = 1 / scale
    middle = (slice(2, -2), slice(2, -2))  # the edges of the frame bend the ramps
    for axis in (0, 1):
        steps = np.diff(found[middle][..., axis], axis=axis)
        sign = -1 if mirrored and axis == 1 else 1
        np.testing.assert_allclose(steps, sign * slope, atol=0.02)
    # Offsets: the centre of the object, wherever it is.
    on_car = masks["instance"].numpy() > 0
    car = frame["instance"] == 26001
    centre = np.argwhere(car).mean(axis=0)
    votes = targets["instance"].numpy() * (1, -1 if mirrored else 1)
    pointed = found + votes / scale
    np.testing.assert_allclose(
        pointed[on_car],
        np.broadcast_to(centre, pointed[on_car].shape),
        atol=0.1 / scale,
    )
    # Classes: their edges are where the image has them, but for the nearest pixel.
    is_car = (found[..., 0] > 16.5) & (found[..., 1] > 32.5)
    far = np.abs(found - (16.5, 32.5)).min(axis=-1) > 0.5
    np.testing.assert_array_equal(on_car[far], is_car[far])
    np.testing.assert_array_equal(targets["semantic"].numpy()[far] == 13, is_car[far])
    # Disparity: that of the nearest pixel, in pixels of the scaled frame.
    depth = targets["depth"].numpy()[..., 0] / scale
    assert np.abs(depth - (found[..., 1] + 1)).max() <= 0.5 + 0.1 / scale
    assert abs(np.mean(depth - (found[..., 1] + 1))) < 0.1 / scale


def fit_line(values, axis):
    """Values that rise evenly along an axis, without the rounding of each."""
    line = values.astype(float).mean(axis=1 - axis) / SLOPES[axis]
    index = np.arange(len(line))
    inner = slice(2, -2)
    slope, start = np.polyfit(index[inner], line[inner], 1)
    line = start + slope * index
    return np.broadcast_to(line[:, None] if axis == 0 else line, values.shape)


def test_a_checkerboard_keeps_its_fields():
    """Fields of 8 pixels, in image and classes: no crop tells them apart."""
    rows, columns = np.indices(SIZE) // 8
    light = (rows + columns) % 2 == 0
    frame = {
        **make_ramp_frame(),
        "image": np.repeat(light[..., None], 3, axis=-1).astype(np.uint8) * 255,
        "semantic": np.where(light, CAR, ROAD).astype(np.uint8),
    }
    for mirrored in (False, True):
        element = encode(frame, mirrored)
        for scale, top, left in CROPS:
            image, targets, _ = augmentation.crop(
                element, (32, 48), scale, top, left, 0.5
            )
            grey = image.numpy()[..., 0].astype(float) / 255
            classes = targets["semantic"].numpy() == 13
            # What the nearest pixel rounds is lost on both sides of an edge alike.
            assert abs((grey - classes).mean()) < 0.02
            assert (np.abs(grey - classes) > 0.5 + 1 / 255).mean() < 0.01
            shifted = [
                np.abs(grey - np.roll(classes, step, axis)).mean()
                for step in (-1, 1)
                for axis in (0, 1)
            ]
            assert np.abs(grey - classes).mean() < min(shifted)


def test_a_crop_at_scale_1_is_a_cut():
    element = encode(make_ramp_frame())
    image, targets, masks = augmentation.crop(element, (32, 48), 1.0, 0.5, 0.25)
    window = (slice(16, 48), slice(20, 68))
    np.testing.assert_array_equal(image, element[0].numpy()[window])
    for task in ALL:
        np.testing.assert_array_equal(masks[task], element[2][task].numpy()[window])
        np.testing.assert_allclose(
            targets[task], element[1][task].numpy()[window], atol=1e-5
        )


def test_centres_outside_the_crop_stay():
    frame = make_ramp_frame()
    _, targets, masks = augmentation.crop(encode(frame), (32, 48), 1.0, 0.0, 0.0)
    offsets, inside = encode_offsets(frame["instance"])
    np.testing.assert_array_equal(masks["instance"], inside[:32, :48])
    np.testing.assert_allclose(targets["instance"], offsets[:32, :48], atol=1e-5)
    assert (targets["instance"].numpy()[31, 47] > (8, 32)).all()  # far outside


def test_what_a_crop_finds_no_pixels_for_is_masked():
    element = encode(make_ramp_frame())
    image, targets, masks = augmentation.crop(element, (64, 128), 0.5, 0.5, 0.5, 0.5)
    expected = np.zeros((64, 128), bool)
    expected[16:48, 32:96] = True
    np.testing.assert_array_equal(masks["semantic"] > 0, expected)
    for task in ("instance", "depth"):
        assert not (masks[task].numpy() > 0)[~expected].any()
        assert not targets[task].numpy()[~expected].any()
    assert not image.numpy()[~expected].any()


def test_colours():
    rng = np.random.default_rng(0)
    image = tf.constant(rng.integers(0, 256, (9, 7, 3), np.uint8))
    np.testing.assert_array_equal(augmentation.jitter_colors(image, 1, 1, 1), image)
    grey = augmentation.jitter_colors(image, 1.0, 1.0, 0.0).numpy()
    assert (grey == grey[..., :1]).all()
    flat = augmentation.jitter_colors(image, 1.0, 0.0, 0.0).numpy()
    luma = (image.numpy() * np.array([0.299, 0.587, 0.114])).sum(-1).mean()
    np.testing.assert_allclose(flat, np.rint(luma))
    bright = augmentation.jitter_colors(image, 1.5, 1.0, 1.0).numpy()
    np.testing.assert_array_equal(bright, np.clip(np.rint(image.numpy() * 1.5), 0, 255))


def test_augmentation_follows_its_seed():
    record = make_record(make_ramp_frame())
    varied = Augmentation(crop=(32, 48), scales=(0.7, 2.0), jitter=0.4)

    def draw(seed):
        element = varied.apply(record, encode_record, varied.draw([seed, 5]))
        return tf.nest.flatten(element)

    for one, two in zip(draw(1), draw(1)):
        np.testing.assert_array_equal(one, two)
    images = {draw(seed)[0].numpy().tobytes() for seed in range(8)}
    assert len(images) == 8
    still = Augmentation(flip=False).apply(record, encode_record, varied.draw([1, 5]))
    for one, two in zip(tf.nest.flatten(still), tf.nest.flatten(encode_record(record))):
        np.testing.assert_array_equal(one, two)


def test_scales_and_places_fill_their_range():
    record = make_record(make_ramp_frame())
    varied = Augmentation(crop=(16, 16), scales=(0.7, 2.0), flip=False)
    scales, tops = [], []
    for seed in range(200):
        image, _, _ = varied.apply(record, encode_record, varied.draw([seed, 0]))
        image = image.numpy().astype(float)
        line = image[2:14].mean(axis=1)[:, 0] / SLOPES[0]
        scales.append(1 / np.polyfit(np.arange(2, 14), line, 1)[0])
        tops.append(image[0, 0, 2])
    assert 0.65 < min(scales) < 0.85 and 1.8 < max(scales) < 2.1
    assert abs(np.mean(scales) - 1.35) < 0.1
    assert min(tops) < 3 and max(tops) > 45


def test_augmentation_compiles():
    element = encode(make_ramp_frame())
    varied = Augmentation(flip=False, crop=(32, 48), scales=(0.7, 2.0), jitter=0.4)

    def vary(element, draws):
        return varied.apply(element, lambda encoded: encoded, draws)

    draws = varied.draw([3, 5])
    expected = vary(element, draws)
    found = tf.function(vary, jit_compile=True)(element, draws)
    for one, two in zip(tf.nest.flatten(found), tf.nest.flatten(expected)):
        assert one.shape == two.shape
        difference = np.abs(np.float64(one) - np.float64(two))
        # XLA rounds otherwise; a grey value, or a pixel halfway between two.
        assert (difference > 1.01).mean() < 0.01


def test_flips_compile():
    record = make_record(make_ramp_frame())
    flip = tf.function(augmentation.flip, jit_compile=True)
    for condition in (False, True):
        found = flip(record, tf.constant(condition))
        expected = augmentation.flip(record, tf.constant(condition))
        tf.nest.map_structure(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    "image_size", [(32, 64), (128, 256), (48, 100), (64, 128), (64, 300)]
)
def test_resizing_is_that_of_the_records(image_size):
    rng = np.random.default_rng(0)
    source = (128, 256)
    frame = {
        "image": rng.integers(0, 256, (*source, 3), np.uint8),
        "semantic": rng.integers(0, 34, source, np.uint8),
        "instance": rng.integers(0, 34, source, np.uint16),
        "disparity": rng.integers(0, 2**15, source, np.uint16),
    }
    expected = resize_frame(frame, image_size)
    found = resize_record(make_record(frame), image_size)
    for kind in ("semantic", "instance", "disparity"):
        np.testing.assert_array_equal(found[kind][..., 0], expected[kind])
    difference = np.abs(found["image"].numpy().astype(int) - expected["image"])
    is_exact = all(s % t == 0 for s, t in zip(source, image_size))
    assert difference.max() <= (0 if is_exact else 1)


@pytest.mark.parametrize("image_size", [(32, 64), (16, 32), (24, 40), (40, 96)])
def test_records_of_the_source_give_the_same_batches(street_tree, tmp_path, image_size):
    arguments = ("val", ALL, "train_ids", 2, 0, image_size)
    sky = "masked" if image_size == (16, 32) else "zero"
    small = records.prepare_cityscapes(street_tree, image_size, ALL, tmp_path)
    large = records.prepare_cityscapes(street_tree, None, ALL, tmp_path)
    assert large.builder_config.image_size is None
    small.builder_config.sky = large.builder_config.sky = sky
    pairs = zip(
        pipelines.make_dataset(small, *arguments),
        pipelines.make_dataset(large, *arguments),
        strict=True,
    )
    ids = zip(
        pipelines.load_instance_ids(small, "val", 2, image_size),
        pipelines.load_instance_ids(large, "val", 2, image_size),
        strict=True,
    )
    for (one, two), (these, those) in zip(pairs, ids, strict=True):
        np.testing.assert_array_equal(these, those)
        tf.nest.map_structure(np.testing.assert_array_equal, one[1:], two[1:])
        exact = all(s % t == 0 for s, t in zip(TREE_IMAGE_SIZE, image_size))
        difference = np.abs(one[0].numpy().astype(int) - two[0].numpy())
        assert difference.max() <= (0 if exact else 1)


def test_crops_of_records_of_the_source(street_tree, tmp_path):
    builder = records.prepare_cityscapes(street_tree, None, ALL, tmp_path)
    batches = pipelines.make_training_dataset(
        builder,
        ALL,
        "train_ids",
        2,
        augmentation=Augmentation(crop=(24, 40), scales=(0.7, 2.0), jitter=0.2),
        image_size=TREE_IMAGE_SIZE,
    )
    image, targets, masks = next(iter(batches))
    assert image.shape == (2, 24, 40, 3) and image.dtype == tf.uint8
    assert targets["instance"].shape == (2, 24, 40, 2)
    assert targets["depth"].shape == (2, 24, 40, 1)
    assert masks["semantic"].numpy().any()
    spec = batches.element_spec[0]
    assert spec.shape.as_list() == [2, 24, 40, 3]
