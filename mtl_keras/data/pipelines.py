"""tf.data pipelines: records to `(image, targets, masks)`."""

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from mtl_keras.cityscapes import (
    FIRST_INSTANCE_ID,
    SKY_ID,
    class_index_table,
    decode_disparity,
    evaluated_index_table,
)
from mtl_keras.data.augmentation import Augmentation
from mtl_keras.data.resizing import resize_record
from mtl_keras.data.spreading import is_taken_evenly
from mtl_keras.hints import Size
from mtl_keras.instances.offsets import NO_LABEL
from mtl_keras.tasks import TASKS

CACHE_BYTES = 2**31  # decoded records are kept in memory up to this size
SHUFFLE_BYTES = 2**30  # beyond it, this much of the files is shuffled at a time
BYTES_PER_PIXEL = 8  # of an image and the maps of all kinds


def make_training_dataset(
    builder: tfds.core.DatasetBuilder,
    tasks: Sequence[str],
    label_set: str,
    batch_size: int,
    seed: int = 0,
    first_step: int = 0,
    augmentation: Augmentation = Augmentation(),
    num_frames: int = 0,
    split: str = "train",
    image_size: Size | None = None,
) -> tf.data.Dataset:
    """Endless training batches, every pass over the split in an order of its own.

    The frames of a batch, and how they are varied, follow from the seed and the number
    of the step, so that a run that goes on at `first_step` sees what it would have
    seen. Frames that fit in memory are drawn by index. Others are read from all files
    side by side and shuffled a part at a time; what a pass held before `first_step` is
    read again.

    Args:
        builder: a prepared builder of `records`.
        tasks: the tasks to encode targets for.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        batch_size: int.
        seed: int.
        first_step: int. The step to begin with.
        augmentation: how frames are varied.
        num_frames: int. Frames to use, spread evenly over the split; 0 for all.
        split: str, or several with `+` between.
        image_size: `(height, width)` that frames are resized to before they are
            varied. Defaults to that of the records.

    Returns:
        `tf.data.Dataset` of batches of what `encode_record` returns.
    """
    frames = _Frames(builder, split, tasks, num_frames, image_size)

    def encode(record):
        return encode_record(record, tasks, label_set, frames.sky)

    def vary(number, record):
        draws = augmentation.draw(tf.stack([seed, number]))
        return augmentation.apply(record, encode, draws)

    return without_autotuning(
        frames.shuffle(seed, first_step * batch_size)
        .map(vary, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=True)
        .prefetch(4)
    )


def make_dataset(
    builder: tfds.core.DatasetBuilder,
    split: str,
    tasks: Sequence[str],
    label_set: str,
    batch_size: int,
    num_frames: int = 0,
    image_size: Size | None = None,
) -> tf.data.Dataset:
    """The batches of a split in the order of its frames, the last one as it comes.

    Arguments and elements are those of `make_training_dataset`.
    """
    frames = _Frames(builder, split, tasks, num_frames, image_size)
    return without_autotuning(
        frames.in_order()
        .map(
            lambda record: encode_record(record, tasks, label_set, frames.sky),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .batch(batch_size)
        .prefetch(4)
    )


def fill_up(dataset: tf.data.Dataset, multiple: int) -> tf.data.Dataset:
    """Adds masked elements to batches `(images, targets, masks)` until their size is a
    multiple of a number."""

    def fill(array):
        num_missing = -tf.shape(array)[0] % multiple
        others = [[0, 0]] * (array.shape.rank - 1)
        return tf.pad(array, [[0, num_missing], *others])

    return dataset.map(lambda *batch: tf.nest.map_structure(fill, batch))


def load_ids(builder: tfds.core.DatasetBuilder, split: str) -> list[str]:
    """The frame ids of a split, a list of str in the order of `make_dataset`."""
    ids = builder.as_dataset(split, decoders=tfds.decode.PartialDecoding({"id": True}))
    return [os.fsdecode(record["id"]) for record in ids.as_numpy_iterator()]


def load_training_ids(
    builder: tfds.core.DatasetBuilder,
    batch_size: int,
    seed: int = 0,
    step: int = 0,
    num_frames: int = 0,
    split: str = "train",
    image_size: Size | None = None,
) -> list[str]:
    """The frame ids of the batch of a step of `make_training_dataset`, whose arguments
    are the same, a list of str."""
    frames = _Frames(builder, split, (), num_frames, image_size, also=("id",))
    numbered = frames.shuffle(seed, step * batch_size).take(batch_size)
    return [os.fsdecode(record["id"].numpy()) for _, record in numbered]


def load_instance_ids(
    builder: tfds.core.DatasetBuilder,
    split: str,
    batch_size: int,
    image_size: Size | None = None,
) -> Iterator[np.ndarray]:
    """Yields the instance ids of the batches of `make_dataset`, `(batch, H, W)`."""
    frames = _Frames(builder, split, (), 0, image_size, also=("instance",))
    for record in without_autotuning(frames.decoded().batch(batch_size)):
        yield record["instance"].numpy()[..., 0]


def encode_record(
    record: Mapping[str, tf.Tensor],
    tasks: Sequence[str],
    label_set: str,
    sky: str = "zero",
) -> tuple[tf.Tensor, dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Turns one record into network input, targets and masks.

    Args:
        record: dict of tensors, the features of the builder.
        tasks: the tasks to encode.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        sky: str. `"zero"`: pixels of the sky have a disparity of 0, as it is infinitely
            far away. `"masked"`: the mask holds pixels with a measured one alone.

    Returns:
        `image`, `(H, W, 3)` uint8; `targets` by task: `semantic` `(H, W)` int32
        class indices, `instance` `(H, W, 2)` float32 `(dy, dx)` in pixels, `depth`
        `(H, W, 1)` float32 disparity in pixels of this width; and `masks` by task,
        `(H, W)` float32, 1 where the target is valid.
    """
    targets, masks = {}, {}
    for task in tasks:
        target, mask = ENCODERS[task](record, label_set, sky)
        targets[task] = target
        masks[task] = tf.cast(mask, tf.float32)
    return record["image"], targets, masks


def _encode_semantic(record, label_set, sky):
    ids = tf.cast(record["semantic"][..., 0], tf.int32)
    index = class_index_table(label_set)
    counts = (index >= 0) & (evaluated_index_table(label_set)[index] >= 0)
    # Both in one table, since looking up is what takes time here.
    table = 2 * np.maximum(index, 0) + counts
    coded = tf.gather(table.astype(np.int32), ids)
    return tf.bitwise.right_shift(coded, 1), tf.bitwise.bitwise_and(coded, 1) > 0


def _encode_instance(record, label_set, sky):
    """`instances.encode_offsets` in TensorFlow's operations, to the last digit."""
    ids = tf.cast(record["instance"][..., 0], tf.int32)
    mask = (ids >= FIRST_INSTANCE_ID) & (ids != NO_LABEL)
    pixels = tf.where(mask)
    _, index, count = tf.unique_with_counts(tf.gather_nd(ids, pixels))
    positions = tf.cast(pixels, tf.float64)
    sums = tf.math.unsorted_segment_sum(positions, index, tf.size(count))
    centres = sums / tf.cast(count, tf.float64)[:, None]
    votes = tf.cast(tf.gather(centres, index) - positions, tf.float32)
    size = tf.shape(ids, out_type=tf.int64)
    offsets = tf.scatter_nd(pixels, votes, tf.concat([size, [2]], 0))
    return tf.ensure_shape(offsets, (*ids.shape, 2)), mask


def _encode_depth(record, label_set, sky):
    coded = tf.cast(record["disparity"], tf.float32)
    scale = tf.shape(coded)[1] / record["source_width"]
    disparity = decode_disparity(coded) * tf.cast(scale, tf.float32)
    disparity = tf.where(coded > 0, disparity, 0.0)
    mask = coded[..., 0] > 0
    if "semantic" in record and sky == "zero":
        is_sky = record["semantic"] == SKY_ID
        disparity = tf.where(is_sky, 0.0, disparity)
        mask |= is_sky[..., 0]
    return disparity, mask


# An encoder turns a record, given the arguments of `encode_record`, into a target and
# its mask `(H, W)`, which is true where the target is valid.
ENCODERS = {
    "semantic": _encode_semantic,
    "instance": _encode_instance,
    "depth": _encode_depth,
}


class _Frames:
    """The records of a split, as far as tasks need them.

    Decoded, they are kept in memory if they fit there; else they are read again in
    every pass.
    """

    def __init__(self, builder, split, tasks, num_frames, image_size, also=("image",)):
        self.features = builder.info.features
        self.sky = builder.builder_config.sky
        self.image_size = image_size or builder.builder_config.image_size
        self.is_resized = self.image_size != builder.builder_config.image_size
        total = builder.info.splits[split].num_examples
        self.count = min(num_frames or total, total)
        kinds = {kind for task in tasks for kind in TASKS[task].labels}
        kinds |= {kind for task in tasks for kind in TASKS[task].optional_labels}
        self.maps = [name for name in self.features if name in {*also, *kinds}]
        self.builder, self.split, self.total = builder, split, total
        size = self.image_size
        self.fits = size is not None and (
            self.count * size[0] * size[1] * BYTES_PER_PIXEL <= CACHE_BYTES
        )

    def in_order(self):
        """All frames in their order."""
        return self.decoded().cache() if self.fits else self.decoded()

    def shuffle(self, seed, first):
        """Endless `(number, frame)`, from the number `first` on."""
        if self.fits:
            return self._shuffle_in_memory(seed, first)
        # A part at a time, read from all files side by side, as frames that follow one
        # another are of one city.
        splits = self.builder.info.splits  # a sum of splits does not know its bytes
        num_bytes = sum(splits[name].num_bytes for name in self.split.split("+"))
        buffer_size = max(SHUFFLE_BYTES * self.total // num_bytes, 1)

        records = self._read(side_by_side=True)

        def read_pass(number):
            # Of this function alone: with the global seed, `shuffle` takes no tensor.
            tf.random.set_seed(None)
            order = tf.random.stateless_uniform(
                [],
                tf.stack([seed, -1 - number]),  # apart from those of the frames
                minval=None,
                maxval=None,
                dtype=tf.int64,
                alg="philox",
            )
            return records.shuffle(
                buffer_size, seed=order, reshuffle_each_iteration=False
            )

        return (
            tf.data.Dataset.range(first // self.count, tf.int64.max)
            .flat_map(read_pass)
            .skip(first % self.count)
            .enumerate(first)
            .map(
                lambda number, record: (number, self._decode(record)),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
        )

    def _shuffle_in_memory(self, seed, first):
        frames = next(iter(without_autotuning(self.decoded().batch(self.count))))

        def pick(number):
            place, number_of_pass = number % self.count, number // self.count
            index = tf.random.experimental.index_shuffle(
                place, tf.stack([seed, number_of_pass]), self.count - 1
            )
            return number, {name: values[index] for name, values in frames.items()}

        return tf.data.Dataset.range(first, tf.int64.max).map(
            pick, num_parallel_calls=tf.data.AUTOTUNE
        )

    def decoded(self):
        """All frames in their order, without keeping them."""
        return self._read().map(self._decode, num_parallel_calls=tf.data.AUTOTUNE)

    def _read(self, side_by_side=False):
        """The records as they are stored."""
        is_part = self.count < self.total
        config = tfds.ReadConfig(
            # Reading all files side by side would number the frames otherwise.
            interleave_cycle_length=64 if side_by_side and not is_part else 1,
            interleave_block_length=1,
            enable_ordering_guard=False,
            try_autocache=False,
        )
        records = self.builder.as_dataset(
            self.split,
            shuffle_files=False,
            read_config=config,
            decoders=tfds.decode.PartialDecoding(
                dict.fromkeys(("source_width", *self.maps), True),
                {name: tfds.decode.SkipDecoding() for name in self.maps},
            ),
        )
        if is_part:
            records = (
                records.enumerate()
                .filter(lambda i, _: is_taken_evenly(i, self.count, self.total))
                .map(lambda _, record: record)
                .apply(tf.data.experimental.assert_cardinality(self.count))
            )
        return records

    def _decode(self, record):
        decoded = {"source_width": record["source_width"]}
        for name in self.maps:
            feature = self.features[name]
            decoded[name] = feature.decode_example(record[name])
        if self.is_resized:
            decoded = resize_record(decoded, self.image_size)
        return decoded


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The data set with the parallelism that it starts with, a thread per core.

    The thread that tunes sleeps between two looks, twice as long each time and up to
    a minute, and an iterator is not let go before it wakes: the end of every run
    would wait for it (seen in TensorFlow 2.21).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
