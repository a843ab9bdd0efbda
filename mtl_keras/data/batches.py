"""A batch of a split, with all that its evaluation may look at."""

from typing import NamedTuple

import numpy as np

from mtl_keras.hints import Size

TINY = 128 * 256  # pixels of Tiny Cityscapes, for which batches are meant


class Batch(NamedTuple):
    """A batch of a split.

    Attributes:
        ids: list of str, the names of the frames.
        images: `(batch, H, W, channels)` uint8.
        targets: dict of arrays by task.
        masks: dict of arrays by task, above 0 where a target is valid.
        instance_ids: `(batch, H, W)`, the true ones, or `None`.
    """

    ids: list
    images: np.ndarray
    targets: dict
    masks: dict
    instance_ids: np.ndarray | None = None


def limit_batch(batch_size: int, image_size: Size) -> int:
    """A batch size for images of 128x256 pixels made smaller for larger ones, so that
    it takes about the same memory; at least 1."""
    height, width = image_size
    return max(1, min(batch_size, batch_size * TINY // (height * width)))
