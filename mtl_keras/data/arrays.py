"""Cityscapes as the arrays of MTAN's protocol: found, checked, read and written.

A folder holds `{train,val}/{image,label_7,label_19,depth}/{number}.npy`, the numbers
from 0 without a gap; LibMTL's copy has `label` in place of `label_7`. An `image`
`(H, W, 3)` has values in 0..1; a label `(H, W)` is a class index, -1 where there is
none; `depth`, `(H, W)` or `(H, W, 1)`, is the value of `*_disparity.png` / 65535, hence
0 where it is invalid and else `(256 d + 1) / 65535`, with d in pixels of a source image
that is 2048 wide. All may be of any integer or float type. There are neither instances
nor names of frames.

This module runs in worker processes, so it imports nothing heavy.

References:
 - [MTAN](https://github.com/lorenmt/mtan), which offers such a folder, and its issue 25
   on what `depth` is; [LibMTL](https://github.com/median-research-group/LibMTL), folder
   `examples/cityscapes`
"""

import io
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mtl_keras.cityscapes import (
    IMAGE_SIZE,
    MAX_CODE,
    class_index_table,
    label_id_table,
)
from mtl_keras.data.sources import unreadable
from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike

# Of the folder that the papers use. Files were missing in some copies of it.
COUNTS = {"train": 2975, "val": 500}
SPLITS = tuple(COUNTS)
# The label set whose class indices a folder holds, and the folders that hold, or can be
# merged to, those of a label set, the exact ones first.
LABEL_SETS = {"label_7": "categories", "label": "categories", "label_19": "train_ids"}
LABEL_FOLDERS = {
    "categories": ("label_7", "label", "label_19"),
    "train_ids": ("label_19",),
}
FRAMES_FILE = "frames.csv"  # what we add: the frame of each number
SOURCE_WIDTH = IMAGE_SIZE[1]  # of the pixels that the disparity is in
TOLERANCE = 1e-3  # by which images that were interpolated may leave 0..1
VERSION = 1  # of the reading; raise it when a file gives another frame than before


class ArrayFiles(NamedTuple):
    """The files of one frame by kind: `image`, and maybe `semantic`, `disparity`."""

    number: int
    paths: Mapping[str, pathlib.Path]

    @property
    def frame_id(self) -> str:
        """The number, as the name that the folder lacks."""
        return f"{self.number:04d}"


def is_array_folder(data: PathLike) -> bool:
    """Whether a path is a folder with `train/image` or `val/image` in it."""
    try:
        return any((pathlib.Path(data) / split / "image").is_dir() for split in SPLITS)
    except OSError:  # not of this kind, or not to be entered: others complain
        return False


def find_label_folder(root: PathLike, label_set: str) -> str:
    """The folder of labels to take for a label set, below each split.

    Args:
        root: the folder of the data set.
        label_set: str, a key of `cityscapes.LABEL_SETS`.

    Raises:
        UserError: if none of the folders knows the classes of the label set.
    """
    there = [
        name
        for name in LABEL_SETS
        if any((pathlib.Path(root) / split / name).is_dir() for split in SPLITS)
    ]
    wanted = LABEL_FOLDERS.get(label_set, ())
    for name in wanted:
        if name in there:
            return name
    if not there:
        raise UserError(
            f"{root} has no labels: there is no {SPLITS[0]}/{wanted[0]}; put it there, "
            "or leave out the task semantic."
        )
    possible = [
        known
        for known, folders in LABEL_FOLDERS.items()
        if not set(folders).isdisjoint(there)
    ]
    needs = f" That takes {wanted[0]}." if wanted else ""
    raise UserError(
        f"{root} does not hold the label set {label_set}: its labels are in "
        f"{', '.join(there)}.{needs} Choose --label-set {' or '.join(possible)}."
    )


def list_arrays(
    root: PathLike, split: str, folders: Mapping[str, str]
) -> list[ArrayFiles]:
    """Finds the frames of a split and makes sure that their files exist.

    Args:
        root: the folder of the data set.
        split: str, of `SPLITS`.
        folders: dict, the folder of each kind of file, such as
            `{"image": "image", "semantic": "label_7"}`.

    Returns:
        A list of `ArrayFiles` in the order of their numbers, empty if the data set
        does not have the split.

    Raises:
        UserError: names the first file that is missing.
    """
    place = pathlib.Path(root) / split
    found = {kind: _find_numbers(place / name) for kind, name in folders.items()}
    count = 1 + max((n for numbers in found.values() for n in numbers), default=-1)
    missing = [
        place / name / f"{number}.npy"
        for kind, name in folders.items()
        for number in range(count)
        if number not in found[kind]
    ]
    if missing:
        others = f" and {len(missing) - 1} more files are" if missing[1:] else " is"
        raise UserError(
            f"{missing[0]}{others} missing, since there are numbers up to "
            f"{count - 1}; copy what is missing again."
        )
    return [
        ArrayFiles(number, {kind: paths[number] for kind, paths in found.items()})
        for number in range(count)
    ]


def _find_numbers(folder):
    """The arrays of a folder by number. A Mac leaves hidden files beside them."""
    try:
        paths = [*folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise unreadable(folder, error) from error
    return {
        int(path.stem): path
        for path in paths
        if re.fullmatch(r"0\.npy|[1-9][0-9]{0,8}\.npy", path.name)
    }


def read_arrays(files: ArrayFiles) -> dict[str, np.ndarray]:
    """Reads a frame, in the form that `frames.read_frame` has, at its own size.

    The label id of a class of `label_7` is that of `label_id_table("categories")`.

    Raises:
        UserError: names a file that cannot be read, or holds something else.
    """
    frame = {kind: _read(path, kind) for kind, path in files.paths.items()}
    for kind, array in frame.items():
        if array.shape[:2] != frame["image"].shape[:2]:
            raise UserError(
                f"{files.paths[kind]} is {_size(array)}, but its image "
                f"{files.paths['image']} is {_size(frame['image'])}; both must have "
                "one size."
            )
    return frame


def _read(path, kind):
    array = _load(path)
    if array.dtype.kind not in "fiu":
        raise UserError(
            f"{path} must hold numbers, but is of type {array.dtype}; copy it again."
        )
    if kind == "disparity" and array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    channels = (3,) if kind == "image" else ()
    if array.ndim < 2 or array.shape[2:] != channels or 0 in array.shape:
        wanted = "(H, W, 3)" if kind == "image" else "(H, W)"
        raise UserError(
            f"{path} must have the shape {wanted}, but has {array.shape}; copy it "
            "again."
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise UserError(f"{path} holds values that are not finite; copy it again.")
    if kind == "semantic":
        return _to_label_ids(path, array)
    slack = TOLERANCE if kind == "image" else 0.0
    wrong = array[(array < -slack) | (array > 1.0 + slack)]
    if wrong.size:
        meaning = "colours" if kind == "image" else "disparity as raw value / 65535"
        raise UserError(
            f"{path} holds {wrong[0]:g}; {meaning} must be in 0..1: scale it."
        )
    if kind == "image":
        return np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    return np.rint(array * MAX_CODE).astype(np.uint16)


def _load(path):
    try:
        array = np.load(path, allow_pickle=False)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise unreadable(path, error) from error
    except Exception as error:  # NumPy raises many kinds for a damaged file
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} cannot be read as an array ({reason}); copy it again."
        ) from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive of arrays, not an array; copy it again.")
    return array


def _to_label_ids(path, classes):
    """Class indices as label ids, those of -1 as 0."""
    label_set = LABEL_SETS[path.parent.name]
    label_ids = label_id_table(label_set)
    wrong = classes[
        (classes < -1) | (classes >= len(label_ids)) | (classes != np.rint(classes))
    ]
    if wrong.size:
        raise UserError(
            f"{path} holds {wrong[0]:g}, which is not a class; those are 0 to "
            f"{len(label_ids) - 1}, and -1 where there is none."
        )
    return np.append(label_ids, np.uint8(0))[classes.astype(np.int64)]


def write_arrays(
    directory: pathlib.Path,
    number: int,
    frame: Mapping[str, np.ndarray],
    source_width: int,
) -> None:
    """Writes the arrays of a frame: `image` float32, `label_7` and `label_19` int8,
    `depth` `(H, W, 1)` float32.

    Args:
        directory: that of the split. Folders are made if need be.
        number: int.
        frame: dict of arrays, as `frames.read_frame` returns it.
        source_width: int. What the disparity of the frame is in pixels of.
    """
    coded = frame["disparity"].astype(np.float64)
    raw = np.rint((coded - 1.0) * (SOURCE_WIDTH / source_width)) + 1.0
    raw = np.where(coded > 0, np.minimum(raw, MAX_CODE), 0.0)
    arrays = {
        "image": (frame["image"] / 255).astype(np.float32),
        "depth": (raw / MAX_CODE).astype(np.float32)[..., None],
    }
    for name in ("label_7", "label_19"):
        classes = class_index_table(LABEL_SETS[name])[frame["semantic"]]
        arrays[name] = classes.astype(np.int8)
    for name, array in arrays.items():
        path = directory / name / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()  # since `np.save` does not say that a disk is full
        np.save(buffer, array)
        path.write_bytes(buffer.getvalue())


def _size(array):
    return f"{array.shape[0]}x{array.shape[1]}"
