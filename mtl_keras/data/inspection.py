"""What a Cityscapes tree holds, and what in it is likely to be a mistake.

Nothing here stops at the first fault: all that training would refuse is gathered, and
all that it would take but that is seldom meant.

This module runs in worker processes, so it imports nothing heavy.
"""

import collections
import dataclasses
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtl_keras.cityscapes import (
    DISPARITY_STEPS,
    FIRST_INSTANCE_ID,
    LABELS,
    SKY_ID,
    class_index_table,
    evaluated_index_table,
)
from mtl_keras.data import frames
from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike, Size
from mtl_keras.png import encode_png
from mtl_keras.tasks import TASKS

IGNORED = np.array([label.ignored for label in LABELS])
TRAIN_IDS = [label.train_id for label in LABELS if not label.ignored]
FEW_PIXELS = 16  # with fewer valid ones, nothing is said about the steps of disparity

# What is said of frames that training takes; `{}` is the first of them.
DOUBTS = {
    "void": "{} has no pixel of a class that is evaluated, so it teaches no semantics.",
    "contradiction": (
        "{} and the label ids of the frame contradict each other: an object's instance "
        "id // 1000 is not the label id of its pixels."
    ),
    "empty": "{} has no valid disparity: all its values are 0.",
    "eight bits": (
        "{} looks as if it had been read or written with 8 bits: its values are all "
        "below 256, or all multiples of 256 or 257; unpack the original file again."
    ),
    # About a whole split:
    "train ids": (
        "{} and the other label files of its split hold no id above 18, so these look "
        "like train ids, as in *_labelTrainIds.png, while label ids go up to 33."
    ),
    "no instances": (
        "{} and the other instance files of its split hold no id of 1000 or more, so "
        "there is no object to learn from."
    ),
    "city": (
        "{} is of a city that another split has, too: where both show the same places, "
        "scores are too good."
    ),
}


class Counts(NamedTuple):
    """What is in a frame, or in several of a batch.

    Attributes:
        class_pixels: `(34,)`, pixels by label id; all 0 without label ids.
        objects: `(34,)`, objects by label id.
        valid: dict by task of the pixels with a valid target and of all pixels.
    """

    class_pixels: np.ndarray
    objects: np.ndarray
    valid: dict[str, tuple[int, int]]


class Inspected(NamedTuple):
    """A frame that has been looked at.

    Attributes:
        counts: `Counts` of those files that training takes.
        size: `(height, width)` of the image, `None` if training does not take it.
        faults: `(key, sentence)` of each file that training refuses; the keys of two
            files with the same fault are equal.
        doubts: dict of keys of `DOUBTS` and the kind of file that each is about.
        largest_id: int, the largest label id, -1 if there are none.
    """

    counts: Counts
    size: Size | None
    faults: list[tuple[str, str]]
    doubts: dict[str, str]
    largest_id: int


@dataclasses.dataclass
class Remark:
    """A sentence about one file, and the number of files that it is true of, 0 if the
    sentence tells it."""

    sentence: str
    count: int = 0


@dataclasses.dataclass
class Tally:
    """What is in the frames of a split.

    Attributes:
        total: int, the frames of the split.
        num_frames: int, those that have been counted.
        sizes: `Counter` of their `(height, width)`.
        class_pixels, class_frames, objects: `(34,)` by label id: pixels, frames with
            any, and objects.
        valid: dict by task of the pixels with a valid target and of all pixels.
    """

    total: int = 0
    num_frames: int = 0
    sizes: collections.Counter[Size] = dataclasses.field(
        default_factory=collections.Counter
    )
    class_pixels: np.ndarray = dataclasses.field(default_factory=lambda: _zeros())
    class_frames: np.ndarray = dataclasses.field(default_factory=lambda: _zeros())
    objects: np.ndarray = dataclasses.field(default_factory=lambda: _zeros())
    valid: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def add(self, counts: Counts, size: Size | None) -> None:
        """Adds a frame; `size` is `None` if it is not known."""
        self.num_frames += 1
        if size is not None:
            self.sizes[size] += 1
        self.class_pixels += counts.class_pixels
        self.class_frames += counts.class_pixels > 0
        self.objects += counts.objects
        for task, (valid, pixels) in counts.valid.items():
            before = self.valid.get(task, (0, 0))
            self.valid[task] = before[0] + valid, before[1] + pixels


class Findings:
    """Gathers what `inspect_frame` says of the frames of a tree.

    Attributes:
        tallies: dict of `Tally` by split.
        refused: list of `Remark`s, what training refuses.
        doubtful: list of `Remark`s, what it takes, but what is seldom meant.
    """

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self._refused: dict[str, Remark] = {}
        self._doubtful: dict[tuple[str, str], Remark] = {}
        self._largest_ids: dict[str, int] = {}
        self._files: dict[tuple[str, str], list[str]] = {}  # by split and kind

    @property
    def refused(self) -> list[Remark]:
        """What training refuses."""
        return [*self._refused.values()]

    @property
    def doubtful(self) -> list[Remark]:
        """What training takes, but what is seldom meant."""
        return [*self._doubtful.values()]

    def add(self, split: str, files: frames.FrameFiles, inspected: Inspected) -> None:
        """Adds a frame of a split."""
        tally = self.tallies.setdefault(split, Tally())
        tally.add(inspected.counts, inspected.size)
        for key, sentence in inspected.faults:
            self.refuse(key, sentence)
        if split == "test":  # whose labels, if there are any, are dummies
            return
        for key, kind in inspected.doubts.items():
            self._doubt(key, "", files.paths[kind])
        for kind, path in files.paths.items():
            self._files.setdefault((split, kind), []).append(str(path))
        largest = max(self._largest_ids.get(split, -1), inspected.largest_id)
        self._largest_ids[split] = largest

    def refuse(self, key: str, sentence: str, count: int = 1) -> None:
        """Adds a file that training refuses; `count` is 0 if the sentence tells it."""
        self._refused.setdefault(key, Remark(sentence)).count += count

    def finish(self, listed: Mapping[str, Sequence[frames.FrameFiles]]) -> None:
        """Adds what only all frames together show.

        Args:
            listed: dict by split, all the frames that it has.
        """
        first_splits: dict[str, str] = {}
        for split, files in listed.items():
            tally = self.tallies.setdefault(split, Tally())
            tally.total = len(files)
            for frame in files:
                image = frame.paths["image"]
                city = image.parent.name
                if first_splits.setdefault(city, split) != split:
                    self._doubt("city", city, image)
            if 7 <= self._largest_ids.get(split, -1) <= max(TRAIN_IDS):
                self._doubt("train ids", split, *self._files[split, "semantic"])
            has_ids = "instance" in tally.valid and (split, "instance") in self._files
            if has_ids and not tally.objects.any():
                self._doubt("no instances", split, *self._files[split, "instance"])

    def _doubt(self, key, group, *files):
        remark = Remark(DOUBTS[key].format(files[0]))
        self._doubtful.setdefault((key, group), remark).count += len(files)


def choose_kinds(root: PathLike, tasks: Iterable[str]) -> list[str]:
    """The kinds of label files of a tree that tasks are trained with."""
    rows = [TASKS[task] for task in tasks]
    kinds = {kind for row in rows for kind in row.labels}
    optional = {kind for row in rows for kind in row.optional_labels}
    kinds |= {kind for kind in optional if frames.has_files(root, kind)}
    return [kind for kind in frames.LABEL_KINDS if kind in kinds]


def inspect_frame(
    files: frames.FrameFiles, label_set: str = "train_ids", sky: str = "zero"
) -> Inspected:
    """Reads a frame as training does, whatever is wrong with it; see `count_frame`."""
    frame, faults = _read(files)
    labels = frame.get("semantic")
    return Inspected(
        count_frame(frame, label_set, sky),
        frame["image"].shape[:2] if "image" in frame else None,
        faults,
        dict(_find_doubts(frame)),
        -1 if labels is None else int(labels.max(initial=0)),
    )


def count_frame(
    frame: Mapping[str, np.ndarray], label_set: str = "train_ids", sky: str = "zero"
) -> Counts:
    """Counts what is in a frame.

    Args:
        frame: dict of those arrays of `frames.read_frame` that there are.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        sky: str, `"zero"` if the sky is valid in depth, else `"masked"`.
    """
    pixels, objects, valid = _zeros(), _zeros(), {}
    if "semantic" in frame:
        pixels = np.bincount(frame["semantic"].ravel(), minlength=len(LABELS))
        index = class_index_table(label_set)[: len(LABELS)]
        counts = (index >= 0) & (evaluated_index_table(label_set)[index] >= 0)
        valid["semantic"] = int(pixels[counts].sum()), frame["semantic"].size
    if "instance" in frame:
        sizes = np.bincount(frame["instance"].ravel())
        ids = np.flatnonzero(sizes)
        ids = ids[ids >= FIRST_INSTANCE_ID]
        objects = np.bincount(ids // FIRST_INSTANCE_ID, minlength=len(LABELS))
        valid["instance"] = int(sizes[ids].sum()), frame["instance"].size
    if "disparity" in frame:
        is_valid = frame["disparity"] > 0
        if "semantic" in frame and sky == "zero":
            is_valid |= frame["semantic"] == SKY_ID
        valid["depth"] = int(np.count_nonzero(is_valid)), is_valid.size
    return Counts(pixels, objects, valid)


def count_batch(
    targets: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray],
    instance_ids: np.ndarray | None,
    label_set: str = "train_ids",
) -> Counts:
    """Counts what is in a batch of a single frame.

    Args:
        targets: dict by task; classes are label ids.
        masks: dict by task, above 0 where a target is valid.
        instance_ids: `(1, H, W)`, or `None`.
        label_set: str, a key of `cityscapes.LABEL_SETS`, by which classes are valid.
    """
    frame = {}
    if "semantic" in targets:
        frame["semantic"] = targets["semantic"]
    if instance_ids is not None:
        frame["instance"] = instance_ids
    valid = {
        task: (int(np.count_nonzero(mask)), mask.size) for task, mask in masks.items()
    }
    counts = count_frame(frame, label_set)
    return counts._replace(valid={**valid, **counts.valid})


def _zeros():
    return np.zeros(len(LABELS), np.int64)


def _find_doubts(frame):
    """Keys of `DOUBTS` that are true of a frame, and the kind of file of each."""
    labels, ids, disparity = map(frame.get, frames.LABEL_KINDS)
    if labels is not None and IGNORED[labels].all():
        yield "void", "semantic"
    if labels is not None and ids is not None:
        is_thing = ids >= FIRST_INSTANCE_ID
        if (ids[is_thing] // FIRST_INSTANCE_ID != labels[is_thing]).any():
            yield "contradiction", "instance"
    if disparity is not None:
        codes = disparity[disparity > 0]
        if not codes.size:
            yield "empty", "disparity"
        elif codes.size >= FEW_PIXELS and _has_eight_bits(codes):
            yield "eight bits", "disparity"


def _has_eight_bits(codes):
    steps = int(DISPARITY_STEPS)
    return codes.max() < steps or any(
        not (codes % step).any() for step in (steps, steps + 1)
    )


def _read(files):
    """The arrays of a frame that training takes, and `(key, sentence)` of each file
    that it refuses."""
    try:
        return frames.read_frame(files, None)[0], []
    except UserError:
        pass
    arrays, faults = {}, []
    image = files.paths["image"]
    for kind, path in files.paths.items():
        is_known = kind == "image" or "image" in arrays
        paths = {"image": image if is_known else _Blank(path), kind: path}
        try:
            single = frames.FrameFiles(files.frame_id, paths)
            arrays[kind] = frames.read_frame(single, None)[0][kind]
        except UserError as error:
            faults.append((_key_of(error, kind, paths), str(error)))
    return arrays, faults


def _key_of(error, kind, paths):
    """What two sentences have in common that say the same of two files."""
    key = str(error)
    for path in paths.values():
        key = key.replace(str(path), "")
    return f"{kind}:{re.sub('[0-9]+', '', key)}"


class _Blank:
    """In place of an image that training refuses, so that its labels can be read."""

    def __init__(self, labels):
        self.labels = labels

    def read_bytes(self):
        try:
            with Image.open(io.BytesIO(self.labels.read_bytes())) as image:
                width, height = image.size
        except Exception:  # of many kinds; reading the labels tells which
            width = height = 1
        return encode_png(np.zeros((height, width, 3), np.uint8))
