"""Augmentation of training frames: crops of a random scale, flips, colours.

Frames are mirrored as records, which takes a third of the time that it takes with
encoded targets. The other functions take and return what `pipelines.encode_record` does
for one frame, an `(image, targets, masks)`. Whatever is random is an argument, and
shapes follow from shapes, so that all of them compile under XLA as well as they run in
`tf.data`.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import tensorflow as tf

from mtl_keras.data.resizing import nearest_pixels
from mtl_keras.hints import Size

Record: TypeAlias = dict[str, tf.Tensor]
Element: TypeAlias = tuple[tf.Tensor, dict[str, tf.Tensor], dict[str, tf.Tensor]]

# What a task's values are multiplied by when the image grows by a factor: whether they
# are lengths on the grid of pixels.
LENGTHS = ("instance", "depth")
GREY = (0.299, 0.587, 0.114)  # luma of RGB, ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training frames are varied.

    Attributes:
        flip: bool, whether half of the frames are mirrored.
        crop: `(height, width)` of the crops, or `None` for whole frames.
        scales: `(low, high)`, the range that the scale of a crop is drawn from.
        jitter: float in 0..1, how far brightness, contrast and saturation may be from
            1; 0 leaves colours as they are.
    """

    flip: bool = True
    crop: Size | None = None
    scales: tuple[float, float] = (1.0, 1.0)
    jitter: float = 0.0

    def draw(self, seed: tf.Tensor) -> tf.Tensor:
        """What is random about a frame: `(7,)` float32 numbers in 0..1, the same for
        the same seed, `(2,)` integers. XLA would draw others."""
        return tf.random.stateless_uniform([7], seed, alg="philox")

    def apply(
        self, record: Record, encode: Callable[[Record], Element], draws: tf.Tensor
    ) -> Element:
        """Encodes one frame and varies it by what `draw` returns.

        Args:
            record: dict of tensors, the features of the builder.
            encode: turns a record into an `(image, targets, masks)`.
            draws: `(7,)` float32 numbers in 0..1.
        """
        draws = tf.unstack(draws)
        if self.flip:
            record = flip(record, draws[3] < 0.5)
        element = encode(record)
        if self.crop or self.scales != (1.0, 1.0):
            height, width = self.crop or element[0].shape[:2]
            low, high = self.scales
            scale = low + (high - low) * draws[0]
            top, left = draws[1:3]
            element = crop(element, (height, width), scale, top, left, low)
        if self.jitter:
            factors = [1 + self.jitter * (2 * draw - 1) for draw in draws[4:]]
            element = (jitter_colors(element[0], *factors), *element[1:])
        return element


def flip(record: Record, condition: tf.Tensor) -> Record:
    """Mirrors the image and the maps of a record horizontally if `condition` is true,
    a bool scalar. Centres of instances are found again by whoever encodes it."""

    def mirror():
        return {
            name: tf.reverse(tensor, [1]) if len(tensor.shape) == 3 else tensor
            for name, tensor in record.items()
        }

    return tf.cond(condition, mirror, lambda: record)


def crop(
    element: Element,
    size: Size,
    scale: tf.Tensor,
    top: tf.Tensor,
    left: tf.Tensor,
    smallest_scale: float = 1.0,
) -> Element:
    """A crop of a frame that is scaled.

    Lengths on the grid, which are offsets and disparity, are scaled with it. Votes
    still point to the centre of the whole object, inside the crop or not. Where the
    scaled frame is smaller than the crop, the rest is black and masked.

    Args:
        element: `(image, targets, masks)`.
        size: `(height, width)` of the crop in pixels.
        scale: float scalar, the factor by which the frame grows.
        top, left: float scalars in 0..1, where the crop lies: 0 at the upper or left
            edge, 1 at the lower or right one.
        smallest_scale: float, the smallest that `scale` may be. It decides how many
            pixels are averaged where the frame shrinks.
    """
    image, targets, masks = element
    rows = _place(tf.shape(image)[0], size[0], scale, top)
    columns = _place(tf.shape(image)[1], size[1], scale, left)
    inside = rows.inside[:, None] & columns.inside[None]

    def pick(tensor):
        return tf.gather(tf.gather(tensor, rows.nearest), columns.nearest, axis=1)

    masks = {task: tf.where(inside, pick(mask), 0) for task, mask in masks.items()}
    scaled = {}
    for task, target in targets.items():
        values = pick(target)
        if task == "instance":  # from the centre of the new pixel, not of the nearest
            rest = tf.stack(
                tf.meshgrid(rows.rest, columns.rest, indexing="ij"), axis=-1
            )
            values = tf.where(masks[task][..., None] > 0, values + rest, 0.0)
        if task in LENGTHS:
            values = values * scale
        scaled[task] = tf.where(
            tf.reshape(inside, [*inside.shape, *[1] * (len(values.shape) - 2)]),
            values,
            tf.zeros_like(values),
        )
    taps = 2 * max(1, int(-(-1 // smallest_scale)))
    pixels = image
    for axis, place in enumerate((rows, columns)):
        pixels = _interpolate(pixels, place, scale, taps, axis)
    pixels = tf.where(inside[..., None], tf.round(pixels), 0.0)
    return tf.cast(pixels, image.dtype), scaled, masks


def jitter_colors(
    image: tf.Tensor, brightness: tf.Tensor, contrast: tf.Tensor, saturation: tf.Tensor
) -> tf.Tensor:
    """An image with other colours.

    Args:
        image: `(H, W, 3)` uint8 RGB.
        brightness: float scalar, the factor of all values.
        contrast: float scalar, the factor of their distance from the mean grey.
        saturation: float scalar, the factor of their distance from the pixel's grey.
    """
    pixels = tf.cast(image, tf.float32) * brightness
    grey = tf.reduce_sum(pixels * GREY, axis=-1, keepdims=True)
    pixels = grey + (pixels - grey) * saturation
    mean = tf.reduce_mean(grey)
    pixels = mean + (pixels - mean) * contrast
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the pixels of a crop lie in the source, along one axis.

    `centre` is their position among the centres of the source's pixels, `(n,)`
    float32, `nearest` the index of the pixel there, `rest` how far that pixel lies
    beyond the centre, `inside` whether there is one.
    """

    centre: tf.Tensor
    nearest: tf.Tensor
    rest: tf.Tensor
    inside: tf.Tensor


def _place(source, target, scale, share):
    source = tf.cast(source, tf.float32)
    room = source * scale - target  # below 0 where the crop is larger
    # Whole pixels, so that a scale of 1 cuts and does not interpolate.
    start = tf.round(room * share)
    edge = (start + tf.range(target, dtype=tf.float32) + 0.5) / scale
    nearest = nearest_pixels(edge)
    last = tf.cast(source, tf.int32) - 1
    inside = (edge > 0) & (edge < source)
    nearest = tf.clip_by_value(nearest, 0, last)
    centre = edge - 0.5
    return _Place(centre, nearest, tf.cast(nearest, tf.float32) - centre, inside)


def _interpolate(pixels, place, scale, taps, axis):
    """Weighted means along an axis by a triangle as wide as a pixel of the crop, or of
    the source, whichever is larger: linear interpolation where the image grows."""
    width = tf.maximum(1 / scale, 1.0)
    first = tf.cast(tf.floor(place.centre), tf.int32) - taps // 2 + 1
    last = tf.shape(pixels)[axis] - 1
    total, weights = 0.0, 0.0
    shape = [-1, 1, 1] if axis == 0 else [1, -1, 1]
    for tap in range(taps):
        index = first + tap
        distance = tf.abs(tf.cast(index, tf.float32) - place.centre) / width
        weight = tf.reshape(tf.maximum(1 - distance, 0.0), shape)
        index = tf.clip_by_value(index, 0, last)
        picked = tf.gather(pixels, index, axis=axis)
        total += weight * tf.cast(picked, tf.float32)
        weights += weight
    return total / weights
