"""What a network says of a picture, at the picture's own size.

Networks see pictures at one size. Probabilities, objects and disparity are enlarged
from there, and classes are decided after that: their borders are then as smooth as the
probabilities, not in steps of the network's pixels.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from mtl_keras.cityscapes import (
    FIRST_INSTANCE_ID,
    LABELS,
    encode_disparity,
    label_id_table,
)
from mtl_keras.hints import Size
from mtl_keras.instances.decoding import decode_objects
from mtl_keras.instances.offsets import keep_things
from mtl_keras.png import encode_png


class Lens(NamedTuple):
    """What it takes to turn disparity into distance.

    Attributes:
        focal: float, focal length in pixels of the picture.
        baseline: float, distance of the two cameras in metres.
    """

    focal: float
    baseline: float


class Answer(NamedTuple):
    """What a network says of a picture of `H` x `W` pixels; `None` for tasks that it
    does not have.

    Attributes:
        classes: `(H, W)` uint8, Cityscapes' label ids.
        instances: `(H, W)` int32, the number of the object from 1, else 0.
        disparity: `(H, W)` float32, in pixels of the picture.
        objects: a dict for each object: `number` in `instances`, `class`, `label_id`,
            `confidence` in 0..1, `pixels`, `box` (left, top, right, bottom; the last
            two exclusive), `centre` (x, y) of its pixels, and, with depth,
            `median_disparity` in pixels and, with a `Lens`, `distance_m`.
    """

    classes: np.ndarray | None
    instances: np.ndarray | None
    disparity: np.ndarray | None
    objects: list[dict[str, Any]]


def make_answer(
    outputs: Mapping[str, np.ndarray],
    size: Size,
    label_set: str = "train_ids",
    lens: Lens | None = None,
    **clustering: Any,
) -> Answer:
    """Enlarges the outputs for one picture and finds its objects.

    Args:
        outputs: dict by task of what `build_serving_model` returns for one picture:
            `semantic` `(h, w, num_classes)` probabilities, `instance` `(h, w, 2)`,
            `depth` `(h, w, 1)`. Other tasks are passed over.
        size: `(height, width)` of the picture.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        lens: optional, for distances.
        **clustering: as for `instances.cluster_offsets`.
    """
    height, width = size
    classes: np.ndarray | None = None
    disparity: np.ndarray | None = None
    instances: np.ndarray | None = None
    objects: list[dict[str, Any]] = []
    if "semantic" in outputs:
        classes = label_id_table(label_set)[enlarge_argmax(outputs["semantic"], size)]
        classes = classes.astype(np.uint8)
    if "depth" in outputs:
        small = np.ascontiguousarray(outputs["depth"][..., 0], np.float32)
        large = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        disparity = large * np.float32(width / small.shape[1])
    if classes is not None and "instance" in outputs:
        instances, objects = _find_objects(outputs, classes, label_set, clustering)
        for thing in objects:
            _describe(thing, instances, disparity, lens)
    return Answer(classes, instances, disparity, objects)


def enlarge_argmax(probabilities: np.ndarray, size: Size) -> np.ndarray:
    """The most probable class of each pixel after the probabilities are enlarged.

    Args:
        probabilities: `(h, w, num_classes)` float.
        size: `(height, width)` to enlarge to, linearly.

    Returns:
        `(height, width)` uint8 class indices, of the first class in a tie.
    """
    best = np.full(size, -np.inf, np.float32)
    index = np.zeros(size, np.uint8)
    for k in range(probabilities.shape[-1]):
        small = np.ascontiguousarray(probabilities[..., k], np.float32)
        plane = cv2.resize(small, size[::-1], interpolation=cv2.INTER_LINEAR)
        index[plane > best] = k
        np.maximum(best, plane, out=best)
    return index


def _find_objects(outputs, classes, label_set, clustering):
    """Objects at the network's size, and their pixels in the picture: those nearest to
    theirs that have their class."""
    probabilities = outputs["semantic"]
    index = probabilities.argmax(-1)
    things = keep_things(label_id_table(label_set)[index]).astype(np.uint8)
    sure = np.take_along_axis(probabilities, index[..., None], -1)[..., 0]
    small, found = decode_objects(outputs["instance"], things, sure, **clustering)
    height, width = classes.shape
    large = cv2.resize(
        small.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    ).astype(np.int32)
    ids = np.array([0, *(label_id for label_id, _ in found)])
    large[ids[large] != classes] = 0
    pixels = np.bincount(large.ravel(), minlength=len(found) + 1)
    numbers = np.cumsum(pixels[1:] > 0)  # objects without a pixel are left out
    instances = np.concatenate([[0], numbers]).astype(np.int32)[large]
    objects = [
        {
            "number": int(numbers[k]),
            "class": LABELS[label_id].name,
            "label_id": label_id,
            "confidence": round(confidence, 4),
            "pixels": int(pixels[k + 1]),
        }
        for k, (label_id, confidence) in enumerate(found)
        if pixels[k + 1]
    ]
    return instances, objects


def _describe(thing, instances, disparity, lens):
    """Adds to an object where it is, and how far away."""
    left, top, width, height = cv2.boundingRect(
        (instances == thing["number"]).astype(np.uint8)
    )
    thing["box"] = [left, top, left + width, top + height]
    window = slice(top, top + height), slice(left, left + width)
    inside = instances[window] == thing["number"]
    y, x = np.nonzero(inside)
    thing["centre"] = [
        round(left + float(x.mean()), 2),
        round(top + float(y.mean()), 2),
    ]
    if disparity is not None:
        median = float(np.median(disparity[window][inside]))
        thing["median_disparity"] = round(median, 4)
        if lens is not None:
            known = median > 0.1  # below that, anything far away is as likely
            distance = lens.focal * lens.baseline / median if known else None
            thing["distance_m"] = distance and round(distance, 2)


def encode_answer(
    answer: Answer, endings: Sequence[str], **facts: Any
) -> dict[str, bytes]:
    """The files of an answer, `{ending: bytes}`.

    `_labelIds.png` holds label ids (8 bit); `_instanceIds.png` `label id * 1000 +
    number` for objects, numbered by class from 0, and the label id elsewhere (16 bit);
    `_disparity.png` `256 * d + 1` with d in pixels of the picture (16 bit); `.json` the
    objects and whatever else is given. What the network does not say has no file.

    Args:
        answer: `Answer`.
        endings: of the files that are wanted.
        **facts: added to the JSON.
    """
    files = {}
    if "_labelIds.png" in endings and answer.classes is not None:
        files["_labelIds.png"] = encode_png(answer.classes)
    if "_instanceIds.png" in endings and answer.instances is not None:
        assert answer.classes is not None  # which the objects come from
        ids = encode_instances(answer.classes, answer.instances)
        files["_instanceIds.png"] = encode_png(ids)
    if "_disparity.png" in endings and answer.disparity is not None:
        files["_disparity.png"] = encode_png(encode_disparity(answer.disparity))
    if ".json" in endings:
        listed = {**facts, "objects": answer.objects}
        files[".json"] = (json.dumps(listed, indent=2) + "\n").encode()
    return files


def encode_instances(classes: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Cityscapes' coding of objects, `(H, W)` uint16.

    Args:
        classes: `(H, W)` label ids.
        instances: `(H, W)`, 1 to n for objects of one class each, else 0.
    """
    ids = classes.astype(np.uint16)
    counts: dict[int, int] = {}
    _, first = np.unique(instances, return_index=True)
    for number, position in zip(instances.ravel()[first], first):
        if number:
            label_id = int(classes.ravel()[position])
            ids[instances == number] = label_id * FIRST_INSTANCE_ID + counts.get(
                label_id, 0
            )
            counts[label_id] = counts.get(label_id, 0) + 1
    return ids


def write_files(directory: pathlib.Path, stem: str, files: Mapping[str, bytes]) -> None:
    """Writes the files of an answer; each appears when it is complete."""
    for ending, content in files.items():
        path = directory / f"{stem}{ending}"
        unfinished = path.with_name(f".{path.name}.part")
        try:
            unfinished.write_bytes(content)
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
