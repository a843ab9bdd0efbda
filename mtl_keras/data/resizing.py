"""Resizing of records in TensorFlow's operations, as `frames.resize_frame` does it."""

from collections.abc import Mapping

import tensorflow as tf

from mtl_keras.hints import Size


def resize_record(
    record: Mapping[str, tf.Tensor], image_size: Size
) -> dict[str, tf.Tensor]:
    """Resizes the maps of a record, all about the centres of their pixels.

    Ids and disparity are those that `frames.resize_frame` picks. The image is equal
    where the sides shrink by whole numbers that are powers of two, and else within a
    grey value, since OpenCV computes in fixed point.

    Args:
        record: dict of tensors; those of rank 3 are maps of one size.
        image_size: `(height, width)` in pixels.
    """
    resized = {}
    for name, value in record.items():
        if value.shape.rank != 3:
            resized[name] = value
        elif name == "image":
            resized[name] = resize_smoothly(value, image_size)
        else:
            size = tf.shape(value)
            rows = _nearest_in_grid(size[0], image_size[0])
            columns = _nearest_in_grid(size[1], image_size[1])
            resized[name] = tf.gather(tf.gather(value, rows), columns, axis=1)
    return resized


def resize_smoothly(image: tf.Tensor, image_size: Size) -> tf.Tensor:
    """An image averaged where it shrinks and interpolated linearly where it grows.

    Args:
        image: `(H, W, channels)` uint8.
        image_size: `(height, width)` in pixels.

    Returns:
        `(height, width, channels)` uint8.
    """
    pixels = tf.cast(image, tf.float32)
    size = tf.shape(image)
    # One axis after the other, as products with matrices: there is no faster way for
    # any size that also runs on a GPU.
    pixels = tf.tensordot(_weights(size[0], image_size[0]), pixels, 1)
    pixels = tf.einsum("cw,hwd->hcd", _weights(size[1], image_size[1]), pixels)
    # OpenCV rounds the mean of 2x2 pixels up at a half, and all other means to even.
    is_halved = tf.reduce_all(size[:2] == 2 * tf.constant(image_size))
    rounded = tf.where(is_halved, tf.floor(pixels + 0.5), tf.round(pixels))
    return tf.cast(rounded, tf.uint8)


def nearest_pixels(edge: tf.Tensor) -> tf.Tensor:
    """Index of the pixel in which a position lies, in pixels from the outer edge.

    On the edge between two pixels, the lower and the upper one are taken in turn.
    Always the same one would shift the labels against the image, and the other way in
    mirrored frames.

    Args:
        edge: `(n,)` float32.

    Returns:
        `(n,)` int32; of positions outside, too.
    """
    index = tf.cast(tf.floor(edge), tf.int32)
    between = tf.equal(edge, tf.floor(edge)) & (tf.range(tf.size(edge)) % 2 == 0)
    return index - tf.cast(between, tf.int32)


def _nearest_in_grid(source, target):
    """`nearest_pixels` of the centres of `target` pixels in a row of `source`, in
    whole numbers."""
    index = tf.range(target)
    position = (2 * index + 1) * source
    between = (position % (2 * target) == 0) & (index % 2 == 0)
    return position // (2 * target) - tf.cast(between, tf.int32)


def _weights(source, target):
    """The weight of each of `source` pixels in each of `target`,
    `(target, source)` float32: by the area they share, or linear if there are more."""
    source = tf.cast(source, tf.float32)
    factor = source / target
    index = tf.range(target, dtype=tf.float32)[:, None]
    pixel = tf.range(source)[None]

    def by_area():
        start, end = index * factor, (index + 1) * factor
        shared = tf.minimum(end, pixel + 1) - tf.maximum(start, pixel)
        return tf.maximum(shared, 0.0) / factor

    def linear():
        centre = tf.clip_by_value((index + 0.5) * factor - 0.5, 0.0, source - 1)
        return tf.maximum(1 - tf.abs(pixel - centre), 0.0)

    return tf.cond(source >= target, by_area, linear)
