"""A batch of a split, with all that its evaluation may look at."""

from typing import NamedTuple

import numpy as np


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
