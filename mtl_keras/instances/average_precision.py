"""Average precision of objects, by the official Cityscapes evaluator.

Predictions are written as they are submitted to the benchmark: one text file per
frame, whose lines name a binary mask, a label id and a confidence. The true instance
ids of the records are written beside them. Every data set is thus scored in the same
way, at the network's resolution. The evaluator's smallest object, 100 pixels, is
measured there too; smaller ones neither count nor do harm.

This module runs in worker processes, so it imports nothing heavy.

References:
 - `evalInstanceLevelSemanticLabeling.py` of
   [cityscapesScripts](https://github.com/mcordts/cityscapesScripts)
"""

import contextlib
import copy
import os
import pathlib
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from mtl_keras.cityscapes import FILES, FIRST_INSTANCE_ID, LABEL_IDS
from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike
from mtl_keras.png import encode_png

TRUTH_ENDING = FILES["instance"][1]


def write_truth(
    directory: pathlib.Path, frame_id: str, instance_ids: np.ndarray
) -> None:
    """Writes the true instance ids of a frame for `score_instances`.

    Args:
        directory: an existing directory to write to.
        frame_id: str.
        instance_ids: integer array `(H, W)` as in `*_instanceIds.png`.

    Raises:
        UserError: for an instance id of no Cityscapes label.
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


def write_prediction(
    directory: pathlib.Path,
    frame_id: str,
    instances: np.ndarray,
    objects: Sequence[tuple[int, float]],
) -> None:
    """Writes the objects of a frame in the format of the benchmark.

    That is `{frame id}.txt`, with a line `masks/{frame id}_{number}.png label_id
    confidence` for every object, and the masks that it names.

    Args:
        directory: the directory to write to, created if necessary.
        frame_id: str.
        instances: integer array `(H, W)`, 0 for no object, else 1 to n.
        objects: list of n `(label id, confidence)`, the confidence in 0..1.
    """
    directory = pathlib.Path(directory)
    (directory / "masks").mkdir(parents=True, exist_ok=True)
    name = urllib.parse.quote(os.fsencode(frame_id))  # lines are split at spaces
    lines = []
    for number, (label_id, confidence) in enumerate(objects, start=1):
        mask = f"masks/{name}_{number}.png"
        png = encode_png(np.where(instances == number, 255, 0).astype(np.uint8))
        (directory / mask).write_bytes(png)
        lines.append(f"{mask} {label_id} {confidence:.6f}\n")
    (directory / f"{frame_id}.txt").write_text("".join(lines), encoding="utf-8")


def score_instances(
    predictions: PathLike, truth: PathLike, progress: bool = True
) -> dict[str, Any]:
    """Average precision of what was written for the frames of a directory.

    AP is the mean over the classes and over the overlaps 0.50, 0.55, ..., 0.95 that
    an object must exceed to count as found; AP50 is the mean at the overlap 0.50
    only. A class without a true object of at least 100 pixels is left out.

    Args:
        predictions: directory that `write_prediction` wrote to.
        truth: directory that `write_truth` wrote to; says which frames there are.
        progress: bool. Whether to show a progress bar.

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

    predictions = pathlib.Path(predictions).absolute()
    pairs = _pair_files(predictions, pathlib.Path(truth).absolute())
    args = copy.copy(official.args)
    args.predictionPath = str(predictions)
    args.quiet, args.distanceAvailable = True, False
    official.setInstanceLabels(args)
    # This is what evaluateImgLists does, except that it would cache the true objects
    # in the package, leave a matches.json, and say nothing for minutes.
    matches: dict[str, dict] = {}
    with _numpy_with_in1d():
        for prediction, path in tqdm(
            pairs, unit="frame", desc="score", leave=False, disable=not progress
        ):
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


def _pair_files(predictions, truth):
    """The paths of prediction and truth of every frame, as text."""
    pairs = []
    for path in sorted(truth.glob("[!.]*" + TRUTH_ENDING)):
        prediction = predictions / (path.name.removesuffix(TRUTH_ENDING) + ".txt")
        if not prediction.exists():
            raise UserError(
                f"{prediction} is missing; predict every frame of the split."
            )
        pairs.append((str(prediction), str(path)))
    return pairs


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
            # The evaluator fails when all objects of a class are missed and all
            # predictions are to be ignored. Nothing is found then.
            scores[index] = 0.0
    return scores


@contextlib.contextmanager
def _numpy_with_in1d():
    """Lends NumPy the function `in1d`, which the evaluator of cityscapesScripts 2.2
    and 2.3 calls and NumPy 2.4 no longer has."""
    if hasattr(np, "in1d"):
        yield
        return
    np.in1d = np.isin  # the same answer, which the evaluator reshapes itself
    try:
        yield
    finally:
        del np.in1d
