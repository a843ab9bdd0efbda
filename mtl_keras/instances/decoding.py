"""Predicted offsets back to instances: the clusters of the votes `pixel + offset`.

This module runs in worker processes, so it imports nothing heavy.

References:
 - [Kendall et al., 2018](https://arxiv.org/abs/1705.07115), section 4.2
"""

import inspect
from typing import Any

import numpy as np

from mtl_keras.cityscapes import (
    FIRST_INSTANCE_ID,
    class_index_table,
    label_id_table,
)
from mtl_keras.instances.clustering import METHODS
from mtl_keras.instances.offsets import keep_things

# What can become of the pixels that vote for no instance.
LEFT_OVER = ("noise", "nearest")
# The classes in which to look for objects.
OBJECT_CLASSES = ("predicted", "true")


def cluster_offsets(
    offsets: np.ndarray,
    mask: np.ndarray,
    method: str = "optics",
    left_over: str = "noise",
    **options: Any,
) -> np.ndarray:
    """Groups the pixels that vote for the same centre.

    Pixels of one class are clustered only by the position `pixel + offset`. An object
    that another cuts in two thus stays one instance, and touching objects are told
    apart. What is left over, votes in no cluster and clusters of fewer pixels than
    `min_samples` or `min_cluster_size`, gets 0.

    With `left_over="nearest"`, as in the paper, it goes to an instance instead: the
    one of its class whose centre, the mean of the votes in the cluster, is nearest to
    the vote, however far away. In a class without an instance it still gets 0.

    `"optics"`: the clusters of OPTICS whose reachability plot is cut at `eps`,
    as in the original. A vote with `min_samples` votes within `eps`, itself
    included, is a core vote; core votes within `eps` of each other share a
    cluster. `eps` should be larger than the gaps within a cloud of votes and smaller
    than the gaps between clouds. Options:
        eps: float. Where to cut, in pixels (the original's `cluster_limmit`).
            Defaults to `1.5`.
        min_samples: int. Defaults to `10`.
        min_cluster_size: int. Clusters of fewer pixels become noise. Defaults to
            `20`.
        max_eps: float, at least `eps`. Radius of the ordering (the original's
            `epsilon`). It changes only border votes, see
            `clustering.cluster_votes`, and costs time. Defaults to `eps`.
    The defaults are a compromise that `benchmarks/instance_parameters.py` found on
    training frames of the rendered streets, at 64x128 and 128x256. In the true
    classes, a network's votes are told apart best with an `eps` of 1.5 to 3 and few
    samples; in its own classes, whose pixels spill over the objects, with more. True
    votes are decoded without a mistake with all of these. The votes of a larger grid
    scatter more widely but are more numerous, so the values hold there too. The
    original's values are in a file that is missing; a call that is commented out has 5
    for both sizes, 5 for the radius and 1 for the cut.

    `"optics-xi"`: scikit-learn's OPTICS, cut where the plot is steep, for
    objects whose votes scatter differently. Its time is quadratic in the votes. With
    scikit-learn's own `xi` and `min_cluster_size`, clouds of votes fall into dozens of
    pieces. Options:
        min_samples: int. Defaults to `5`.
        max_eps: float. Defaults to `inf`.
        xi: float in 0..1, the steepness. Defaults to `0.2`.
        min_cluster_size: int. Defaults to `20`.

    `"hdbscan"`: scikit-learn's HDBSCAN, for the same purpose and faster.
    Options:
        min_cluster_size: int. Defaults to `20`.
        min_samples: int. Defaults to `min_cluster_size`.
        allow_single_cluster: bool. Without it, an object alone in its class is
            always torn apart or lost; with it, it loses its outer votes.
            Defaults to `True`.

    Args:
        offsets: array `(H, W, 2)`, `(dy, dx)` with `centre = pixel + offset`.
        mask: `(H, W)`, bool, or an integer class map with 0 where there is no
            thing. Classes are clustered one by one.
        method: str, `"optics"`, `"optics-xi"` or `"hdbscan"`.
        left_over: str, `"noise"` or `"nearest"`: what becomes of pixels that vote
            for no instance. Defaults to `"noise"`.
        **options: those of the method.

    Returns:
        `(H, W)` int32: 0 for no instance, else 1 to n, by class and then by
        first pixel.

    Raises:
        ValueError: for other shapes, names or values, or offsets inside the mask that
            are not finite.
    """
    offsets, mask = np.asarray(offsets), np.asarray(mask)
    if offsets.shape != (*mask.shape, 2) or mask.ndim != 2:
        raise ValueError(
            "offsets must have shape (H, W, 2) and mask (H, W). "
            f"Received: {offsets.shape} and {mask.shape}"
        )
    if mask.dtype.kind not in "biu":
        raise ValueError(
            f"mask must be bool or an integer class map. Received: {mask.dtype}"
        )
    if method not in METHODS:
        raise ValueError(f"method must be one of {[*METHODS]}. Received: {method!r}")
    if left_over not in LEFT_OVER:
        raise ValueError(
            f"left_over must be one of {LEFT_OVER}. Received: {left_over!r}"
        )
    known = [*inspect.signature(METHODS[method]).parameters][1:]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"{method!r} has the options {known}. Received: {unknown}")
    pixels = np.argwhere(mask)
    classes = mask[mask != 0]
    votes = pixels + offsets[mask != 0].astype(np.float64)
    if not np.isfinite(votes).all():
        raise ValueError(
            "offsets must be finite inside the mask. Received: "
            f"{(~np.isfinite(votes).all(axis=1)).sum()} pixels with NaN or inf"
        )
    METHODS[method](votes[:0], **options)  # refuses wrong values even without a thing
    instances = np.zeros(mask.shape, np.int32)
    for value in np.unique(classes):
        chosen = classes == value
        numbers = _number(METHODS[method](votes[chosen], **options))
        if left_over == "nearest":
            numbers = _number(_give_to_nearest(votes[chosen], numbers) - 1)
        numbers[numbers > 0] += instances.max(initial=0)
        instances[*pixels[chosen].T] = numbers
    return instances


def _number(labels):
    """The clusters of `labels`, where noise is negative, numbered from 1 by their
    first member, and 0 for noise."""
    _, first, index = np.unique(labels, return_index=True, return_inverse=True)
    is_cluster = labels[first] >= 0
    number = np.zeros(len(first), np.int32)
    by_first_member = np.flatnonzero(is_cluster)[np.argsort(first[is_cluster])]
    number[by_first_member] = np.arange(1, len(by_first_member) + 1)
    return number[index]


def _give_to_nearest(votes, numbers):
    """Gives the votes of number 0 to the cluster with the nearest mean, the first of
    equally near ones."""
    rest = votes[numbers == 0]
    nearest, least = np.zeros(len(rest), np.int32), np.full(len(rest), np.inf)
    for number in range(1, numbers.max(initial=0) + 1):
        centre = votes[numbers == number].mean(axis=0)
        distance = np.hypot(*(rest - centre).T)
        is_nearer = distance < least
        nearest[is_nearer], least[is_nearer] = number, distance[is_nearer]
    given = numbers.copy()
    given[numbers == 0] = nearest
    return given


def decode_objects(
    offsets: np.ndarray,
    classes: np.ndarray,
    probability: np.ndarray,
    method: str = "optics",
    **options: Any,
) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Turns the centre votes of a frame into objects that can be ranked.

    Centre votes do not tell how sure they are. The confidence of an object is the mean
    probability of its class over its pixels.

    Args:
        offsets: array `(H, W, 2)` as for `cluster_offsets`.
        classes: integer array `(H, W)`, label ids of things, else 0.
        probability: float array `(H, W)`, that of the class of each pixel.
        method: str, as for `cluster_offsets`.
        **options: as for `cluster_offsets`, including `left_over`. The pixels that it
            gives to an object count in the object's confidence.

    Returns:
        `instances`, `(H, W)` int32 with 0 for no object, else 1 to n; and a list of
        n `(label id, confidence)`.
    """
    instances = cluster_offsets(offsets, classes, method, **options)
    index = instances[instances > 0]
    size = np.bincount(index)[1:]
    confidence = np.bincount(index, probability[instances > 0])[1:] / size
    label_ids = np.zeros(len(size), int)
    label_ids[index - 1] = classes[instances > 0]
    return instances, [*zip(label_ids.tolist(), confidence.tolist())]


def choose_classes(
    logits: np.ndarray | None,
    instance_ids: np.ndarray,
    label_set: str,
    object_classes: str,
) -> tuple[np.ndarray, np.ndarray]:
    """The class of every pixel of a thing, and its probability.

    Args:
        logits: `(batch, H, W, num_classes)`, or `None` without the semantic task;
            every probability is 1 then.
        instance_ids: `(batch, H, W)`, the true ones.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        object_classes: str, `"predicted"` or `"true"`, as for `ObjectScorer`.

    Returns:
        Label ids of things, else 0, uint8; and the predicted probability of that
        class; each `(batch, H, W)`.

    Raises:
        ValueError: for the predicted classes without logits, or of categories.
    """
    if label_set == "categories" and object_classes != "true":
        raise ValueError(
            "Categories do not tell the classes of objects apart; object_classes must "
            f"be 'true'. Received: {object_classes!r}"
        )
    if logits is None and object_classes != "true":
        raise ValueError(
            "Without logits there are no predicted classes; object_classes must be "
            f"'true'. Received: {object_classes!r}"
        )
    if logits is not None:
        logits = np.asarray(logits, np.float32)
        probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
    if object_classes == "true":
        classes = keep_things(instance_ids // FIRST_INSTANCE_ID)
        index = np.maximum(class_index_table(label_set)[classes], 0)
    else:
        assert logits is not None
        index = logits.argmax(axis=-1)
        classes = keep_things(label_id_table(label_set)[index])
    classes = classes.astype(np.uint8)
    if logits is None:
        return classes, np.ones(classes.shape, np.float32)
    return classes, np.take_along_axis(probabilities, index[..., None], -1)[..., 0]
