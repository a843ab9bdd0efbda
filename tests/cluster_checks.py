"""Scenes and comparisons that the tests of clusters and of instances share."""

import numpy as np

from mtl_keras.instances import encode_offsets


def by_first_member(labels, noise=-1):
    """The labels renumbered by first member, so that equal partitions are equal."""
    number = {noise: -1}
    for label in np.ravel(labels).tolist():
        number.setdefault(label, len(number) - 1)
    return [number[label] for label in np.ravel(labels).tolist()]


def assert_same_partition(actual, expected, actual_noise=-1, expected_noise=-1):
    assert by_first_member(actual, actual_noise) == by_first_member(
        expected, expected_noise
    )


def scene(num_objects, size=(128, 256), seed=0, largest=(40, 50)):
    """Instance ids with ellipses that overlap, later ones in front."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    ids = np.full(size, 7)
    for number in range(num_objects):
        radius = rng.uniform(3, largest) / 2
        centre = rng.uniform(radius, size - radius)
        y, x = (rows - centre[0]) / radius[0], (columns - centre[1]) / radius[1]
        ids[y**2 + x**2 <= 1] = 26000 + number
    return ids


def scene_votes(num_objects, noise=0.5, **kwargs):
    offsets, mask = encode_offsets(scene(num_objects, **kwargs))
    votes = np.argwhere(mask) + offsets[mask].astype(float)
    return votes + np.random.default_rng(1).normal(0, noise, votes.shape)
