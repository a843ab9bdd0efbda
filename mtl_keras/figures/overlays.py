"""Objects over their image: colours, outlines, and which of them were found."""

import numpy as np
from matplotlib.colors import hsv_to_rgb


def distinct_colors(count: int) -> np.ndarray:
    """`(count, 3)` uint8; neighbours differ, and none comes near white."""
    hue = np.arange(count) * 0.618034 % 1.0
    value = np.where(np.arange(count) % 2, 0.75, 1.0)
    hsv = np.stack([hue, np.full(count, 0.9), value], axis=-1)
    return (hsv_to_rgb(hsv) * 255).astype(np.uint8).reshape(-1, 3)


def overlay_objects(
    image: np.ndarray, instances: np.ndarray, colors: np.ndarray
) -> np.ndarray:
    """Objects in their colours, outlined, over the image in pale grey.

    Args:
        image: `(H, W, 3)` uint8.
        instances: `(H, W)`, the number of the object from 1, else 0.
        colors: `(n, 3)` uint8.

    Returns:
        `(H, W, 3)` uint8.
    """
    grey = 0.35 * image.mean(axis=-1, keepdims=True).repeat(3, -1)
    table = np.concatenate([np.zeros((1, 3)), colors])
    shading = 0.75 + 0.25 * image.mean(axis=-1, keepdims=True) / 255
    picture = np.where((instances > 0)[..., None], table[instances] * shading, grey)
    padded = np.pad(instances, ((0, 1), (0, 1)), mode="edge")
    edge = (padded[1:, :-1] != instances) | (padded[:-1, 1:] != instances)
    picture[edge & (instances > 0)] *= 0.45
    return picture.astype(np.uint8)


def color_matches(
    instances: np.ndarray,
    classes: np.ndarray,
    true_instances: np.ndarray,
    true_classes: np.ndarray,
    colors: np.ndarray,
) -> np.ndarray:
    """The colour of the true object that each object matches, else white.

    They match if they are of one class and their intersection is more than half of
    their union.

    Args:
        instances: `(H, W)`, the number of the object from 1 to n, else 0.
        classes: `(H, W)` label ids.
        true_instances: `(H, W)`, from 1 to m.
        true_classes: `(H, W)` label ids.
        colors: `(m, 3)` uint8, of the true objects.

    Returns:
        `(n, 3)` uint8.
    """
    sizes = np.bincount(instances.ravel()), np.bincount(true_instances.ravel())
    agree = (instances > 0) & (true_instances > 0) & (classes == true_classes)
    pairs, overlap = np.unique(
        np.stack([instances[agree], true_instances[agree]]),
        axis=1,
        return_counts=True,
    )
    union = sizes[0][pairs[0]] + sizes[1][pairs[1]] - overlap
    matches = overlap / union > 0.5
    found = np.full((instances.max(), 3), 255, np.uint8)
    found[pairs[0, matches] - 1] = colors[pairs[1, matches] - 1]
    return found
