"""Average precision of objects, by the official Cityscapes evaluator.

Predictions are written as they are submitted to the benchmark, one text file a frame
whose lines name a binary mask, a label id and a confidence. The true instance ids of
the records are written beside them, so that any data set is scored in one way: at
the network's resolution. The evaluator's smallest object, 100 pixels, is meant there
too; smaller ones neither count nor harm.

This module runs in worker processes, so it imports nothing heavy.

References:
 - `evalInstanceLevelSemanticLabeling.py` of
   [cityscapesScripts](https://github.com/mcordts/cityscapesScripts)
"""

import contextlib
import copy
import multiprocessing
import os
import pathlib
import shutil
import tempfile
import urllib.parse

import numpy as np
from tqdm import tqdm

from mtl_keras.cityscapes import (
    FILES,
    FIRST_INSTANCE_ID,
    LABEL_IDS,
    LABEL_SETS,
    class_index_table,
)
from mtl_keras.errors import UserError
from mtl_keras.frames import encode_png
from mtl_keras.instances import decode_objects, encode_offsets, thing_classes

TRUTH_ENDING = FILES["instance"][1]


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
        directory: where to keep the predictions as submitted to the benchmark, made
            anew. Without it, they are not kept.
    """

    def __init__(self, num_frames, label_set, mask, method, directory=None):
        self.num_frames = num_frames
        self.label_set = label_set
        self.mask = mask
        self.method = method
        self._temporary = tempfile.TemporaryDirectory()
        temporary = pathlib.Path(self._temporary.name)
        self.predictions = pathlib.Path(directory or temporary / "predictions")
        shutil.rmtree(self.predictions, ignore_errors=True)
        self.truth, self.best = temporary / "truth", temporary / "best"
        for path in (self.predictions, self.truth, self.best):
            path.mkdir(parents=True)
        self._pool = None

    def __enter__(self):
        workers = len(os.sched_getaffinity(0))
        if workers > 1 and self.num_frames >= 32:  # worth the start of the workers
            # Forking a process that runs TensorFlow's threads is not safe.
            self._pool = multiprocessing.get_context("spawn").Pool(workers)
        return self

    def __exit__(self, *_):
        if self._pool is not None:
            self._pool.terminate()

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
        classes, probability = _choose_classes(
            predictions.get("semantic"), instance_ids, self.label_set, self.mask
        )
        jobs = [
            (self, frame_id, *maps)
            for frame_id, *maps in zip(
                frame_ids, predictions["instance"], classes, probability, instance_ids
            )
        ]
        decode = self._pool.map if self._pool else map
        return [*zip(classes, decode(_decode_frame, jobs))]

    def __getstate__(self):
        # What the workers need to know.
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def score(self):
        """Scores all frames; as `score_instances` returns it, and with `mask`,
        `method` and `upper_bound`, the score of the true votes and classes."""
        return {
            "mask": self.mask,
            "method": self.method,
            **score_instances(self.predictions, self.truth),
            "upper_bound": score_instances(self.best, self.truth),
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


def _choose_classes(logits, instance_ids, label_set, mask):
    """Label ids of things, else 0, and their probability, each `(batch, H, W)`."""
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


def _decode_frame(job):
    score, frame_id, offsets, classes, probability, instance_ids = job
    instances, objects = decode_objects(offsets, classes, probability, score.method)
    write_prediction(score.predictions, frame_id, instances, objects)
    write_truth(score.truth, frame_id, instance_ids)
    true_offsets, _ = encode_offsets(instance_ids)
    true_classes = thing_classes(instance_ids // FIRST_INSTANCE_ID)
    certain = np.ones(true_classes.shape)
    decoded = decode_objects(true_offsets, true_classes, certain, score.method)
    write_prediction(score.best, frame_id, *decoded)
    return instances


def write_truth(directory, frame_id, instance_ids):
    """Writes the true instance ids of a frame for `score_instances`.

    Args:
        directory: where to, an existing directory.
        frame_id: str.
        instance_ids: integer array `(H, W)` as in `*_instanceIds.png`.
    """
    number = np.unique(instance_ids)
    label_ids = np.where(
        number >= FIRST_INSTANCE_ID, number // FIRST_INSTANCE_ID, number
    )
    unknown = number[~np.isin(label_ids, [*LABEL_IDS.values()])]
    if unknown.size:
        raise UserError(
            f"The frame {frame_id} has the instance id {unknown[0]}, which belongs to "
            "no Cityscapes label; correct its file."
        )
    png = encode_png(np.asarray(instance_ids).astype(np.uint16))
    (pathlib.Path(directory) / (frame_id + TRUTH_ENDING)).write_bytes(png)


def write_prediction(directory, frame_id, instances, objects):
    """Writes the objects of a frame in the format of the benchmark.

    That is `{frame id}.txt`, with a line `masks/{frame id}_{number}.png label_id
    confidence` for every object, and the masks that it names.

    Args:
        directory: where to, made if need be.
        frame_id: str.
        instances: integer array `(H, W)`, 0 for no object, else 1 to n.
        objects: list of n `(label id, confidence)`.
    """
    directory = pathlib.Path(directory)
    (directory / "masks").mkdir(parents=True, exist_ok=True)
    name = urllib.parse.quote(frame_id)  # the lines are split at spaces
    lines = []
    for number, (label_id, confidence) in enumerate(objects, start=1):
        mask = f"masks/{name}_{number}.png"
        png = encode_png(np.where(instances == number, 255, 0).astype(np.uint8))
        (directory / mask).write_bytes(png)
        lines.append(f"{mask} {label_id} {confidence:.6f}\n")
    (directory / f"{frame_id}.txt").write_text("".join(lines))


def score_instances(predictions, truth):
    """Average precision of what was written for the frames of a directory.

    AP is the mean over the classes and over the overlaps 0.50, 0.55, ..., 0.95 that
    an object must exceed to be found; AP50 that of the overlap 0.50 alone. A class
    without a true object of 100 pixels is left out of the mean.

    Args:
        predictions: directory that `write_prediction` wrote to.
        truth: directory that `write_truth` wrote to; says which frames there are.

    Returns:
        dict: `ap` and `ap50`, floats in 0..1, `None` if there is no object at all;
        and `classes`, `{name: {"ap": float, "ap50": float} or None}`.

    Raises:
        UserError: names a frame without a prediction.
    """
    # Not at the top: it is an extra, and reads its environment when imported.
    from cityscapesscripts.evaluation import (
        evalInstanceLevelSemanticLabeling as official,
    )

    truth_paths = sorted(pathlib.Path(truth).absolute().glob("*" + TRUTH_ENDING))
    predictions = pathlib.Path(predictions).absolute()
    pairs = []
    for path in truth_paths:
        prediction = predictions / (path.name.removesuffix(TRUTH_ENDING) + ".txt")
        if not prediction.exists():
            raise UserError(
                f"{prediction} is missing; predict every frame of the split."
            )
        pairs.append((str(prediction), str(path)))
    args = copy.copy(official.args)
    args.predictionPath, args.quiet, args.distanceAvailable = (
        str(predictions),
        True,
        False,
    )
    official.setInstanceLabels(args)
    # What evaluateImgLists does, but for three things: it would cache the true
    # objects in the package, leave a matches.json, and say nothing for minutes.
    matches = {}
    with _numpy_with_in1d():
        for prediction, path in tqdm(pairs, unit="frame", desc="score", leave=False):
            objects = official.instances2dict([path])
            matches |= official.matchGtWithPreds([prediction], [path], objects, args)
    scores = _average_precisions(official, matches, args)
    if np.isnan(scores).all():
        return {"ap": None, "ap50": None, "classes": dict.fromkeys(args.instLabels)}
    averages = official.computeAverages(scores[None], args)
    return {
        "ap": float(averages["allAp"]),
        "ap50": float(averages["allAp50%"]),
        "classes": {
            name: None
            if np.isnan(score["ap"])
            else {"ap": float(score["ap"]), "ap50": float(score["ap50%"])}
            for name, score in averages["classes"].items()
        },
    }


def _average_precisions(official, matches, args):
    """The official AP by class and overlap, NaN for a class that is absent."""
    scores = np.zeros((len(args.instLabels), len(args.overlaps)))
    for index in np.ndindex(*scores.shape):
        one = copy.copy(args)
        one.instLabels = [args.instLabels[index[0]]]
        one.overlaps = [args.overlaps[index[1]]]
        try:
            scores[index] = official.evaluateMatches(matches, one)[0, 0, 0]
        except IndexError:
            # It fails when all objects of a class are missed and all that was
            # predicted is to be ignored. Nothing is found then.
            scores[index] = 0.0
    return scores


@contextlib.contextmanager
def _numpy_with_in1d():
    """Gives NumPy its `in1d` back, which the evaluator of cityscapesScripts 2.2 and
    2.3 calls and NumPy 2.4 no longer has; and takes it away again."""
    if hasattr(np, "in1d"):
        yield
        return
    np.in1d = np.isin  # same answer; the evaluator reshapes it itself
    try:
        yield
    finally:
        del np.in1d
