"""Instance ids to centre offsets, and predicted offsets back to instances.

The network tells apart the objects of a class by where each pixel believes its
object's centre to be. The sign is fixed here and nowhere else:
`centre = pixel + offset`, as `(dy, dx)` in pixels of the grid at hand. A pixel
votes for the position `pixel + offset`; instances are the clusters of votes.

References:
 - Ankerst et al., 1999, *OPTICS: ordering points to identify the clustering
   structure*
 - [Kendall et al., 2018](https://arxiv.org/abs/1705.07115), section 4.2
"""

import inspect
import warnings

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from mtl_keras.cityscapes import FIRST_INSTANCE_ID, THING_IDS


def encode_offsets(instance_ids):
    """Offset from every pixel of an instance to the mean position of its pixels.

    Args:
        instance_ids: integer array `(H, W)`. Values of `FIRST_INSTANCE_ID` or
            more mark an instance; all others are stuff or groups.

    Returns:
        `offsets`, `(H, W, 2)` float32, `(dy, dx)` in pixels with
        `centre = pixel + offset`, zero outside the mask; and `mask`, `(H, W)`
        bool, true on instances.
    """
    instance_ids = np.asarray(instance_ids)
    if instance_ids.ndim != 2 or instance_ids.dtype.kind not in "iu":
        raise ValueError(
            "instance_ids must be an integer array of shape (H, W). "
            f"Received: shape {instance_ids.shape}, dtype {instance_ids.dtype}"
        )
    mask = instance_ids >= FIRST_INSTANCE_ID
    pixels = np.nonzero(mask)
    index = instance_ids[mask]
    if index.max(initial=0) > np.iinfo(np.uint16).max:
        _, index = np.unique(index, return_inverse=True)
    count = np.maximum(np.bincount(index), 1)
    offsets = np.zeros((*mask.shape, 2), np.float32)
    for axis, position in enumerate(pixels):
        centre = np.bincount(index, position) / count
        offsets[*pixels, axis] = centre[index] - position
    return offsets, mask


def thing_classes(semantic_ids):
    """Label ids `(H, W)` with everything but the evaluated things set to 0.

    Of predicted labels it is the mask the original clusters in; of the true
    labels, the one to tell errors of the votes from errors of the classes.
    """
    semantic_ids = np.asarray(semantic_ids)
    return np.where(np.isin(semantic_ids, THING_IDS), semantic_ids, 0)


def cluster_offsets(offsets, mask, method="optics", **options):
    """Groups the pixels that vote for the same centre.

    Pixels of one class are clustered by the position `pixel + offset` alone, so
    an object that an occluder cuts in two stays one instance and touching
    objects are told apart. Votes in no cluster are noise and get 0, and so do
    objects of fewer pixels than `min_samples` or `min_cluster_size`.

    `"optics"`: the clusters of OPTICS whose reachability plot is cut at `eps`,
    as in the original. A vote with `min_samples` votes within `eps`, itself
    included, is a core vote; core votes within `eps` of each other share a
    cluster. `eps` should exceed the gaps within a cloud of votes and fall short
    of the gaps between clouds. Options; defaults from the original's one
    published call, in which a single value of 5 serves as both sizes:
        eps: float. Where to cut, in pixels (the original's `cluster_limmit`).
            Defaults to `1.0`.
        min_samples: int. Defaults to `5`.
        min_cluster_size: int. Clusters of fewer pixels become noise. Defaults
            to `min_samples`.
        max_eps: float, at least `eps`. Radius of the ordering (the original's
            `epsilon`, there `5`). It sways border votes only, see
            `cluster_votes`, and costs time. Defaults to `eps`.

    `"optics-xi"`: scikit-learn's OPTICS, cut where the plot is steep, for
    objects whose votes scatter differently. Quadratic in the votes, thus slow.
    Options; with scikit-learn's own `xi` and `min_cluster_size`, clouds of
    votes fall into dozens of pieces:
        min_samples: int. Defaults to `5`.
        max_eps: float. Defaults to `inf`.
        xi: float in 0..1, the steepness. Defaults to `0.2`.
        min_cluster_size: int. Defaults to `20`.

    `"hdbscan"`: scikit-learn's HDBSCAN, for the same purpose and faster.
    Options:
        min_cluster_size: int. Defaults to `5`.
        min_samples: int. Defaults to `min_cluster_size`.
        allow_single_cluster: bool. Without it, an object alone in its class is
            always torn apart or lost; with it, it loses its outer votes.
            Defaults to `True`.

    Args:
        offsets: array `(H, W, 2)`, `(dy, dx)` with `centre = pixel + offset`.
        mask: `(H, W)`, bool, or an integer class map with 0 where there is no
            thing. Classes are clustered one by one.
        method: str, `"optics"`, `"optics-xi"` or `"hdbscan"`.
        **options: those of the method.

    Returns:
        `(H, W)` int32: 0 for no instance, else 1 to n, by class and then by
        first pixel.
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
    instances = np.zeros(mask.shape, np.int32)
    for value in np.unique(classes):
        chosen = classes == value
        labels = METHODS[method](votes[chosen], **options)
        _, first, index = np.unique(labels, return_index=True, return_inverse=True)
        is_cluster = labels[first] >= 0
        number = np.zeros(len(first), np.int32)
        by_first_pixel = np.flatnonzero(is_cluster)[np.argsort(first[is_cluster])]
        number[by_first_pixel] = np.arange(1, len(by_first_pixel) + 1)
        number[is_cluster] += instances.max(initial=0)
        instances[*pixels[chosen].T] = number[index]
    return instances


def cluster_votes(votes, eps, min_samples, max_eps=None):
    """Labels of scikit-learn's OPTICS, cut at `eps`, without its ordering.

    Equals `OPTICS(min_samples=min_samples, max_eps=max_eps, eps=eps,
    cluster_method="dbscan").fit_predict(votes)` up to the numbering. What a cut
    ordering says can be had from the votes themselves:

    - Core votes form the clusters of DBSCAN: the connected components under
      distances of at most `eps`.
    - The ordering visits the votes of a component in one go once it meets the
      first of them, and takes along all not yet visited votes within `eps` of a
      core vote of the component. A border vote, not core but within `eps` of
      one, thus goes to whichever of its components is visited first.
    - Unless the ordering meets it before all of them: then it is noise. Here
      OPTICS departs from DBSCAN, which never drops a border vote.
    - With `max_eps == eps`, the next vote to start from is the one of lowest
      index. With a larger `max_eps`, it is the one with the least reachability
      from the votes visited so far; only then is the ordering followed, one
      component or lone vote at a time.

    Distances are compared as scikit-learn compares them, rounded to 15 decimals,
    and ties agree where float64 holds the squares exactly. A distance that is
    `eps` or `max_eps` but for a rounding error may be judged differently, as
    scikit-learn's trees look now at distances and now at squares.

    Args:
        votes: float array `(n, 2)`.
        eps: float, positive.
        min_samples: int, at least 2.
        max_eps: float, at least `eps`, the default.

    Returns:
        `(n,)` int array, a number for every cluster and -1 for noise. With the
        default `max_eps`, time and memory grow about as `n * min_samples`,
        however the votes pile up.
    """
    votes = np.asarray(votes, np.float64)
    max_eps = eps if max_eps is None else max_eps
    if not (0 < eps < np.inf and eps <= max_eps):
        raise ValueError(
            "eps must be positive and finite, and max_eps at least eps. "
            f"Received: eps={eps}, max_eps={max_eps}"
        )
    if min_samples < 2:
        raise ValueError(f"min_samples must be at least 2. Received: {min_samples}")
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
    votes of a cell are linked as one. Votes go by their place in `self.votes`.
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
        tree = KDTree(cells[is_first])
        self.near = tree.query_pairs(2.5, p=np.inf, output_type="ndarray").T
        own = np.tile(np.arange(self.num_cells), (2, 1))
        self.around = np.concatenate([self.near, self.near[::-1], own], axis=1)

    def core_votes(self, min_samples):
        """Which votes have `min_samples` votes within `eps`, `(n,)` bool."""
        core = np.bincount(self.cell)[self.cell] >= min_samples
        count = np.zeros(len(core), np.intp)
        for i, _ in self._close_pairs(self.around, ~core, np.ones_like(core)):
            count += np.bincount(i, minlength=len(count))
        return core | (count >= min_samples)

    def components(self, core):
        """Number of the component of every core vote."""
        members, start, count = self._by_cell(core)
        pairs = self.near[:, (count[self.near] > 0).all(axis=0)]
        # One vote of each cell links most cells. The others take a closer look.
        links = pairs[:, self._is_close(*members[start[pairs]])]
        component = self._join(links)
        pairs = pairs[:, component[pairs[0]] != component[pairs[1]]]
        large = count[pairs].prod(axis=0) > 4096
        found = [links]
        for a, b in pairs[:, large].T:
            a, b = (members[start[c] : start[c] + count[c]] for c in (a, b))
            _, nearest = KDTree(self.votes[a]).query(self.votes[b])
            close = self._is_close(a[nearest], b)
            found.append(self.cell[[a[nearest][close], b[close]]][:, :1])
        for close_pairs in self._close_pairs(pairs[:, ~large], core, core):
            found.append(self.cell[np.stack(close_pairs)])
        component = self._join(np.concatenate(found, axis=1))
        _, component[count > 0] = np.unique(component[count > 0], return_inverse=True)
        return component[self.cell[core]]

    def border_votes(self, core, labels):
        """Pairs of a border vote, by its index in `labels`, and the label of a
        core vote within `eps` of it: array `(2, m)`."""
        pairs = [np.zeros((2, 0), np.intp)]
        for i, j in self._close_pairs(self.around, ~core, core):
            pairs.append(np.stack([self.order[i], labels[self.order[j]]]))
        return np.concatenate(pairs, axis=1)

    def _join(self, links):
        graph = coo_array(
            (np.ones(links.shape[1], bool), tuple(links)), (self.num_cells,) * 2
        )
        return connected_components(graph, directed=False)[1]

    def _by_cell(self, chosen):
        members = np.flatnonzero(chosen)
        count = np.bincount(self.cell[members], minlength=self.num_cells)
        return members, np.cumsum(count) - count, count

    def _is_close(self, i, j):
        # As in scikit-learn: the radius of the ordering is compared as it is,
        # the cut after rounding to 15 decimals.
        square = ((self.votes[i] - self.votes[j]) ** 2).sum(axis=-1)
        close = square <= self.max_eps * self.max_eps
        return close & (np.round(np.sqrt(square), 15) <= self.eps)

    def _close_pairs(self, cells, left, right, chunk=2**20):
        """Yields the pairs within `eps` of a left and a right vote, in bounded
        portions; `cells` holds the pairs of cells to look at."""
        left, left_start, left_count = self._by_cell(left)
        right, right_start, right_count = self._by_cell(right)
        size = left_count[cells[0]] * right_count[cells[1]]
        cells, size = cells[:, size > 0], size[size > 0]
        cuts = np.flatnonzero(np.diff(np.cumsum(size) // chunk)) + 1
        for part in np.split(np.arange(len(size)), cuts):
            a, b = np.repeat(cells[:, part], size[part], axis=1)
            first = np.cumsum(size[part]) - size[part]
            place = np.arange(len(a)) - np.repeat(first, size[part])
            i = left[left_start[a] + place // right_count[b]]
            j = right[right_start[b] + place % right_count[b]]
            close = self._is_close(i, j)
            yield i[close], j[close]


def _visiting_order(votes, labels, border, cluster, min_samples, max_eps):
    """Step at which OPTICS visits each vote, as far as border votes need it.

    A component and the border votes it takes along share a step.
    """
    by_row = np.argsort(votes[:, 0], kind="stable")
    position = np.argsort(by_row)
    votes, labels, border = votes[by_row], labels[by_row], position[border]
    limit = max_eps * max_eps
    core_distance = np.zeros(len(votes))  # at most eps, so never what counts
    lone = np.flatnonzero(labels < 0)
    distance = KDTree(votes).query(votes[lone], min_samples)[0][:, -1]
    core_distance[lone] = np.where(distance <= max_eps, distance, np.inf)
    num_clusters = labels.max() + 1
    is_core = np.flatnonzero(labels >= 0)
    cores = _split_by(labels[is_core], is_core, num_clusters)
    borders = _split_by(cluster, border, num_clusters)
    reach = np.full(len(votes), np.inf)
    waiting = np.ones(len(votes), bool)
    visited = np.full(len(votes), len(votes))

    def waiting_near(low, high):
        margin = max_eps * (1 + 1e-9)
        rows = np.searchsorted(votes[:, 0], [low[0] - margin, high[0] + margin])
        targets = rows[0] + np.flatnonzero(waiting[slice(*rows)])
        columns = votes[targets, 1]
        return targets[(columns >= low[1] - margin) & (columns <= high[1] + margin)]

    def lower_reach(targets, sources):
        square = ((votes[targets] - votes[sources]) ** 2).sum(axis=-1)
        new = np.maximum(np.sqrt(square), core_distance[sources]).round(15)
        new = np.where(square <= limit, new, np.inf)
        reach[targets] = np.minimum(reach[targets], new)

    next_index = 0
    for step in range(len(votes)):
        if not waiting[border].any():
            break
        least = reach.min()
        if least < np.inf:
            ties = np.flatnonzero(reach == least)
            vote = ties[by_row[ties].argmin()]
        else:
            while not waiting[position[next_index]]:
                next_index += 1
            vote = position[next_index]
        core, others = [], np.array([vote])
        if labels[vote] >= 0:
            core, others = cores[labels[vote]], borders[labels[vote]]
            others = np.unique(others[waiting[others]])
        met = np.concatenate([core, others]).astype(np.intp)
        visited[met], waiting[met], reach[met] = step, False, np.inf
        if len(core):
            near = waiting_near(votes[core].min(axis=0), votes[core].max(axis=0))
            if near.size:
                lower_reach(near, core[KDTree(votes[core]).query(votes[near])[1]])
        for source in others[core_distance[others] < np.inf]:
            lower_reach(waiting_near(votes[source], votes[source]), source)
    return visited[position]


def _split_by(keys, values, num_keys):
    """The values of each key 0, 1, ..., as a list of arrays."""
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.cumsum(np.bincount(keys, minlength=num_keys)))


def _optics(votes, eps=1.0, min_samples=5, min_cluster_size=None, max_eps=None):
    labels = cluster_votes(votes, eps, min_samples, max_eps)
    smallest = min_samples if min_cluster_size is None else min_cluster_size
    size = np.bincount(labels + 1)
    return np.where(size[labels + 1] >= smallest, labels, -1)


def _optics_xi(votes, min_samples=5, max_eps=np.inf, xi=0.2, min_cluster_size=20):
    from sklearn.cluster import OPTICS  # a second to import, and not the default

    if len(votes) < max(min_samples, min_cluster_size):
        return np.full(len(votes), -1)
    with warnings.catch_warnings():
        # All votes further apart than max_eps: noise, and no reason to warn.
        warnings.filterwarnings("ignore", "All reachability values are inf")
        return OPTICS(
            min_samples=min_samples,
            max_eps=max_eps,
            xi=xi,
            min_cluster_size=min_cluster_size,
        ).fit_predict(votes)


def _hdbscan(votes, min_cluster_size=5, min_samples=None, allow_single_cluster=True):
    from sklearn.cluster import HDBSCAN

    if len(votes) < max(min_cluster_size, min_samples or 2):
        return np.full(len(votes), -1)
    return HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=min_samples,
        allow_single_cluster=allow_single_cluster,
        copy=True,
    ).fit_predict(votes)


METHODS = {"optics": _optics, "optics-xi": _optics_xi, "hdbscan": _hdbscan}
