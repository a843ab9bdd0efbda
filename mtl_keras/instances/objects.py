"""From the centre votes of a whole split to its objects and their score.

This module runs in worker processes, so it imports nothing heavy.
"""

import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from mtl_keras.cityscapes import FIRST_INSTANCE_ID
from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike
from mtl_keras.instances.average_precision import (
    score_instances,
    write_prediction,
    write_truth,
)
from mtl_keras.instances.decoding import choose_classes, decode_objects
from mtl_keras.instances.offsets import encode_offsets, keep_things
from mtl_keras.workers import WorkerPool


class _Directories(NamedTuple):
    predictions: pathlib.Path
    truth: pathlib.Path
    upper_bound: pathlib.Path


class ObjectScorer:
    """Turns the votes for the frames of a split into objects, and scores them.

    The decoding runs on all cores; use it in a `with` block. Besides the network's
    votes, the true votes in the true classes are decoded, as an upper bound.

    Args:
        num_frames: int. Frames in the split.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        object_classes: str. `"predicted"`, or `"true"` to look for objects only where
            there are some, in their true classes.
        method: str, as for `instances.cluster_offsets`.
        directory: optional, where to keep the predictions as submitted to the
            benchmark; they replace earlier ones. Without it they are not kept.
        left_over: str, as for `instances.cluster_offsets`.
        **options: those of the method, as for `instances.cluster_offsets`.

    Raises:
        UserError: if `directory` holds anything but predictions.
    """

    def __init__(
        self,
        num_frames: int,
        label_set: str,
        object_classes: str = "predicted",
        method: str = "optics",
        directory: PathLike | None = None,
        left_over: str = "noise",
        **options: Any,
    ) -> None:
        self.label_set = label_set
        self.object_classes = object_classes
        self.clustering = {"method": method, "left_over": left_over, **options}
        self._temporary = tempfile.TemporaryDirectory()
        temporary = pathlib.Path(self._temporary.name)
        self._directories = _Directories(
            predictions=pathlib.Path(directory or temporary / "predictions"),
            truth=temporary / "truth",
            upper_bound=temporary / "upper_bound",
        )
        _remove_predictions(self._directories.predictions)
        for path in self._directories:
            path.mkdir(parents=True, exist_ok=True)
        self._pool = WorkerPool(num_frames)

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.__exit__(*error)

    def update(
        self,
        frame_ids: Sequence[str],
        predictions: Mapping[str, np.ndarray],
        instance_ids: np.ndarray,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Decodes a batch.

        Args:
            frame_ids: list of str.
            predictions: dict of arrays by task, as the network returns them:
                `instance`, and `semantic` if it has that task.
            instance_ids: `(batch, H, W)`, the true ones.

        Returns:
            For each frame `(classes, instances)`, the label ids of things and the
            numbers of the objects, each `(H, W)` with 0 for none.
        """
        classes, probability = choose_classes(
            predictions.get("semantic"),
            instance_ids,
            self.label_set,
            self.object_classes,
        )
        jobs = [
            (self._directories, self.clustering, frame_id, *maps)
            for frame_id, *maps in zip(
                frame_ids, predictions["instance"], classes, probability, instance_ids
            )
        ]
        return [*zip(classes, self._pool.map(_decode_frame, jobs))]

    def result(self) -> dict[str, Any]:
        """Scores all frames.

        Returns:
            `{"instances": scores}`: what `score_instances` returns, `object_classes`,
            `method`, `left_over` and the other options, and `upper_bound`, the scores
            of the true votes in the true classes.
        """
        paths = self._directories
        scores = {
            "object_classes": self.object_classes,
            **self.clustering,
            **score_instances(paths.predictions, paths.truth),
            "upper_bound": score_instances(paths.upper_bound, paths.truth),
        }
        return {"instances": scores}


def _remove_predictions(directory):
    """Removes what `write_prediction` wrote, if a directory holds nothing else."""
    files = [path for path in directory.rglob("*") if not path.is_dir()]
    predictions = set()
    for path in directory.glob("*.txt"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if all(line.startswith("masks/") for line in lines):
            predictions |= {path, *(directory / line.split()[0] for line in lines)}
    if others := sorted(set(files) - predictions):
        raise UserError(
            f"{others[0]} is not a prediction, and {directory} is for predictions "
            "alone; move that file away or choose another directory."
        )
    for path in files:
        path.unlink()


def _decode_frame(job):
    directories, clustering, frame_id, offsets, *maps = job
    classes, probability, instance_ids = maps
    instances, objects = decode_objects(offsets, classes, probability, **clustering)
    write_prediction(directories.predictions, frame_id, instances, objects)
    write_truth(directories.truth, frame_id, instance_ids)
    offsets, _ = encode_offsets(instance_ids)
    classes = keep_things(instance_ids // FIRST_INSTANCE_ID)
    certain = np.ones(classes.shape)
    best = decode_objects(offsets, classes, certain, **clustering)
    write_prediction(directories.upper_bound, frame_id, *best)
    return instances
