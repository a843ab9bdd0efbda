"""The features of single frames, as the records hold them.

This module runs in worker processes, so it imports nothing heavy.
"""

import os
import pathlib
from typing import Any

import numpy as np

from mtl_keras import streets
from mtl_keras.cityscapes import IMAGE_SIZE
from mtl_keras.data import arrays, frames
from mtl_keras.errors import UserError
from mtl_keras.hints import Size
from mtl_keras.png import encode_png

STREETS_SIZES = {"train": 2000, "val": 250, "test": 250}  # scenes of a split
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_example(job: tuple) -> tuple[dict[str, Any], Size]:
    """Reads a frame: of `(FrameFiles, image_size, kinds)` the features of its record,
    and the `(height, width)` of its source.

    Without an image size, the frame keeps its own, and PNG files are stored as they
    are, once it is known that they can be read.
    """
    files, image_size, kinds = job
    frame, source_size = frames.read_frame(files, image_size)
    blank = np.zeros(image_size or source_size, np.uint8)
    for kind in kinds:  # a frame of the test split may have no labels
        if kind not in frame:
            frame[kind] = blank if kind == "semantic" else blank.astype(np.uint16)
    pngs = {}
    if not image_size:
        contents = {kind: path.read_bytes() for kind, path in files.paths.items()}
        pngs = {k: c for k, c in contents.items() if c.startswith(PNG_SIGNATURE)}
    return _pack(files.frame_id, frame, source_size, pngs), source_size


def read_example_or_error(
    job: tuple,
) -> tuple[dict[str, Any], Size] | tuple[UserError, None]:
    """As `read_example`, with the error in place of the features of a bad frame."""
    try:
        return read_example(job)
    except UserError as error:
        return error, None


def read_array_example(job: tuple) -> tuple[dict[str, Any], Size]:
    """Reads arrays: of `(ArrayFiles, image_size)`, as `read_example`."""
    files, image_size = job
    frame = arrays.read_arrays(files)
    own_size = frame["image"].shape[:2]
    frame = frames.resize_frame(frame, image_size)
    return _pack(files.frame_id, frame, IMAGE_SIZE), own_size


def write_frame(job: tuple) -> str:
    """Writes a frame as arrays: of `(directory, number, FrameFiles, image_size)`.
    Returns its name."""
    directory, number, files, image_size = job
    frame, (_, source_width) = frames.read_frame(files, image_size)
    arrays.write_arrays(pathlib.Path(directory), number, frame, source_width)
    return files.frame_id


def write_scene(job: tuple) -> str:
    """Writes a scene as arrays: of `(directory, number, frame id, seed, image_size)`.
    Returns its name."""
    directory, number, frame_id, seed, image_size = job
    frame = streets.render_scene(seed, image_size)
    arrays.write_arrays(pathlib.Path(directory), number, frame, image_size[1])
    return frame_id


def render_example(job: tuple) -> tuple[dict[str, Any], Size]:
    """Renders a scene: of `(frame id, seed, image_size)`, as `read_example`."""
    frame_id, seed, image_size = job
    frame = streets.render_scene(seed, image_size)
    return _pack(frame_id, frame, image_size), image_size


def _pack(frame_id, frame, source_size, pngs=None):
    """The features of a frame; `pngs` holds those that are encoded already."""
    encoded = {
        kind: encode_png(array)
        for kind, array in frame.items()
        if not pngs or kind not in pngs
    }
    # Bytes, as the name of a file may hold any, whatever the locale.
    name = os.fsencode(frame_id)
    return {"id": name, "source_width": source_size[1], **encoded, **(pngs or {})}
