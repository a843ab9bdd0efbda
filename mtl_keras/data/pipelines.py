"""tf.data pipelines: records to `(image, targets, masks)`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
from mtl_keras.instances.offsets import NO_LABEL

CACHE_BYTES = 2**31  # decoded records are kept in memory up to this size
SHUFFLE_BYTES = 2**30  # beyond it, this much is shuffled at a time


def make_training_dataset(
    builder: tfds.core.DatasetBuilder,
    tasks: Sequence[str],
    label_set: str,
    batch_size: int,
    seed: int = 0,
    first_step: int = 0,
    flip: bool = True,
    num_frames: int | None = None,
) -> tf.data.Dataset:
    """Endless training batches, every pass over the split in an order of its own.

    Order and augmentation follow from the seed (and TensorFlow's global one), so
    that a run that goes on at `first_step` sees what it would have seen.

    Args:
        builder: a prepared builder of `records`.
        tasks: the tasks to encode targets for.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        batch_size: int.
        seed: int.
        first_step: int. Batches to leave out at the start.
        flip: whether half of the frames are mirrored.
        num_frames: int. Frames to use, spread evenly over the split. Defaults to
            all.

    Returns:
        `tf.data.Dataset` of batches of what `encode_record` returns.
    """
    records, buffer_size = _load_records(builder, "train", num_frames)

    def augment(number, record):
        draw = tf.random.experimental.stateless_fold_in([seed, 0], number)
        if flip:
            record = flip_record(record, tf.random.stateless_uniform([], draw) < 0.5)
        return encode_record(record, tasks, label_set)

    return without_autotuning(
        records.shuffle(buffer_size, seed=seed)
        .repeat()
        .enumerate()
        .skip(first_step * batch_size)
        .map(augment, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size, drop_remainder=True)
        .prefetch(4)
    )


def make_dataset(
    builder: tfds.core.DatasetBuilder,
    split: str,
    tasks: Sequence[str],
    label_set: str,
    batch_size: int,
    num_frames: int | None = None,
) -> tf.data.Dataset:
    """The batches of a split in the order of its frames, the last one as it comes.

    Arguments and elements are those of `make_training_dataset`.
    """
    records, _ = _load_records(builder, split, num_frames)
    return without_autotuning(
        records.map(
            lambda record: encode_record(record, tasks, label_set),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .batch(batch_size)
        .prefetch(4)
    )


def load_ids(builder: tfds.core.DatasetBuilder, split: str) -> list[str]:
    """The frame ids of a split, a list of str in the order of `make_dataset`."""
    ids = builder.as_dataset(split, decoders=tfds.decode.PartialDecoding({"id": True}))
    return [os.fsdecode(record["id"]) for record in ids.as_numpy_iterator()]


def load_instance_ids(
    builder: tfds.core.DatasetBuilder, split: str, batch_size: int
) -> Iterator[np.ndarray]:
    """Yields the instance ids of the batches of `make_dataset`, `(batch, H, W)`."""
    only = tfds.decode.PartialDecoding({"instance": builder.info.features["instance"]})
    records = builder.as_dataset(split, decoders=only, shuffle_files=False)
    for record in without_autotuning(records.batch(batch_size)).as_numpy_iterator():
        yield record["instance"][..., 0]


def encode_record(
    record: Mapping[str, tf.Tensor], tasks: Sequence[str], label_set: str
) -> tuple[tf.Tensor, dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Turns one record into network input, targets and masks.

    Args:
        record: dict of tensors, the features of the builder.
        tasks: the tasks to encode.
        label_set: str, a key of `cityscapes.LABEL_SETS`.

    Returns:
        `image`, `(H, W, 3)` uint8; `targets` by task: `semantic` `(H, W)` int32
        class indices, `instance` `(H, W, 2)` float32 `(dy, dx)` in pixels, `depth`
        `(H, W, 1)` float32 disparity in pixels of this width; and `masks` by task,
        `(H, W)` float32, 1 where the target is valid.
    """
    targets, masks = {}, {}
    for task in tasks:
        target, mask = ENCODERS[task](record, label_set)
        targets[task] = target
        masks[task] = tf.cast(mask, tf.float32)
    return record["image"], targets, masks


def flip_record(
    record: Mapping[str, tf.Tensor], condition: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Mirrors all maps of a record horizontally if `condition` is true."""
    return {
        name: tf.cond(condition, lambda: tf.reverse(value, [1]), lambda: value)
        if value.shape.rank == 3
        else value
        for name, value in record.items()
    }


def _encode_semantic(record, label_set):
    ids = tf.cast(record["semantic"][..., 0], tf.int32)
    index = class_index_table(label_set)
    counts = (index >= 0) & (evaluated_index_table(label_set)[index] >= 0)
    # Both in one table, since looking up is what takes time here.
    table = 2 * np.maximum(index, 0) + counts
    coded = tf.gather(table.astype(np.int32), ids)
    return coded // 2, coded % 2 > 0


def _encode_instance(record, label_set):
    """`instances.encode_offsets` in TensorFlow's operations, to the last digit."""
    ids = tf.cast(record["instance"][..., 0], tf.int32)
    mask = (ids >= FIRST_INSTANCE_ID) & (ids != NO_LABEL)
    pixels = tf.where(mask)
    _, index, count = tf.unique_with_counts(tf.gather_nd(ids, pixels))
    positions = tf.cast(pixels, tf.float64)
    sums = tf.math.unsorted_segment_sum(positions, index, tf.size(count))
    centres = sums / tf.cast(count, tf.float64)[:, None]
    votes = tf.cast(tf.gather(centres, index) - positions, tf.float32)
    return tf.scatter_nd(pixels, votes, tf.TensorShape((*ids.shape, 2))), mask


def _encode_depth(record, label_set):
    coded = tf.cast(record["disparity"], tf.float32)
    scale = record["disparity"].shape[1] / record["source_width"]
    disparity = decode_disparity(coded) * tf.cast(scale, tf.float32)
    disparity = tf.where(coded > 0, disparity, 0.0)
    mask = coded[..., 0] > 0
    if "semantic" in record and "sky_is_masked" not in record:
        # The sky is infinitely far away: disparity 0, and valid.
        sky = record["semantic"] == SKY_ID
        disparity = tf.where(sky, 0.0, disparity)
        mask |= sky[..., 0]
    return disparity, mask


# An encoder turns a record, given the name of a label set, into a target and its mask
# `(H, W)`, which is true where the target is valid.
ENCODERS = {
    "semantic": _encode_semantic,
    "instance": _encode_instance,
    "depth": _encode_depth,
}


def _load_records(builder, split, num_frames):
    """The records of a split, cached if they fit, and how many to shuffle."""
    height, width = builder.builder_config.image_size
    frame_bytes = height * width * 8
    num_records = builder.info.splits[split].num_examples
    records = builder.as_dataset(split, shuffle_files=False)
    if builder.builder_config.sky == "masked":  # `_encode_depth` looks for the key
        records = records.map(lambda record: {**record, "sky_is_masked": True})
    if num_frames and num_frames < num_records:
        # Neighbouring frames are of one city and alike: take them evenly.
        records = (
            records.enumerate()
            .filter(lambda i, _: is_taken_evenly(i, num_frames, num_records))
            .map(lambda _, record: record)
            .apply(tf.data.experimental.assert_cardinality(num_frames))
        )
        num_records = num_frames
    if num_records * frame_bytes <= CACHE_BYTES:
        return records.cache(), num_records
    return records, max(SHUFFLE_BYTES // frame_bytes, 1)


def is_taken_evenly(index: Any, count: int, total: int) -> Any:
    """Whether an element is one of `count` that are spread evenly over `total`."""
    return index * count % total < count


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The data set with the parallelism that it starts with, a thread per core.

    The thread that tunes sleeps between two looks, twice as long each time and up to
    a minute, and an iterator is not let go before it wakes: the end of every run
    would wait for it (seen in TensorFlow 2.21).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
