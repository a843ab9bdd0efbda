"""Frames of an unpacked Cityscapes tree: found, checked, read and resized.

A frame is a dict of arrays of one size: `image` `(H, W, 3)` uint8 RGB, `semantic`
`(H, W)` uint8 label ids, `instance` `(H, W)` uint16 instance ids, `disparity`
`(H, W)` uint16, 0 where invalid and else `256 * d + 1` with d in pixels of the
source image.

This module runs in worker processes, so it imports nothing heavy.
"""

import pathlib
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from mtl_keras.cityscapes import FILES, frame_path
from mtl_keras.errors import UserError

SPLITS = ("train", "val", "test")
LABEL_KINDS = ("semantic", "instance", "disparity")

# The modes in which Pillow opens the files, and what they have to be.
MODES = {
    "image": (("RGB",), "8-bit RGB"),
    "semantic": (("L",), "8-bit grey"),
    "instance": (("I;16", "I"), "16-bit grey"),
    "disparity": (("I;16", "I"), "16-bit grey"),
}


class FrameFiles(NamedTuple):
    """Where the files of one frame are, `{kind: path}`, and its id."""

    frame_id: str
    paths: dict


def list_frames(root, split, kinds):
    """Finds the frames of a split and makes sure that their files exist.

    Args:
        root: the unpacked tree.
        split: str. `"test"` may lack the files of `kinds`; they are left out
            where they are missing.
        kinds: the kinds of label files that are needed, of `LABEL_KINDS`.

    Returns:
        A list of `FrameFiles` in the order of their ids, empty if the tree does
        not have the split.

    Raises:
        UserError: if the tree is not one, or names the first missing file.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise UserError(f"There is no directory {root}; give the unpacked tree.")
    folder, ending = FILES["image"]
    if not (root / folder).is_dir():
        raise UserError(
            f"{root} is not a Cityscapes tree: it has no folder {folder}; unpack "
            "leftImg8bit_trainvaltest.zip into it."
        )
    frames, missing = [], []
    for image_path in sorted((root / folder / split).glob(f"*/*{ending}")):
        city = image_path.parent.name
        frame_id = image_path.name.removesuffix(ending)
        paths = {"image": image_path}
        for kind in kinds:
            path = frame_path(root, split, frame_id, kind, city)
            if path.is_file():
                paths[kind] = path
            elif split != "test":
                missing.append(path)
        frames.append(FrameFiles(frame_id, paths))
    if missing:
        others = f" and {len(missing) - 1} more files are" if missing[1:] else " is"
        raise UserError(
            f"{missing[0]}{others} missing; unpack the archive that holds them or "
            "leave out the task that needs them with --tasks."
        )
    return frames


def has_files(root, kind):
    """Whether a tree holds any file of a kind outside the test split."""
    folder, ending = FILES[kind]
    folder = pathlib.Path(root) / folder
    return any(
        next((folder / split).glob(f"*/*{ending}"), None) for split in ("train", "val")
    )


def read_frame(files, image_size):
    """Reads a frame and resizes it, ids and disparity by nearest neighbour.

    Args:
        files: `FrameFiles`.
        image_size: `(height, width)` in pixels.

    Returns:
        The frame, and the `(height, width)` of its source.

    Raises:
        UserError: names a file that cannot be read or does not fit the others.
    """
    frame = {kind: _read_png(path, kind) for kind, path in files.paths.items()}
    source_size = frame["image"].shape[:2]
    for kind, array in frame.items():
        if array.shape[:2] != source_size:
            raise UserError(
                f"{files.paths[kind]} is {_size(array)}, but its image "
                f"{files.paths['image']} is {_size(frame['image'])}; both must have "
                "one size."
            )
    return resize_frame(frame, image_size), source_size


def resize_frame(frame, image_size):
    """Resizes the arrays of a frame, the image smoothly, all others nearest."""
    height, width = image_size
    if frame["image"].shape[:2] == (height, width):
        return frame
    shrinks = frame["image"].shape[0] > height
    smooth = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return {
        kind: cv2.resize(
            array,
            (width, height),
            interpolation=smooth if kind == "image" else cv2.INTER_NEAREST,
        )
        for kind, array in frame.items()
    }


def encode_png(array):
    """PNG bytes of an RGB image `(H, W, 3)` or of a map `(H, W)`."""
    if array.ndim == 3:
        array = array[..., ::-1]  # OpenCV writes BGR
    return cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def _read_png(path, kind):
    modes, wanted = MODES[kind]
    try:
        with Image.open(path) as image:
            mode = image.mode
            array = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as an image ({error}); copy it again."
        ) from error
    if mode not in modes:
        raise UserError(f"{path} must be {wanted}, but its mode is {mode}.")
    return array if kind in ("image", "semantic") else array.astype(np.uint16)


def _size(array):
    return f"{array.shape[0]}x{array.shape[1]}"
