import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from sklearn.cluster import DBSCAN, OPTICS

from mtl_keras.instances import (
    cluster_offsets,
    cluster_votes,
    encode_offsets,
    thing_classes,
)

pytestmark = pytest.mark.filterwarnings("ignore:All reachability values")


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


def sklearn_labels(votes, eps, min_samples, max_eps=None):
    return OPTICS(
        min_samples=min_samples,
        max_eps=eps if max_eps is None else max_eps,
        cluster_method="dbscan",
        eps=eps,
        algorithm="kd_tree",  # with few votes, the default would be inexact
    ).fit_predict(votes)


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


# Encoding.


def test_offsets_point_to_the_mean_position():
    ids = np.array([[7, 26000, 26000], [26, 26000, 24001], [0, 24000, 999]])
    offsets, mask = encode_offsets(ids)
    assert offsets.dtype == np.float32 and mask.dtype == bool
    np.testing.assert_array_equal(mask, ids >= 1000)
    np.testing.assert_allclose(offsets[0, 1], [1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(offsets[0, 2], [1 / 3, -2 / 3], rtol=1e-6)
    np.testing.assert_allclose(offsets[1, 1], [-2 / 3, 1 / 3], rtol=1e-6)
    assert not offsets[1, 2].any() and not offsets[2, 1].any()
    assert not offsets[~mask].any()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_offsets_do_not_depend_on_the_integer_type(dtype):
    ids = scene(20)
    for actual, expected in zip(encode_offsets(ids.astype(dtype)), encode_offsets(ids)):
        np.testing.assert_array_equal(actual, expected)


def test_ids_beyond_16_bits():
    ids = scene(20)
    for actual, expected in zip(
        encode_offsets(np.where(ids >= 1000, ids + 2**40, ids)), encode_offsets(ids)
    ):
        np.testing.assert_array_equal(actual, expected)


def test_no_instance():
    offsets, mask = encode_offsets(np.full((4, 6), 26, np.uint8))
    assert offsets.shape == (4, 6, 2) and not offsets.any() and not mask.any()
    assert not cluster_offsets(offsets, mask).any()


@pytest.mark.parametrize("ids", [np.zeros((2, 2)), np.zeros((2, 2, 1), int)])
def test_encode_rejects_what_are_no_ids(ids):
    with pytest.raises(ValueError, match="integer array of shape"):
        encode_offsets(ids)


def test_thing_classes():
    ids = np.array([[7, 24, 33], [29, 30, 0]], np.uint8)
    np.testing.assert_array_equal(thing_classes(ids), [[0, 24, 33], [0, 0, 0]])


# Encoding and clustering.


@pytest.mark.parametrize("num_objects", [1, 2, 30])
def test_encode_then_cluster_recovers_the_partition(num_objects):
    ids = scene(num_objects)
    offsets, mask = encode_offsets(ids)
    instances = cluster_offsets(offsets, mask)
    assert instances.dtype == np.int32
    assert_same_partition(instances, np.where(mask, ids, 0), 0, 0)
    assert instances.max() == len(np.unique(ids[mask]))


def test_a_hundred_objects():
    ids = np.repeat(np.repeat(np.arange(26000, 26100).reshape(5, 20), 12, 0), 10, 1)
    offsets, mask = encode_offsets(ids)
    rng = np.random.default_rng(0)
    noisy = offsets + rng.normal(0, 0.3, offsets.shape)
    assert_same_partition(cluster_offsets(noisy, mask), ids, 0)


@pytest.mark.parametrize("method", ["optics", "optics-xi", "hdbscan"])
def test_touching_and_split_objects(method):
    ids = np.zeros((24, 40), int)
    ids[4:20, 2:38] = 26000
    ids[:, 17:23] = 26001  # in front, cuts the first in two
    ids[4:20, 34:] = 26002  # beside the first
    offsets, mask = encode_offsets(ids)
    # The mean of the first must stay clear of the centre of the second.
    offsets[ids == 26000] += [4, 0]
    rng = np.random.default_rng(0)
    noisy = offsets + rng.normal(0, 0.1, offsets.shape)
    instances = cluster_offsets(noisy, mask, method)
    assert_same_partition(instances, ids, 0, 0)


@pytest.mark.parametrize("method", ["optics", "optics-xi", "hdbscan"])
def test_one_object_with_all_votes_on_one_spot(method):
    mask = np.zeros((20, 20), bool)
    mask[3:15, 2:9] = True
    offsets = 10.0 - np.moveaxis(np.indices(mask.shape), 0, -1)
    np.testing.assert_array_equal(cluster_offsets(offsets, mask, method), mask)


@pytest.mark.parametrize("method", ["optics", "optics-xi", "hdbscan"])
def test_objects_too_small_are_noise(method):
    mask = np.zeros((5, 5), bool)
    assert not cluster_offsets(np.zeros((5, 5, 2)), mask, method).any()
    mask[2, :4] = True
    assert not cluster_offsets(np.zeros((5, 5, 2)), mask, method).any()


def test_smallest_cluster():
    ids = np.zeros((8, 8), int)
    ids[:3, :3], ids[5:, 5:7] = 26000, 26001
    offsets, mask = encode_offsets(ids)
    assert cluster_offsets(offsets, mask).max() == 2
    np.testing.assert_array_equal(
        cluster_offsets(offsets, mask, min_cluster_size=7), ids == 26000
    )
    assert cluster_offsets(offsets, mask, min_samples=9).max() == 1
    assert cluster_offsets(offsets, mask, min_samples=10).max() == 0


def test_stray_votes_are_noise():
    ids = scene(5)
    offsets, mask = encode_offsets(ids)
    stray = np.argwhere(mask)[::50]
    offsets[*stray.T] += 1000 + 10 * np.arange(len(stray))[:, None]
    ids[*stray.T] = 0
    assert_same_partition(
        cluster_offsets(offsets, mask), np.where(ids >= 1000, ids, 0), 0, 0
    )


def test_classes_never_mix():
    classes = np.zeros((10, 12), np.uint8)
    classes[:, 2:6], classes[:, 6:10] = 26, 24
    offsets = np.zeros((10, 12, 2))
    offsets[...] = [5, 6] - np.moveaxis(np.indices(classes.shape), 0, -1)
    instances = cluster_offsets(offsets, classes)
    np.testing.assert_array_equal(instances, (classes == 24) + 2 * (classes == 26))
    np.testing.assert_array_equal(cluster_offsets(offsets, classes > 0), classes > 0)


def test_instances_are_numbered_by_first_pixel():
    ids = np.zeros((12, 30), int)
    ids[2:9, 20:28], ids[3:9, 10:18], ids[4:9, 0:8] = 26001, 26000, 26002
    instances = cluster_offsets(*encode_offsets(ids))
    assert [instances[5, x] for x in (25, 15, 5)] == [1, 2, 3]


def test_what_lies_outside_of_the_mask_does_not_count():
    ids = scene(6)
    offsets, mask = encode_offsets(ids)
    poisoned = np.where(mask[..., None], offsets, np.nan)
    np.testing.assert_array_equal(
        cluster_offsets(poisoned, mask), cluster_offsets(offsets, mask)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_offsets(value):
    offsets = np.zeros((4, 4, 2), np.float32)
    offsets[1, 2, 0] = value
    with pytest.raises(ValueError, match="1 pixels with NaN or inf"):
        cluster_offsets(offsets, np.ones((4, 4), bool))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "meanshift"}, "method must be one of"),
        ({"epsilon": 1.0}, "'optics' has the options"),
        ({"method": "hdbscan", "eps": 1.0}, "'hdbscan' has the options"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"eps": np.nan}, "eps must be positive"),
        ({"eps": 2.0, "max_eps": 1.0}, "max_eps at least eps"),
        ({"min_samples": 1}, "min_samples must be at least 2"),
        ({"mask": np.ones((4, 5), bool)}, "must have shape"),
        ({"mask": np.ones((4, 4))}, "bool or an integer class map"),
    ],
)
def test_wrong_arguments(arguments, message):
    arguments = {"mask": np.ones((4, 4), bool), **arguments}
    with pytest.raises(ValueError, match=message):
        cluster_offsets(np.zeros((4, 4, 2)), **arguments)


# Equality with scikit-learn.


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    eps=st.sampled_from([0.5, 1.0, 1.5, 2.5]),
    reach=st.sampled_from([1, 2, 4, np.inf]),
    min_samples=st.integers(2, 6),
)
def test_equals_sklearn_on_a_lattice(data, eps, reach, min_samples):
    # Duplicates, ties at exactly eps and votes between clusters abound here.
    votes = data.draw(
        stnp.arrays(
            np.float64,
            st.tuples(st.integers(min_samples, 60), st.just(2)),
            elements=st.integers(-8, 12).map(lambda i: i / 2),
        )
    )
    assert_same_partition(
        cluster_votes(votes, eps, min_samples, eps * reach),
        sklearn_labels(votes, eps, min_samples, eps * reach),
    )


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_votes=st.integers(8, 150),
    spread=st.floats(0.1, 8),
    reach=st.sampled_from([1, 3, np.inf]),
    min_samples=st.integers(2, 8),
)
def test_equals_sklearn_on_random_votes(seed, num_votes, spread, reach, min_samples):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-10, 10, (3, 2))
    votes = centres[rng.integers(0, 3, num_votes)]
    votes += rng.normal(0, 1, votes.shape) * spread
    assert_same_partition(
        cluster_votes(votes, 1.0, min_samples, reach),
        sklearn_labels(votes, 1.0, min_samples, reach),
    )


@pytest.mark.parametrize("max_eps", [1.0, 5.0])
@pytest.mark.parametrize(
    "num_objects, noise", [(1, 0.5), (6, 0.5), (6, 1.5), (30, 0.7)]
)
def test_equals_sklearn_on_a_scene(num_objects, noise, max_eps):
    votes = scene_votes(num_objects, noise, size=(48, 64), largest=(16, 20))
    assert_same_partition(
        cluster_votes(votes, 1.0, 5, max_eps), sklearn_labels(votes, 1.0, 5, max_eps)
    )


# One core vote each, two apart; x is within 1 of both, the others of one.
LEFT = [[0, 0], [0, -1], [0, -1], [0, -1]]
RIGHT = [[0, 2], [0, 3], [0, 3], [0, 3]]
X = [[0, 1]]


@pytest.mark.parametrize(
    "votes, expected",
    [
        (LEFT + X + RIGHT, [0, 0, 0, 0, 0, 1, 1, 1, 1]),
        (RIGHT + X + LEFT, [0, 0, 0, 0, 0, 1, 1, 1, 1]),
        (LEFT + RIGHT + X, [0, 0, 0, 0, 1, 1, 1, 1, 0]),
        (X + LEFT + RIGHT, [-1, 0, 0, 0, 0, 1, 1, 1, 1]),
        (LEFT[::-1] + X + RIGHT, [-1, -1, -1, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_border_votes_depend_on_the_order(votes, expected):
    votes = np.array(votes, float)
    assert_same_partition(cluster_votes(votes, 1.0, 5), expected)
    for max_eps in (1.0, 2.0, np.inf):
        assert_same_partition(
            cluster_votes(votes, 1.0, 5, max_eps),
            sklearn_labels(votes, 1.0, 5, max_eps),
        )


@pytest.mark.parametrize("max_eps", [0.4, 1.0])
def test_differs_from_dbscan_in_border_votes_only(max_eps):
    votes = scene_votes(10, 1.0, size=(64, 64), largest=(16, 20))
    labels = cluster_votes(votes, 0.4, 5, max_eps)
    dbscan = DBSCAN(eps=0.4, min_samples=5).fit(votes)
    core = dbscan.core_sample_indices_
    assert_same_partition(labels[core], dbscan.labels_[core])
    border = np.setdiff1d(np.flatnonzero(dbscan.labels_ >= 0), core)
    assert (labels[border] < 0).any() and (labels[border] >= 0).any()
    assert (labels[dbscan.labels_ < 0] < 0).all()
    for vote in border[labels[border] >= 0]:
        own = core[labels[core] == labels[vote]]
        assert np.hypot(*(votes[own] - votes[vote]).T).min() <= 0.4


@pytest.mark.parametrize("gap", [0.8, 1.0, 1.05, 1.1, 1.3])
def test_piles_at_about_eps(gap):
    # Crowded cells whose closest votes decide.
    rng = np.random.default_rng(0)
    piles = [[0, x] + rng.normal(0, 0.02, (300, 2)) for x in (0, gap, 2 * gap)]
    votes = np.concatenate(piles)
    labels = cluster_votes(votes, 1.0, 5)
    assert_same_partition(labels, sklearn_labels(votes, 1.0, 5))
    assert labels.max() == (2 if gap > 1.2 else 0)


PILES = {
    "one spot": lambda rng: np.zeros((30_000, 2)),
    "almost one spot": lambda rng: rng.normal(0, 1e-3, (30_000, 2)),
    "one eps ball": lambda rng: rng.normal(0, 0.3, (30_000, 2)),
    "all over": lambda rng: rng.uniform(0, 1, (30_000, 2)) * [128, 256],
    "pixels": lambda rng: np.argwhere(np.ones((128, 256))).astype(float),
}


@pytest.mark.parametrize("name", PILES)
def test_memory(name):
    votes = PILES[name](np.random.default_rng(0))
    tracemalloc.start()
    try:
        labels = cluster_votes(votes, 1.0, 5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 250e6
    if name != "all over":
        assert labels.max() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "num_objects, largest, max_eps",
    [(30, (40, 50), 1.0), (30, (40, 50), 5.0), (120, (80, 100), 1.0)],
)
def test_equals_sklearn_at_full_size(num_objects, largest, max_eps):
    votes = scene_votes(num_objects, 0.6, largest=largest)
    assert_same_partition(
        cluster_votes(votes, 1.0, 5, max_eps), sklearn_labels(votes, 1.0, 5, max_eps)
    )
