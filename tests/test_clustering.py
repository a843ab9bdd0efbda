import tracemalloc

import numpy as np
import pytest
from cluster_checks import assert_same_partition, scene_votes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from sklearn.cluster import DBSCAN, OPTICS

from mtl_keras.instances.clustering import cluster_votes

pytestmark = pytest.mark.filterwarnings("ignore:All reachability values")


def sklearn_labels(votes, eps, min_samples, max_eps=None):
    return OPTICS(
        min_samples=min_samples,
        max_eps=eps if max_eps is None else max_eps,
        cluster_method="dbscan",
        eps=eps,
        algorithm="kd_tree",  # with few votes, the default would be inexact
    ).fit_predict(votes)


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


def peak_memory(votes, **options):
    """Labels, and the bytes it took to find them."""
    tracemalloc.start()
    try:
        labels = cluster_votes(votes, **options)
        return labels, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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
    labels, peak = peak_memory(votes, eps=1.0, min_samples=5)
    assert peak < 250e6
    if name != "all over":
        assert labels.max() == 0


@pytest.mark.parametrize("gap", [0.9, 1.2])
def test_memory_of_a_sparse_cell_beside_a_pile(gap):
    # 900 votes that are not core, each to be compared with 29,000 that are.
    rng = np.random.default_rng(0)
    sizes = {0.0: 900, gap: 29_000}
    votes = np.concatenate(
        [[0, x] + rng.normal(0, 0.01, (size, 2)) for x, size in sizes.items()]
    )
    labels, peak = peak_memory(votes, eps=1.0, min_samples=1000)
    assert peak < 250e6
    assert (labels[900:] == 0).all() and (labels[:900] == (0 if gap < 1 else -1)).all()


def test_many_votes_make_core_votes():
    votes = scene_votes(12, 1.0, size=(48, 64), largest=(30, 40))
    for min_samples in (40, 150):
        assert_same_partition(
            cluster_votes(votes, 1.5, min_samples),
            sklearn_labels(votes, 1.5, min_samples),
        )


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
