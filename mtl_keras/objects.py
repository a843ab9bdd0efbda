"""From the centre votes of a whole split to its objects and their score.

This module runs in worker processes, so it imports nothing heavy.
"""

import pathlib
import tempfile
from typing import NamedTuple

import numpy as np

from mtl_keras.cityscapes import FIRST_INSTANCE_ID, LABEL_SETS, class_index_table
from mtl_keras.errors import UserError
from mtl_keras.instances import decode_objects, encode_offsets, thing_classes
from mtl_keras.scoring import score_instances, write_prediction, write_truth
from mtl_keras.workers import WorkerPool


class _Directories(NamedTuple):
    predictions: pathlib.Path
    truth: pathlib.Path
    upper_bound: pathlib.Path


class ObjectScore:
    """Turns the votes for the frames of a split into objects, and scores them.

    The decoding runs on all cores; use it in a `with` block. Beside the network's,
    the true votes for the true classes are decoded: no network can score better.

    Args:
        num_frames: int. Frames in the split.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        mask: str. `"predicted"`, or `"truth"` to look for objects where there are
            some, in their true classes.
        method: str, as for `instances.cluster_offsets`.
        directory: where to keep the predictions as submitted to the benchmark, in
            place of earlier ones. Without it, they are not kept.
        left_over: str, as for `instances.cluster_offsets`.

    Raises:
        UserError: if `directory` holds anything but predictions.
    """

    def __init__(
        self, num_frames, label_set, mask, method, directory=None, left_over="noise"
    ):
        self.num_frames = num_frames
        self.label_set = label_set
        self.mask = mask
        self.method = method
        self.left_over = left_over
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

    def __enter__(self):
        self._pool.__enter__()
        return self

    def __exit__(self, *error):
        self._pool.__exit__(*error)

    def add(self, frame_ids, predictions, instance_ids):
        """Decodes a batch.

        Args:
            frame_ids: list of str.
            predictions: dict of arrays by task, as the network returns them.
            instance_ids: `(batch, H, W)`, the true ones.

        Returns:
            For each frame `(classes, instances)`, the label ids of predicted things
            and the number of the object, `(H, W)` with 0 for none.
        """
        classes, probability = choose_classes(
            predictions.get("semantic"), instance_ids, self.label_set, self.mask
        )
        jobs = [
            (self._directories, self.method, self.left_over, frame_id, *maps)
            for frame_id, *maps in zip(
                frame_ids, predictions["instance"], classes, probability, instance_ids
            )
        ]
        return [*zip(classes, self._pool.map(_decode_frame, jobs))]

    def score(self):
        """Scores all frames; as `score_instances` returns it, and with `mask`,
        `method`, `left_over` and `upper_bound`, the score of the true votes and
        classes."""
        directories = self._directories
        return {
            "mask": self.mask,
            "method": self.method,
            "left_over": self.left_over,
            **score_instances(directories.predictions, directories.truth),
            "upper_bound": score_instances(directories.upper_bound, directories.truth),
        }


def check_tasks(tasks, mask):
    """Raises `UserError` if objects are not to be had from these tasks."""
    if "instance" not in tasks:
        raise UserError(
            "--instances needs the task instance, which the run was not trained for; "
            "train one with --tasks semantic,instance."
        )
    if "semantic" not in tasks and mask == "predicted":
        raise UserError(
            "--instances needs the task semantic, which the run was not trained for; "
            "look for objects in the true classes with --mask truth."
        )


def choose_classes(logits, instance_ids, label_set, mask):
    """What the pixels of things are, and how sure that is.

    Args:
        logits: `(batch, H, W, num_classes)`, or `None` without the semantic task;
            every probability is 1 then.
        instance_ids: `(batch, H, W)`, the true ones.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        mask: str, `"predicted"` or `"truth"`, as for `ObjectScore`.

    Returns:
        Label ids of things, else 0, uint8; and the predicted probability of that
        class; each `(batch, H, W)`.
    """
    if logits is not None:
        logits = np.asarray(logits, np.float32)
        probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
    if mask == "truth":
        classes = thing_classes(instance_ids // FIRST_INSTANCE_ID)
        index = np.maximum(class_index_table(label_set)[classes], 0)
    else:
        index = logits.argmax(axis=-1)
        label_ids = np.array([label.id for label in LABEL_SETS[label_set]])
        classes = thing_classes(label_ids[index])
    classes = classes.astype(np.uint8)
    if logits is None:
        return classes, np.ones(classes.shape, np.float32)
    return classes, np.take_along_axis(probabilities, index[..., None], -1)[..., 0]


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
            f"{others[0]} is no prediction, and {directory} is for predictions alone; "
            "move that file away or choose another directory."
        )
    for path in files:
        path.unlink()


def _decode_frame(job):
    directories, method, left_over, frame_id, offsets, *maps = job
    classes, probability, instance_ids = maps
    instances, objects = decode_objects(
        offsets, classes, probability, method, left_over=left_over
    )
    write_prediction(directories.predictions, frame_id, instances, objects)
    write_truth(directories.truth, frame_id, instance_ids)
    offsets, _ = encode_offsets(instance_ids)
    classes = thing_classes(instance_ids // FIRST_INSTANCE_ID)
    certain = np.ones(classes.shape)
    best = decode_objects(offsets, classes, certain, method, left_over=left_over)
    write_prediction(directories.upper_bound, frame_id, *best)
    return instances
