"""Searches the parameters of OPTICS that turn centre votes into objects.

    python -m benchmarks.instance_parameters runs/demo

Prints AP50 of frames of the training split as a Markdown table and writes it, with
the machine and all scores, as `instance_parameters.md` and `.json`. The columns:

    true      true votes, true classes: what no network can exceed
    noisy     true votes plus smooth noise, a fifth of the size of the object, true
              classes
    network   the votes of the run: in the true classes, and in its own

Takes about two minutes at 64x128.
"""

import argparse
import itertools
import json
import os
import pathlib
import tempfile

import numpy as np
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from mtl_keras.cityscapes import FIRST_INSTANCE_ID
from mtl_keras.experiments.environment import describe
from mtl_keras.instances import decode_objects, encode_offsets
from mtl_keras.instances.average_precision import (
    score_instances,
    write_prediction,
    write_truth,
)
from mtl_keras.instances.offsets import keep_things
from mtl_keras.workers import WorkerPool

COLUMNS = {
    "true": "true votes and classes",
    "noisy": "noisy votes, true classes",
    "votes": "network's votes, true classes",
    "all": "network's votes and classes",
}


def load_votes(run, num_frames, batch_size=10):
    """`{column: (offsets, classes, probability)}` of the first frames of the training
    split of a run, and their instance ids, all with a leading axis of frames."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from mtl_keras.experiments import runs, setup
    from mtl_keras.experiments.options import TrainOptions, read_options
    from mtl_keras.experiments.problems import open_problem
    from mtl_keras.instances.decoding import choose_classes

    options = read_options(TrainOptions, run / "options.json")
    problem = open_problem(options)
    trainer = setup.build_trainer(problem)
    runs.restore_best(trainer, run)
    batches = zip(
        problem.make_batches("train", batch_size),
        problem.load_instance_ids("train", batch_size),
    )
    found = []
    for (images, _, _), ids in itertools.islice(batches, num_frames // batch_size):
        outputs = trainer.network.predict_on_batch(images)
        found.append(
            (
                ids,
                outputs["instance"],
                *(
                    part
                    for object_classes in ("true", "predicted")
                    for part in choose_classes(
                        outputs["semantic"], ids, options.label_set, object_classes
                    )
                ),
            )
        )
    ids, offsets, *classes = map(np.concatenate, zip(*found))
    return {"votes": (offsets, *classes[:2]), "all": (offsets, *classes[2:])}, ids


def make_votes(ids, seed=0):
    """The columns that need no network, like `load_votes`."""
    rng = np.random.default_rng(seed)
    true = np.stack([encode_offsets(frame)[0] for frame in ids])
    noisy = true + np.stack([_noise(frame, rng) for frame in ids])
    classes = keep_things(ids // FIRST_INSTANCE_ID)
    certain = np.ones(classes.shape)
    return {"true": (true, classes, certain), "noisy": (noisy, classes, certain)}


def _noise(ids, rng, correlation=2.0, share=0.2):
    """Noise as a network's: smooth, and larger for larger objects."""
    _, index, count = np.unique(ids, return_inverse=True, return_counts=True)
    size = np.sqrt(count)[index.reshape(ids.shape), None]
    white = rng.normal(size=(*ids.shape, 2))
    smooth = gaussian_filter(white, (correlation, correlation, 0))
    return share * size * smooth / smooth.std()


def score(ids, votes, parameters):
    """AP and AP50 of the frames, decoded with these parameters."""
    with tempfile.TemporaryDirectory() as directory:
        truth = pathlib.Path(directory) / "truth"
        truth.mkdir()
        predictions = pathlib.Path(directory) / "predictions"
        for number, (frame, *maps) in enumerate(zip(ids, *votes)):
            frame_id = f"frame_{number:06d}_000000"
            write_truth(truth, frame_id, frame)
            decoded = decode_objects(*maps, **parameters)
            write_prediction(predictions, frame_id, *decoded)
        result = score_instances(predictions, truth, progress=False)
    return {"ap": result["ap"], "ap50": result["ap50"]}


def score_row(job):
    ids, votes, parameters = job
    return {column: score(ids, maps, parameters) for column, maps in votes.items()}


def make_table(grid, rows):
    """AP50 in percent as Markdown, the best of each column in bold."""
    columns = [*rows[0]]
    best = {
        column: max(round(row[column]["ap50"], 3) for row in rows) for column in columns
    }
    lines = [
        "| eps | min_samples | min_cluster_size | "
        + " | ".join(COLUMNS[column] for column in columns)
        + " |",
        "|" + "---:|" * (3 + len(columns)),
    ]
    for parameters, row in zip(grid, rows):
        cells = [f"{value:g}" for value in parameters.values()]
        for column in columns:
            text = f"{row[column]['ap50'] * 100:.1f}"
            is_best = round(row[column]["ap50"], 3) == best[column]
            cells.append(f"**{text}**" if is_best else text)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path, help="directory of a trained run")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument(
        "--eps", type=float, nargs="+", default=[0.5, 0.7, 1.0, 1.5, 2.0, 3.0]
    )
    parser.add_argument("--min-samples", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--min-cluster-size", type=int, nargs="+", default=[20])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results")
    )
    options = parser.parse_args()
    votes, ids = load_votes(options.run, options.frames)
    votes = {**make_votes(ids), **votes}
    grid = [
        {"eps": eps, "min_samples": samples, "min_cluster_size": size}
        for eps, samples, size in itertools.product(
            options.eps, options.min_samples, options.min_cluster_size
        )
    ]
    jobs = [(ids, votes, parameters) for parameters in grid]
    # The workers have to find the function, and this script is not run by them.
    from benchmarks.instance_parameters import score_row

    with WorkerPool(len(jobs), min_jobs=2) as pool:
        rows = [*tqdm(pool.map(score_row, jobs), total=len(jobs), unit="setting")]
    table = make_table(grid, rows)
    print(table)
    options.output.mkdir(parents=True, exist_ok=True)
    result = {
        "run": options.run.name,
        "image_size": ids.shape[1:],
        "frames": len(ids),
        "machine": describe(["numpy", "scipy", "cityscapesscripts"]),
        "rows": [{**parameters, **row} for parameters, row in zip(grid, rows)],
    }
    (options.output / "instance_parameters.md").write_text(
        table + "\n", encoding="utf-8"
    )
    (options.output / "instance_parameters.json").write_text(
        json.dumps(result, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
