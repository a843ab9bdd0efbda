"""Clusters of points in the plane: the votes of the pixels for their centres.

`cluster_votes` is OPTICS with its reachability plot cut, as in the original; the
other methods are scikit-learn's. All of them may leave votes out, as noise.

References:
 - Ankerst et al., 1999, *OPTICS: ordering points to identify the clustering
   structure*
"""

import warnings
from collections.abc import Callable

import numpy as np

# In pixels. Methods without a scale of their own tell nothing smaller apart; they would
# find clusters in rounding errors.
RESOLUTION = 0.01


def cluster_votes(
    votes: np.ndarray, eps: float, min_samples: int, max_eps: float | None = None
) -> np.ndarray:
    """Labels of scikit-learn's OPTICS, cut at `eps`, without its ordering.

    Equals `OPTICS(min_samples=min_samples, max_eps=max_eps, eps=eps,
    cluster_method="dbscan").fit_predict(votes)` up to the numbering. What a cut
    ordering says follows from the votes themselves:

    - Core votes form the clusters of DBSCAN: the connected components under
      distances of at most `eps`.
    - The ordering visits the votes of a component in one go once it meets the
      first of them, and takes along all votes within `eps` of a core vote of the
      component that it has not visited yet. A border vote, not core but within
      `eps` of one, thus goes to whichever of its components is visited first.
    - If the ordering meets a border vote before all of these, it is noise. Here
      OPTICS departs from DBSCAN, which never drops a border vote.
    - With `max_eps == eps`, the next vote to start from is the one of lowest
      index. With a larger `max_eps`, it is the one with the least reachability
      from the votes visited so far; only then is the ordering followed, one
      component or lone vote at a time.

    Distances are compared as scikit-learn compares them, rounded to 15 decimals,
    and ties agree where float64 holds the squares exactly. A distance that differs
    from `eps` or `max_eps` only by a rounding error may be judged differently, since
    scikit-learn's trees sometimes compare distances and sometimes their squares.

    Args:
        votes: float array `(n, 2)`.
        eps: float, positive.
        min_samples: int, at least 2.
        max_eps: float, at least `eps`, the default.

    Returns:
        `(n,)` int array, a number for every cluster and -1 for noise. With the
        default `max_eps`, time and memory grow about as `n * min_samples`,
        however densely the votes lie.

    Raises:
        ValueError: for options out of range.
    """
    votes = np.asarray(votes, np.float64)
    max_eps = eps if max_eps is None else max_eps
    if not (0 < eps < np.inf and eps <= max_eps):
        raise ValueError(
            "eps must be positive and finite, and max_eps at least eps. "
            f"Received: eps={eps}, max_eps={max_eps}"
        )
    _check_at_least(2, min_samples=min_samples)
    labels = np.full(len(votes), -1)
    if len(votes) < min_samples:
        return labels
    grid = _Grid(votes, eps, max_eps)
    core = grid.core_votes(min_samples)
    labels[grid.order[core]] = grid.components(core)
    border, cluster = grid.border_votes(core, labels)
    if not border.size:
        return labels
    if max_eps == eps:
        visited = np.arange(len(votes))
    else:
        visited = _visiting_order(votes, labels, border, cluster, min_samples, max_eps)
    start = np.full(labels.max() + 1, len(votes))
    core = labels >= 0
    np.minimum.at(start, labels[core], visited[core])
    by_start = np.lexsort((start[cluster], border))
    border, first = np.unique(border[by_start], return_index=True)
    cluster = cluster[by_start][first]
    labels[border] = np.where(start[cluster] <= visited[border], cluster, -1)
    return labels


class _Grid:
    """Votes sorted into cells so small that all votes of a cell are within `eps`
    of each other. A cell of `min_samples` votes needs no counting, and the core
    votes of a cell are linked as one. A vote is named by its place in `self.votes`.
    """

    def __init__(self, votes, eps, max_eps):
        self.eps, self.max_eps = eps, max_eps
        side = 0.999 * eps / np.sqrt(2)  # a little less, against rounding
        cells = np.floor(votes / side)
        self.order = np.lexsort(cells.T)
        self.votes, cells = votes[self.order], cells[self.order]
        is_first = np.ones(len(votes), bool)
        is_first[1:] = (cells[1:] != cells[:-1]).any(axis=1)
        self.cell = np.cumsum(is_first) - 1
        self.num_cells = self.cell[-1] + 1
        # Votes within eps of each other are at most two cells apart.
        tree = _tree_of(cells[is_first])
        self.near = tree.query_pairs(2.5, p=np.inf, output_type="ndarray").T
        own = np.tile(np.arange(self.num_cells), (2, 1))
        self.around = np.concatenate([self.near, self.near[::-1], own], axis=1)

    def core_votes(self, min_samples):
        """Whether each vote has `min_samples` votes within `eps`, `(n,)` bool."""
        core = np.bincount(self.cell)[self.cell] >= min_samples
        count = np.zeros(len(core), np.intp)
        for i, _ in self._close_pairs(self.around, ~core, np.ones_like(core)):
            count += np.bincount(i, minlength=len(count))
        return core | (count >= min_samples)

    def components(self, core):
        """The number of the component of every core vote."""
        members, start, count = self._by_cell(core)
        pairs = self.near[:, (count[self.near] > 0).all(axis=0)]
        # One vote per cell links most cells. The others take a closer look.
        links = pairs[:, self._is_close(*members[start[pairs]])]
        component = self._join(links)
        pairs = pairs[:, component[pairs[0]] != component[pairs[1]]]
        large = count[pairs].prod(axis=0) > 4096
        found = [links]
        for a, b in pairs[:, large].T:
            a, b = (members[start[c] : start[c] + count[c]] for c in (a, b))
            _, nearest = _tree_of(self.votes[a]).query(self.votes[b])
            close = self._is_close(a[nearest], b)
            found.append(self.cell[[a[nearest][close], b[close]]][:, :1])
        for close_pairs in self._close_pairs(pairs[:, ~large], core, core):
            found.append(_unique_pairs(*self.cell[np.stack(close_pairs)]))
        component = self._join(np.concatenate(found, axis=1))
        _, component[count > 0] = np.unique(component[count > 0], return_inverse=True)
        return component[self.cell[core]]

    def border_votes(self, core, labels):
        """The pairs of a border vote, by its index in `labels`, and the label of a
        core vote within `eps` of it, `(2, m)`."""
        pairs = [np.zeros((2, 0), np.intp)]
        for i, j in self._close_pairs(self.around, ~core, core):
            pairs.append(_unique_pairs(self.order[i], labels[self.order[j]]))
        return np.concatenate(pairs, axis=1)

    def _join(self, links):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        graph = coo_array(
            (np.ones(links.shape[1], bool), tuple(links)), (self.num_cells,) * 2
        )
        return connected_components(graph, directed=False)[1]

    def _by_cell(self, chosen):
        members = np.flatnonzero(chosen)
        count = np.bincount(self.cell[members], minlength=self.num_cells)
        return members, np.cumsum(count) - count, count

    def _is_close(self, i, j):
        # As in scikit-learn, the radius of the ordering is compared as it is, and
        # the cut after rounding to 15 decimals.
        square = ((self.votes[i] - self.votes[j]) ** 2).sum(axis=-1)
        close = square <= self.max_eps * self.max_eps
        return close & (np.round(np.sqrt(square), 15) <= self.eps)

    def _close_pairs(self, cells, left, right, chunk=2**20):
        """Yields the pairs of a left and a right vote within `eps` of each other, in
        bounded portions; `cells` holds the pairs of cells to look at."""
        left, left_start, left_count = self._by_cell(left)
        right, right_start, right_count = self._by_cell(right)
        size = left_count[cells[0]] * right_count[cells[1]]
        cells, size = cells[:, size > 0], size[size > 0]
        end = np.cumsum(size)
        for low in range(0, end[-1] if end.size else 0, chunk):
            high = min(low + chunk, end[-1])
            # Of the first and the last pair of cells, a part may be taken.
            part = slice(
                np.searchsorted(end, low, side="right"),
                np.searchsorted(end, high, side="left") + 1,
            )
            first = end[part] - size[part]
            taken = np.minimum(end[part], high) - np.maximum(first, low)
            a, b = np.repeat(cells[:, part], taken, axis=1)
            place = np.arange(low, high) - np.repeat(first, taken)
            i = left[left_start[a] + place // right_count[b]]
            j = right[right_start[b] + place % right_count[b]]
            close = self._is_close(i, j)
            yield i[close], j[close]


def _visiting_order(votes, labels, border, cluster, min_samples, max_eps):
    """The step at which OPTICS visits each vote, as far as border votes need it.

    A component and the border votes that it takes along share a step.
    """
    by_row = np.argsort(votes[:, 0], kind="stable")
    position = np.argsort(by_row)
    votes, labels, border = votes[by_row], labels[by_row], position[border]
    core_distance = np.zeros(len(votes))  # at most eps, so never what counts
    lone = np.flatnonzero(labels < 0)
    distance = _tree_of(votes).query(votes[lone], min_samples)[0][:, -1]
    core_distance[lone] = np.where(distance <= max_eps, distance, np.inf)
    num_clusters = labels.max() + 1
    is_core = np.flatnonzero(labels >= 0)
    cores = _split_by(labels[is_core], is_core, num_clusters)
    borders = _split_by(cluster, border, num_clusters)
    waiting = _WaitingVotes(votes, by_row, core_distance, max_eps)
    visited = np.full(len(votes), len(votes))
    for step in range(len(votes)):
        if not waiting.mask[border].any():
            break
        vote = waiting.next_vote()
        core, others = [], np.array([vote])
        if labels[vote] >= 0:
            core, others = cores[labels[vote]], borders[labels[vote]]
            others = np.unique(others[waiting.mask[others]])
        met = np.concatenate([core, others]).astype(np.intp)
        visited[met] = step
        waiting.remove(met)
        if len(core):
            near = waiting.near(votes[core].min(axis=0), votes[core].max(axis=0))
            if near.size:
                nearest = core[_tree_of(votes[core]).query(votes[near])[1]]
                waiting.lower_reach(near, nearest)
        for source in others[core_distance[others] < np.inf]:
            near = waiting.near(votes[source], votes[source])
            waiting.lower_reach(near, source)
    return visited[position]


class _WaitingVotes:
    """The votes that OPTICS has not visited, with their reachability from the others.

    Votes are sorted by their first coordinate; `index` holds their original places.
    """

    def __init__(self, votes, index, core_distance, max_eps):
        self.votes, self.index = votes, index
        self.core_distance, self.max_eps = core_distance, max_eps
        self.mask = np.ones(len(votes), bool)
        self._reach = np.full(len(votes), np.inf)
        self._by_index = iter(np.argsort(index))

    def next_vote(self):
        """The vote of least reachability, or the first if none can be reached."""
        least = self._reach.min()
        if least < np.inf:
            ties = np.flatnonzero(self._reach == least)
            return ties[self.index[ties].argmin()]
        return next(vote for vote in self._by_index if self.mask[vote])

    def remove(self, visited):
        self.mask[visited], self._reach[visited] = False, np.inf

    def near(self, low, high):
        """Waiting votes in the box from `low` to `high`, widened by `max_eps`."""
        margin = self.max_eps * (1 + 1e-9)
        rows = np.searchsorted(self.votes[:, 0], [low[0] - margin, high[0] + margin])
        found = rows[0] + np.flatnonzero(self.mask[slice(*rows)])
        columns = self.votes[found, 1]
        return found[(columns >= low[1] - margin) & (columns <= high[1] + margin)]

    def lower_reach(self, targets, sources):
        square = ((self.votes[targets] - self.votes[sources]) ** 2).sum(axis=-1)
        new = np.maximum(np.sqrt(square), self.core_distance[sources]).round(15)
        new = np.where(square <= self.max_eps * self.max_eps, new, np.inf)
        self._reach[targets] = np.minimum(self._reach[targets], new)


def _tree_of(points):
    from scipy.spatial import KDTree  # here only: it takes a while to import

    return KDTree(points)


def _unique_pairs(first, second):
    """The distinct pairs of two arrays of numbers from 0 on, `(2, n)`."""
    base = second.max(initial=0) + 1
    return np.stack(np.divmod(np.unique(first * base + second), base))


def _split_by(keys, values, num_keys):
    """The values of each key 0, 1, ..., as a list of arrays."""
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.cumsum(np.bincount(keys, minlength=num_keys)))


def cluster_by_optics(
    votes: np.ndarray,
    eps: float = 1.5,
    min_samples: int = 10,
    min_cluster_size: int = 20,
    max_eps: float | None = None,
) -> np.ndarray:
    """`cluster_votes` without clusters of fewer than `min_cluster_size` votes: labels
    `(n,)` of votes `(n, 2)`, -1 for noise."""
    _check_at_least(1, min_cluster_size=min_cluster_size)
    labels = cluster_votes(votes, eps, min_samples, max_eps)
    size = np.bincount(labels + 1)
    return np.where(size[labels + 1] >= min_cluster_size, labels, -1)


def cluster_by_optics_xi(
    votes: np.ndarray,
    min_samples: int = 5,
    max_eps: float = np.inf,
    xi: float = 0.2,
    min_cluster_size: int = 20,
) -> np.ndarray:
    """scikit-learn's OPTICS, cut where the reachability plot is steep: labels `(n,)`
    of votes `(n, 2)`, -1 for noise."""
    _check_at_least(2, min_samples=min_samples, min_cluster_size=min_cluster_size)
    if not (max_eps > 0 and 0 <= xi <= 1):
        raise ValueError(
            "max_eps must be positive and xi in 0..1. "
            f"Received: max_eps={max_eps}, xi={xi}"
        )
    if len(votes) < max(min_samples, min_cluster_size):
        return np.full(len(votes), -1)
    # Here only: it takes a second to import and is not the default.
    from sklearn.cluster import OPTICS, cluster_optics_xi

    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        # If all votes are further apart than max_eps, they are noise: no need to warn.
        warnings.filterwarnings("ignore", "All reachability values are inf")
        optics = OPTICS(
            min_samples=min_samples, max_eps=max_eps, cluster_method="dbscan", eps=0.0
        ).fit(votes)
        return cluster_optics_xi(
            reachability=np.maximum(optics.reachability_, RESOLUTION),
            predecessor=optics.predecessor_,
            ordering=optics.ordering_,
            min_samples=min_samples,
            min_cluster_size=min_cluster_size,
            xi=xi,
        )[0]


def cluster_by_hdbscan(
    votes: np.ndarray,
    min_cluster_size: int = 20,
    min_samples: int | None = None,
    allow_single_cluster: bool = True,
) -> np.ndarray:
    """scikit-learn's HDBSCAN: labels `(n,)` of votes `(n, 2)`, -1 for noise."""
    _check_at_least(2, min_cluster_size=min_cluster_size)
    if min_samples is not None:
        _check_at_least(1, min_samples=min_samples)
    if len(votes) < max(min_cluster_size, min_samples or 2):
        return np.full(len(votes), -1)
    from sklearn.cluster import HDBSCAN

    return HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=min_samples,
        allow_single_cluster=allow_single_cluster,
        copy=True,
    ).fit_predict(np.rint(votes / RESOLUTION))


# Functions of votes and options that return labels.
METHODS: dict[str, Callable[..., np.ndarray]] = {
    "optics": cluster_by_optics,
    "optics-xi": cluster_by_optics_xi,
    "hdbscan": cluster_by_hdbscan,
}


def _check_at_least(least, **options):
    for name, value in options.items():
        if not (value >= least and value % 1 == 0):
            raise ValueError(
                f"{name} must be a whole number of at least {least}. Received: {value}"
            )
