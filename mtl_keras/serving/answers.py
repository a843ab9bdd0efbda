"""What a network says about a picture, at the picture's own size.

Networks see pictures at one size. Probabilities, objects and disparity are enlarged
from there, and classes are decided after that: their borders are then as smooth as the
probabilities, not in steps of the network's pixels.
"""

import collections
import contextlib
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
from mtl_keras.errors import UserError
from mtl_keras.hints import Size
from mtl_keras.instances.decoding import decode_objects
from mtl_keras.instances.offsets import keep_things
from mtl_keras.png import encode_png


class StereoCamera(NamedTuple):
    """What it takes to turn disparity into distance.

    Attributes:
        focal: float, focal length in pixels of the picture.
        baseline: float, distance of the two cameras in metres.
    """

    focal: float
    baseline: float


class Answer(NamedTuple):
    """What a network says about a picture of `H` x `W` pixels; `None` for tasks that it
    does not have.

    Attributes:
        classes: `(H, W)` uint8, Cityscapes' label ids.
        instances: `(H, W)` int32, the number of the object from 1, else 0.
        disparity: `(H, W)` float32, in pixels of the picture.
        objects: a dict for each object: `number` in `instances`, `class`, `label_id`,
            `confidence` in 0..1, `pixels`, `box` (left, top, right, bottom; the last
            two exclusive), `centre` (x, y) of its pixels, and, with depth,
            `median_disparity` in pixels and, with a `StereoCamera`, `distance_m`.
    """

    classes: np.ndarray | None
    instances: np.ndarray | None
    disparity: np.ndarray | None
    objects: list[dict[str, Any]]


def make_answer(
    outputs: Mapping[str, np.ndarray],
    size: Size,
    label_set: str = "train_ids",
    camera: StereoCamera | None = None,
    **clustering: Any,
) -> Answer:
    """Enlarges the outputs for one picture and finds its objects.

    Args:
        outputs: dict by task of what `build_serving_model` returns for one picture:
            `semantic` `(h, w, num_classes)` probabilities, `instance` `(h, w, 2)`,
            `depth` `(h, w, 1)`. Other tasks are passed over.
        size: `(height, width)` of the picture.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        camera: optional, for distances.
        **clustering: as for `instances.cluster_offsets`.
    """
    height, width = size
    classes: np.ndarray | None = None
    disparity: np.ndarray | None = None
    instances: np.ndarray | None = None
    objects: list[dict[str, Any]] = []
    if "semantic" in outputs:
        index = enlarge_argmax(outputs["semantic"], size)
        label_ids = np.zeros(256, np.uint8)
        known = label_id_table(label_set)
        label_ids[: len(known)] = known
        classes = cv2.LUT(index, label_ids)
    if "depth" in outputs:
        small = np.ascontiguousarray(outputs["depth"][..., 0], np.float32)
        large = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        disparity = large * np.float32(width / small.shape[1])
    if classes is not None and "instance" in outputs:
        small, found = _find_objects(outputs, label_set, clustering)
        instances, objects = _place_objects(small, found, classes, disparity, camera)
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
    for k in _find_candidates(probabilities):
        small = np.ascontiguousarray(probabilities[..., k], np.float32)
        plane = cv2.resize(small, size[::-1], interpolation=cv2.INTER_LINEAR)
        # Classes come in order, so a class that wins has the largest index so far.
        wins = np.asarray(cv2.compare(plane, best, cv2.CMP_GT), np.uint8)  # 0 or 255
        np.maximum(index, wins & np.uint8(k), out=index)
        cv2.max(best, plane, best)
    return index


def _find_candidates(probabilities):
    """The classes that can be the most probable one somewhere between pixels.

    Between four pixels a class has at most the largest of its four values, and some
    class has at least the largest, over classes, of the smallest of its four.
    """
    padded = np.pad(probabilities, ((0, 1), (0, 1), (0, 0)), "edge")
    left, right = padded[:, :-1], padded[:, 1:]
    low, high = np.minimum(left, right), np.maximum(left, right)
    least, most = np.minimum(low[:-1], low[1:]), np.maximum(high[:-1], high[1:])
    can_win = most >= least.max(axis=-1, keepdims=True) - 1e-6  # for rounding
    return np.flatnonzero(can_win.any(axis=(0, 1)))


def _find_objects(outputs, label_set, clustering):
    """Objects at the network's size, as `decode_objects` returns them."""
    probabilities = outputs["semantic"]
    index = probabilities.argmax(-1)
    things = keep_things(label_id_table(label_set)[index]).astype(np.uint8)
    sure = np.take_along_axis(probabilities, index[..., None], -1)[..., 0]
    return decode_objects(outputs["instance"], things, sure, **clustering)


def _place_objects(small, found, classes, disparity, camera):
    """The objects in the picture: their pixels are those that are nearest to pixels of
    theirs in `small` and have their class. An object without a pixel is left out."""
    height, width = classes.shape
    nearest = cv2.resize(
        small.astype(np.uint16), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    instances, objects = np.zeros(classes.shape, np.int32), []
    for k, (label_id, confidence) in enumerate(found, 1):
        window = _window_of(small == k, classes.shape)
        inside = (nearest[window] == k) & (classes[window] == label_id)
        if not inside.any():
            continue
        number = len(objects) + 1
        instances[window][inside] = number
        y, x = np.nonzero(inside)
        y, x = y + window[0].start, x + window[1].start
        thing = {
            "number": number,
            "class": LABELS[label_id].name,
            "label_id": label_id,
            "confidence": round(confidence, 4),
            "pixels": len(x),
            "box": [int(edge) for edge in (x.min(), y.min(), x.max() + 1, y.max() + 1)],
            "centre": [round(float(axis.mean()), 2) for axis in (x, y)],
        }
        if disparity is not None:
            median = float(np.median(disparity[window][inside]))
            thing["median_disparity"] = round(median, 4)
            if camera is not None:
                thing["distance_m"] = _distance(median, camera)
        objects.append(thing)
    return instances, objects


def _window_of(mask, size):
    """The part of the picture that a mask at the network's size may reach."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    scales = size[0] / mask.shape[0], size[1] / mask.shape[1]
    return tuple(
        slice(max(int((start - 1) * scale), 0), int((start + length + 1) * scale) + 1)
        for start, length, scale in zip((top, left), (height, width), scales)
    )


def _distance(disparity, camera):
    """Metres, or `None` where the disparity is too small to tell."""
    if disparity <= 0.1:
        return None
    return round(camera.focal * camera.baseline / disparity, 2)


def encode_answer(
    answer: Answer, kinds: Sequence[str], **facts: Any
) -> dict[str, bytes]:
    """The files of an answer, `{kind: bytes}`, but for the picture to look at.

    `classes` is a PNG of label ids (8 bit); `instances` of `label id * 1000 + number`
    for objects, numbered by class from 0, and of the label id elsewhere (16 bit);
    `disparity` of `256 * d + 1` with d in pixels of the picture (16 bit); `json` the
    objects and whatever else is given. What the network does not say has no file.

    Args:
        answer: `Answer`.
        kinds: of the files that are wanted.
        **facts: added to the JSON.
    """
    files = {}
    if "classes" in kinds and answer.classes is not None:
        files["classes"] = encode_png(answer.classes)
    if "instances" in kinds and answer.instances is not None:
        files["instances"] = encode_png(encode_instances(answer))
    if "disparity" in kinds and answer.disparity is not None:
        files["disparity"] = encode_png(encode_disparity(answer.disparity))
    if "json" in kinds:
        listed = {**facts, "objects": answer.objects}
        files["json"] = (json.dumps(listed, indent=2) + "\n").encode()
    return files


def encode_instances(answer: Answer) -> np.ndarray:
    """Cityscapes' coding of the objects, `(H, W)` uint16, see `encode_answer`."""
    assert answer.classes is not None and answer.instances is not None
    ids = answer.classes.astype(np.uint16)
    counts: collections.Counter[int] = collections.Counter()
    for thing in answer.objects:
        left, top, right, bottom = thing["box"]
        window = slice(top, bottom), slice(left, right)
        label_id = thing["label_id"]
        inside = answer.instances[window] == thing["number"]
        ids[window][inside] = label_id * FIRST_INSTANCE_ID + counts[label_id]
        counts[label_id] += 1
    return ids


def write_files(directory: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Writes files by name into a directory; each appears when it is complete.

    Raises:
        UserError: names one that cannot be written.
    """
    for name, content in files.items():
        path = directory / name
        unfinished = path.with_name(f".{path.name}.part")
        try:
            unfinished.write_bytes(content)
            unfinished.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise UserError(
                f"{path} cannot be written ({error.strerror}); make room for it, or "
                "choose another --output."
            ) from error
