"""Instance ids to centre offsets.

The network tells apart the objects of a class by where each pixel believes its
object's centre to be. The sign is fixed here and nowhere else:
`centre = pixel + offset`, as `(dy, dx)` in pixels of the grid. A pixel
votes for the position `pixel + offset`; instances are the clusters of votes.

References:
 - [Kendall et al., 2018](https://arxiv.org/abs/1705.07115), section 4.2
"""

import numpy as np

from mtl_keras.cityscapes import FIRST_INSTANCE_ID, THING_IDS

NO_LABEL = int(np.iinfo(np.uint16).max)


def encode_offsets(instance_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offset from every pixel of an instance to the mean position of its pixels.

    Args:
        instance_ids: integer array `(H, W)`. Values of `FIRST_INSTANCE_ID` or
            more mark an instance, except 65535, which is what 16 bits make of -1, no
            label. All other values are stuff or groups.

    Returns:
        `offsets`, `(H, W, 2)` float32, `(dy, dx)` in pixels with
        `centre = pixel + offset`, zero outside the mask; and `mask`, `(H, W)`
        bool, true on instances.

    Raises:
        ValueError: for anything but an integer array with two axes.
    """
    instance_ids = np.asarray(instance_ids)
    if instance_ids.ndim != 2 or instance_ids.dtype.kind not in "iu":
        raise ValueError(
            "instance_ids must be an integer array of shape (H, W). "
            f"Received: shape {instance_ids.shape}, dtype {instance_ids.dtype}"
        )
    mask = (instance_ids >= FIRST_INSTANCE_ID) & (instance_ids != NO_LABEL)
    pixels = np.nonzero(mask)
    index = instance_ids[mask]
    if index.max(initial=0) > np.iinfo(np.uint16).max:
        _, index = np.unique(index, return_inverse=True)
    count = np.maximum(np.bincount(index), 1)
    offsets = np.zeros((*mask.shape, 2), np.float32)
    for axis, position in enumerate(pixels):
        centre = np.bincount(index, position) / count
        offsets[..., axis][mask] = centre[index] - position
    return offsets, mask


def keep_things(semantic_ids: np.ndarray) -> np.ndarray:
    """Label ids of any shape, with everything but the evaluated things set to 0.

    Made from predicted labels, it is the mask in which to look for objects; made from
    true labels, it tells errors of the votes from errors of the classes. The original
    looks only in person and car, which it does not keep apart.
    """
    semantic_ids = np.asarray(semantic_ids)
    return np.where(np.isin(semantic_ids, THING_IDS), semantic_ids, 0)
