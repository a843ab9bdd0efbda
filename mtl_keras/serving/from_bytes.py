"""From encoded pictures to answers at their own sizes, as a TensorFlow graph.

It does what `predict` does with NumPy and OpenCV, so that a server needs nothing else.
"""

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from mtl_keras.hints import Size

EXIF_HEADER = b"Exif\0\0"
EXIF_REACH = 2**16  # bytes from the start of a file in which its EXIF data begin
ORIENTATION_TAG = 0x0112


def build_from_bytes(
    serve: Callable[[tf.Tensor], Mapping[str, tf.Tensor]],
    image_size: Size,
    tasks: Sequence[str],
    label_ids: Sequence[int],
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """A function of encoded pictures.

    Args:
        serve: function from images `(batch, h, w, 3)` uint8 to a dict of tensors by
            task, as `build_serving_model` says.
        image_size: `(h, w)`.
        tasks: those of `serve`'s outputs that are enlarged.
        label_ids: what each class index is returned as, in 0..255.

    Returns:
        A `tf.function` of `picture_bytes` `(batch,)`, PNG or JPEG files of any sizes,
        that returns a dict: `size` `(batch, 2)` int32, height and width of each
        picture of `H` x `W` pixels at most; `classes` `(batch, H, W)` uint8 for
        `semantic`; `offsets` `(batch, H, W, 2)` float32, `(dy, dx)` in pixels of the
        picture, for `instance`; `disparity` `(batch, H, W)` float32 in pixels of the
        picture for `depth`. Beyond a picture's own size they are 0.

        The EXIF orientation of a JPEG is applied, and what is transparent in a PNG
        becomes white.
    """

    def read(content):
        picture = _decode(content)
        return _fit(picture, image_size), tf.shape(picture)[:2]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "picture_bytes")])
    def from_bytes(picture_bytes):
        tf.debugging.assert_positive(
            tf.size(picture_bytes), "picture_bytes must hold at least one picture."
        )
        images, sizes = tf.map_fn(
            read,
            picture_bytes,
            fn_output_signature=(
                tf.TensorSpec((*image_size, 3), tf.uint8),
                tf.TensorSpec((2,), tf.int32),
            ),
        )
        largest = tf.reduce_max(sizes, axis=0)
        outputs = serve(images)
        return {"size": sizes} | {
            name: _enlarge_all(outputs[task], sizes, largest, enlarge, dtype)
            for task, (name, enlarge, dtype) in _enlargers(label_ids).items()
            if task in tasks
        }

    return from_bytes


def _enlarge_all(maps, sizes, largest, enlarge, dtype):
    """Enlarges each map to its size, with 0 around it up to the largest."""

    def enlarge_one(arguments):
        large = enlarge(*arguments)
        around = tf.stack([tf.zeros(2, tf.int32), largest - arguments[1]], axis=1)
        others = tf.zeros((tf.rank(large) - 2, 2), tf.int32)
        return tf.pad(large, tf.concat([around, others], axis=0))

    return tf.map_fn(
        enlarge_one, (maps, sizes), fn_output_signature=tf.TensorSpec(None, dtype)
    )


def _enlargers(label_ids):
    """By task: the name of the output, how it is made from a small map, its dtype."""

    def decide_classes(probabilities, size):
        # Decided after they are enlarged: borders are not in steps.
        index = tf.argmax(tf.image.resize(probabilities, size), axis=-1)
        return tf.gather(tf.constant(label_ids, tf.uint8), index)

    def move_votes(offsets, size):
        # The nearest vote, since a mean of votes for two objects is one for none.
        small = tf.shape(offsets)[:2]
        scale = tf.cast(size, tf.float32) / tf.cast(small, tf.float32)
        votes = (_positions(small) + offsets + 0.5) * scale - 0.5
        nearest = tf.image.resize(votes, size, method="nearest")
        return nearest - _positions(size)

    def enlarge_disparity(disparity, size):
        scale = size[1] / tf.shape(disparity)[1]
        return tf.image.resize(disparity, size)[..., 0] * tf.cast(scale, tf.float32)

    return {
        "semantic": ("classes", decide_classes, tf.uint8),
        "instance": ("offsets", move_votes, tf.float32),
        "depth": ("disparity", enlarge_disparity, tf.float32),
    }


def _positions(size):
    """`(row, column)` of every pixel, `(height, width, 2)` float32."""
    rows, columns = tf.meshgrid(tf.range(size[0]), tf.range(size[1]), indexing="ij")
    return tf.cast(tf.stack([rows, columns], axis=-1), tf.float32)


def _fit(picture, image_size):
    """Averaged where it shrinks, then interpolated where it grows; see
    `data.frames.resize_smoothly`."""
    smaller = tf.minimum(tf.shape(picture)[:2], image_size)
    averaged = tf.round(tf.image.resize(picture, smaller, method="area"))
    return tf.cast(tf.round(tf.image.resize(averaged, image_size)), tf.uint8)


def _decode(content):
    """A PNG or JPEG file as RGB `(H, W, 3)` uint8, upright."""

    def decode_jpeg():
        picture = tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE")
        return _turn_upright(picture, _find_orientation(content))

    def decode_png():
        picture = tf.cast(tf.io.decode_png(content, channels=4), tf.float32)
        color, opacity = picture[..., :3], picture[..., 3:] / 255
        return tf.cast(tf.round(color * opacity + 255 * (1 - opacity)), tf.uint8)

    return tf.cond(tf.io.is_jpeg(content), decode_jpeg, decode_png)


def _turn_upright(picture, orientation):
    """Turns and mirrors a picture by its EXIF orientation in 1..8."""

    def apply(orientations, change, picture):
        chosen = tf.reduce_any(orientation == tf.constant(orientations))
        return tf.cond(chosen, lambda: change(picture), lambda: picture)

    picture = apply([5, 6, 7, 8], lambda x: tf.transpose(x, (1, 0, 2)), picture)
    picture = apply([2, 3, 6, 7], lambda x: tf.reverse(x, [1]), picture)
    return apply([3, 4, 7, 8], lambda x: tf.reverse(x, [0]), picture)


def _find_orientation(content):
    """The EXIF orientation of a JPEG file, 1 if it says nothing."""
    start = tf.strings.substr(content, 0, EXIF_REACH)
    head = tf.cast(tf.io.decode_raw(start, tf.uint8), tf.int32)
    head = tf.pad(head, [[0, 16]])
    count = tf.size(head) - len(EXIF_HEADER) + 1
    matches = tf.reduce_all(
        [head[i : count + i] == byte for i, byte in enumerate(EXIF_HEADER)], axis=0
    )
    headers = tf.where(matches)[:, 0]
    return tf.cond(
        tf.size(headers) > 0,
        lambda: _read_orientation(head[headers[0] + len(EXIF_HEADER) :]),
        lambda: tf.constant(1),
    )


def _read_orientation(tiff):
    """The orientation that a TIFF header and its first directory give."""
    is_little = tiff[0] == ord("I")

    def number_at(positions, length):
        positions = tf.convert_to_tensor(positions)[..., None] + tf.range(length)
        values = tf.gather(tiff, tf.clip_by_value(positions, 0, tf.size(tiff) - 1))
        values = tf.cond(is_little, lambda: values[..., ::-1], lambda: values)
        return tf.reduce_sum(values * 256 ** tf.range(length)[::-1], axis=-1)

    directory = number_at(4, 4)
    entries = directory + 2 + 12 * tf.range(number_at(directory, 2))
    found = tf.boolean_mask(
        number_at(entries + 8, 2), number_at(entries, 2) == ORIENTATION_TAG
    )
    value = tf.concat([found, [1]], axis=0)[0]
    return tf.where((value >= 1) & (value <= 8), value, 1)
