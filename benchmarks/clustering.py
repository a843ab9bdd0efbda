"""Times the clustering of centre votes against scikit-learn's.

    python -m benchmarks.clustering

Prints a Markdown table and writes it, with the machine and all times, as
`clustering.md` and `clustering.json`. The votes are those of a drawn scene with
exact offsets plus Gaussian noise, and a few that went astray. All programs get the
same votes and take turns, round after round; the table holds medians. Takes about
a minute.
"""

import argparse
import json
import pathlib
import statistics
import time

import numpy as np
from sklearn.cluster import DBSCAN, OPTICS

from mtl_keras.experiments.environment import describe
from mtl_keras.instances import encode_offsets
from mtl_keras.instances.clustering import cluster_votes

NAMES = {
    "ours": "`cluster_votes`",
    "optics": "scikit-learn `OPTICS`",
    "dbscan": "scikit-learn `DBSCAN`",
}


def make_votes(num_votes, noise, stray, seed, size=(128, 256)):
    """Votes `(num_votes, 2)` of overlapping ellipses, in raster order of their
    pixels, and the number of ellipses: as many as it takes to get the pixels."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    ids = np.zeros(size, np.int32)
    number = 26000
    while (ids > 0).sum() < num_votes:
        radius, centre = np.exp(rng.uniform(0.7, [3.2, 3.5])), rng.uniform(0, size)
        y, x = (rows - centre[0]) / radius[0], (columns - centre[1]) / radius[1]
        ids[y**2 + x**2 <= 1] = number
        number += 1
    ids.ravel()[np.flatnonzero(ids)[num_votes:]] = 0
    offsets, mask = encode_offsets(ids)
    votes = np.argwhere(mask) + offsets[mask].astype(np.float64)
    votes += rng.normal(0, noise, votes.shape)
    is_stray = rng.random(num_votes) < stray
    votes[is_stray] = rng.uniform(0, size, (is_stray.sum(), 2))
    return votes, len(np.unique(ids[mask]))


def is_same_partition(labels, others):
    """Whether two labellings agree up to the numbers, -1 being noise."""
    pairs = np.unique(np.stack([labels, others]), axis=1)
    noise_agrees = np.array_equal(labels == -1, others == -1)
    return bool(
        noise_agrees and all(len(np.unique(side)) == len(side) for side in pairs)
    )


def measure(options, num_votes):
    """One row: the labels compared, and the seconds of every round."""
    votes, num_objects = make_votes(
        num_votes, options.noise, options.stray, options.seed
    )
    eps, min_samples = options.eps, options.min_samples
    max_eps = options.max_eps or eps
    optics = OPTICS(
        min_samples=min_samples, max_eps=max_eps, eps=eps, cluster_method="dbscan"
    )
    dbscan = DBSCAN(min_samples=min_samples, eps=eps)
    programs = {
        "ours": lambda: cluster_votes(votes, eps, min_samples, max_eps),
        "optics": lambda: optics.fit_predict(votes),
        "dbscan": lambda: dbscan.fit_predict(votes),
    }
    if num_votes > options.optics_up_to:
        del programs["optics"]
    seconds = {name: [] for name in programs}
    for _ in range(options.rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            seconds[name].append(time.perf_counter() - start)
    labels = {name: program() for name, program in programs.items()}
    return {
        "votes": num_votes,
        "objects": num_objects,
        "clusters": int(labels["ours"].max()) + 1,
        "noise": int((labels["ours"] < 0).sum()),
        "equals_optics": is_same_partition(labels["ours"], labels["optics"])
        if "optics" in labels
        else None,
        "noise_unlike_dbscan": int(
            ((labels["ours"] < 0) & (labels["dbscan"] >= 0)).sum()
        ),
        "seconds": seconds,
    }


def make_table(rows):
    """The rows as Markdown, times in milliseconds."""
    lines = [
        "| votes | objects | clusters | "
        + " | ".join(f"{name}, ms" for name in NAMES.values())
        + " | faster than OPTICS | partition equals OPTICS | border votes dropped |",
        "|" + "---:|" * 9,
    ]
    for row in rows:
        medians = {
            name: statistics.median(row["seconds"][name])
            if name in row["seconds"]
            else None
            for name in NAMES
        }
        times = [
            "–" if value is None else f"{value * 1e3:.1f}" for value in medians.values()
        ]
        is_compared = medians["optics"] is not None
        lines.append(
            f"| {row['votes']} | {row['objects']} | {row['clusters']} | "
            + " | ".join(times)
            + (
                f" | {medians['optics'] / medians['ours']:.0f}x"
                if is_compared
                else " | –"
            )
            + f" | {'yes' if row['equals_optics'] else 'NO' if is_compared else '–'}"
            + f" | {row['noise_unlike_dbscan']} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--votes",
        type=int,
        nargs="+",
        default=[500, 1000, 2000, 4000, 8000, 16000, 30000],
    )
    parser.add_argument("--optics-up-to", type=int, default=8000, help="votes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eps", type=float, default=1.0)
    parser.add_argument("--max-eps", type=float, help="defaults to --eps")
    parser.add_argument("--min-samples", type=int, default=5)
    parser.add_argument("--noise", type=float, default=0.5, help="pixels")
    parser.add_argument("--stray", type=float, default=0.02, help="share of votes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results")
    )
    options = parser.parse_args()
    measure(options, min(options.votes))  # imports and caches
    rows = [measure(options, num_votes) for num_votes in options.votes]
    table = make_table(rows)
    print(table)
    options.output.mkdir(parents=True, exist_ok=True)
    result = {
        "options": {**vars(options), "output": options.output.name},
        "machine": describe(["numpy", "scipy", "scikit-learn"]),
        "rows": rows,
    }
    (options.output / "clustering.md").write_text(table + "\n", encoding="utf-8")
    (options.output / "clustering.json").write_text(
        json.dumps(result, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
