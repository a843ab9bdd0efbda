"""Frames of a Cityscapes tree: found, checked, read and resized.

A frame is a dict of arrays of one size: `image` `(H, W, 3)` uint8 RGB, `semantic`
`(H, W)` uint8 label ids, `instance` `(H, W)` uint16 instance ids, `disparity`
`(H, W)` uint16, 0 where invalid and else `256 * d + 1` with d in pixels of the
source image.

This module runs in worker processes, so it imports nothing heavy.
"""

import functools
import io
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mtl_keras.cityscapes import (
    COARSE_SPLIT,
    FIRST_INSTANCE_ID,
    LABELS,
    find_folder,
    frame_path,
    name_archive,
)
from mtl_keras.data.sources import (
    File,
    find_files,
    find_sources,
    has_folder,
    is_file,
    locate,
    unreadable,
)
from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike, Size

SPLITS = ("train", "val", "test", COARSE_SPLIT)
LABEL_KINDS = ("semantic", "instance", "disparity")

VERSION = 2  # of the reading; raise it when a file gives another frame than before

# The modes in which Pillow opens the files, their bits per channel, and their name.
MODES = {
    "image": (("RGB",), 8, "8-bit RGB"),
    "semantic": (("L",), 8, "8-bit grey"),
    "instance": (("I;16", "I"), 16, "16-bit grey"),
    "disparity": (("I;16", "I"), 16, "16-bit grey"),
}
EXIF_ORIENTATION = 0x0112  # the tag; 1 means upright, as it is stored


class FrameFiles(NamedTuple):
    """Where the files of one frame are, `{kind: File}`, and its id."""

    frame_id: str
    paths: dict


class Listing(NamedTuple):
    """What there is of a split.

    Attributes:
        split: str.
        frames: list of `FrameFiles` in the order of their ids, with those of their
            files that exist.
        missing: `{frame id: [(path, kind)]}`, the files that do not.
        repeated: a sentence about two frames of one name, empty if there are none.
    """

    split: str
    frames: list[FrameFiles]
    missing: dict[str, list[tuple[str, str]]]
    repeated: str = ""

    def describe_fault(self) -> str:
        """A sentence about what training would refuse, empty if there is nothing."""
        if self.repeated or not self.missing:
            return self.repeated
        absent = [pair for pairs in self.missing.values() for pair in pairs]
        path, kind = absent[0]
        count = len(absent) - 1
        others = f" and {count} more files are" if count else " is"
        return (
            f"{path}{others} missing; put {name_archive(kind, self.split)} beside, as "
            "it is or unpacked, or leave out the task that needs them."
        )


def find_frames(root: PathLike, split: str, kinds: Sequence[str]) -> Listing:
    """Finds the frames of a split, complete or not.

    Args:
        root: the tree, see `sources.find_sources`.
        split: str, one of `SPLITS`. `"test"` may lack the files of `kinds`.
        kinds: the kinds of label files that are needed, of `LABEL_KINDS`.

    Raises:
        UserError: if the tree is not one.
    """
    sources = find_sources(root)
    folder, ending = find_folder("image", split)
    if not has_folder(sources, folder):
        raise UserError(
            f"{root} is not a Cityscapes tree: it has no folder {folder}; put "
            f"{name_archive('image', split)} into it, as it is or unpacked."
        )
    found: list[FrameFiles] = []
    first: dict[str, File] = {}
    missing: dict[str, list[tuple[str, str]]] = {}
    repeated = ""
    images = find_files(sources, f"{folder}/{split}", ending)
    for image in sorted(images, key=lambda file: (file.parent.name, file.name)):
        city = image.parent.name
        frame_id = image.name[: -len(ending)]
        paths: dict[str, File] = {"image": image}
        absent = []
        for kind in kinds:
            path = frame_path("", split, frame_id, kind, city).as_posix()
            file = locate(sources, path)
            if file is not None:
                paths[kind] = file
            elif split != "test":
                absent.append((f"{sources[0]}/{path}", kind))
        if isinstance(image, pathlib.Path) and not is_file(image):  # a dead link
            absent.append((str(image), "image"))
        if first.setdefault(frame_id, image) is not image and not repeated:
            repeated = (
                f"{image} and {first[frame_id]} have the same name; remove one of the "
                "two frames, or rename its files."
            )
        found.append(FrameFiles(frame_id, paths))
        if absent:
            missing[frame_id] = absent
    return Listing(split, found, missing, repeated)


def list_frames(
    root: PathLike,
    split: str,
    kinds: Sequence[str],
    left_out: list[str] | None = None,
) -> list[FrameFiles]:
    """Finds the frames of a split and makes sure that their files exist.

    Args:
        root: see `find_frames`.
        split: str, likewise. Frames of `"test"` may lack the files of `kinds`.
        kinds: likewise.
        left_out: optional list. If given, frames that lack a file are left out, and a
            sentence about each is added to it.

    Returns:
        A list of `FrameFiles` in the order of their ids, empty if the tree does
        not have the split.

    Raises:
        UserError: if the tree is not one, or names the first missing file.
    """
    listing = find_frames(root, split, kinds)
    missing = listing.missing
    can_go_on = left_out is not None and len(missing) < len(listing.frames)
    if listing.repeated or (missing and not can_go_on):
        raise UserError(listing.describe_fault())
    if left_out is not None:
        left_out += [f"{absent[0][0]} is missing." for absent in missing.values()]
    return [files for files in listing.frames if files.frame_id not in missing]


def has_files(root: PathLike, kind: str, splits: Sequence[str] = SPLITS) -> bool:
    """Whether a tree holds any file of a kind in some splits."""
    sources = find_sources(root)
    for split in splits:
        folder, ending = find_folder(kind, split)
        if next(find_files(sources, f"{folder}/{split}", ending), None) is not None:
            return True
    return False


def read_frame(
    files: FrameFiles, image_size: Size | None
) -> tuple[dict[str, np.ndarray], Size]:
    """Reads a frame and resizes it; see `resize_frame`.

    Args:
        files: `FrameFiles`.
        image_size: `(height, width)` in pixels, or `None` to keep that of the source.

    Returns:
        The frame, and the `(height, width)` of its source.

    Raises:
        UserError: names a file that cannot be read, holds ids of no Cityscapes label
            or does not fit the others.
    """
    frame = {kind: _read_png(path, kind) for kind, path in files.paths.items()}
    source_size = frame["image"].shape[:2]
    for kind, array in frame.items():
        if array.shape[:2] != source_size:
            raise UserError(
                f"{files.paths[kind]} is {_size(array)}, but its image "
                f"{files.paths['image']} is {_size(frame['image'])}; both must have "
                "the same size."
            )
        if kind in ("semantic", "instance"):
            _check_ids(files.paths[kind], array, kind)
    return (resize_frame(frame, image_size) if image_size else frame), source_size


def resize_frame(
    frame: dict[str, np.ndarray], image_size: Size
) -> dict[str, np.ndarray]:
    """Resizes the arrays of a frame, all about the centres of their pixels.

    The image is averaged where it shrinks and interpolated linearly where it grows;
    ids and disparity are those of the pixel that is nearest to the centre.

    Args:
        frame: dict of arrays of one size.
        image_size: `(height, width)` in pixels.
    """
    source_size = next(iter(frame.values())).shape[:2]
    if source_size == tuple(image_size):
        return frame
    rows, columns = map(_nearest_pixels, source_size, image_size)
    return {
        kind: resize_smoothly(array, image_size)
        if kind == "image"
        else array[rows[:, None], columns]
        for kind, array in frame.items()
    }


def _nearest_pixels(source, target):
    """Index of the pixel, of `source` in a row, that is nearest to the centre of
    each of `target` pixels.

    Halfway between two, as at every even factor, they take the lower and the upper
    one in turn. Always the same one, as in OpenCV, would shift the labels against
    the image, and the other way in mirrored frames.
    """
    index = np.arange(target)
    nearest, rest = np.divmod((2 * index + 1) * source, 2 * target)
    return nearest - ((rest == 0) & (index % 2 == 0))


def resize_smoothly(image: np.ndarray, image_size: Size) -> np.ndarray:
    """An image averaged where it shrinks and interpolated linearly where it grows."""
    height, width = image_size
    smaller = min(width, image.shape[1]), min(height, image.shape[0])
    averaged = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    return cv2.resize(averaged, (width, height), interpolation=cv2.INTER_LINEAR)


def _read_png(path, kind):
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.verify()  # all checksums, some of which decoding passes over
        with Image.open(io.BytesIO(content)) as image:
            fault = _find_fault(image, content, kind)
            array = None if fault else _decode(image, content, kind)
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} claims more pixels than Pillow accepts ({error}); make it "
            "smaller, or copy it again if it is damaged."
        ) from error
    except Exception as error:  # Pillow raises many kinds for a damaged file
        is_other = isinstance(error, UnidentifiedImageError)
        reason = "it is of no known format" if is_other else error
        raise UserError(
            f"{path} cannot be read as an image ({reason}); copy it again."
        ) from error
    if fault:
        raise UserError(f"{path} {fault}.")
    return array


def _decode(image, content, kind):
    """The pixels of an image that Pillow has opened: by OpenCV, which is faster, or by
    Pillow where OpenCV knows the format less well."""
    if image.format == "PNG":
        mode = cv2.IMREAD_COLOR_RGB if kind == "image" else cv2.IMREAD_UNCHANGED
        array = cv2.imdecode(np.frombuffer(content, np.uint8), mode)
        if array is not None and array.ndim == (3 if kind == "image" else 2):
            return array
    array = np.asarray(image)  # which also says what is wrong with a damaged one
    return array if kind in ("image", "semantic") else array.astype(np.uint16)


def _find_fault(image, content, kind):
    """Why an image is not what its kind of file has to be, `""` if it is."""
    modes, bits, wanted = MODES[kind]
    advice = "convert it" if kind == "image" else "unpack the original file again"
    if image.mode not in modes:
        return f"must be {wanted}, but its mode is {image.mode}; {advice}"
    if image.format == "PNG":
        found = content[24]  # Pillow scales other depths to 8 bits
        if found != bits:
            return f"must be {wanted}, but has {found} bits per channel; {advice}"
    elif kind != "image":
        return f"must be a PNG file, but holds {image.format}; {advice}"
    if getattr(image, "n_frames", 1) > 1:
        return f"must be one picture, but holds {image.n_frames}; {advice}"
    # Of a PNG, Pillow decodes all pixels to look for it.
    has_exif = image.format != "PNG" or _has_chunk(content, b"eXIf")
    if has_exif and image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        return (
            "has an EXIF orientation, by which viewers turn it against its labels; "
            "turn its pixels as they ought to be and remove the tag"
        )
    return ""


def _has_chunk(png, name):
    """Whether the bytes of a PNG whose checksums hold have a chunk of a name."""
    place = 8  # after the signature
    while place < len(png):
        if png[place + 4 : place + 8] == name:
            return True
        length = int.from_bytes(png[place : place + 4])
        place += 12 + length  # the length, the name and the checksum
    return False


@functools.cache
def _unknown_ids(kind):
    """The ranges `(first, length)` of values that a file of ids must not hold."""
    known = np.zeros(2 ** (8 if kind == "semantic" else 16) + 1, bool)
    known[-1] = True  # ends the last range
    for label in LABELS:
        known[label.id] = True
        if kind == "instance" and label.has_instances:
            first = label.id * FIRST_INSTANCE_ID
            known[first : first + FIRST_INSTANCE_ID] = True
    (ends,) = np.nonzero(np.diff(known, prepend=True))
    return tuple((int(a), int(b - a)) for a, b in ends.reshape(-1, 2))


def _check_ids(path, ids, kind):
    # By ranges, since a table of all values takes longer to look up than to decode;
    # those above the largest id need no look at all.
    largest = ids.max()
    wrong = [
        ids[found]
        for first, length in _unknown_ids(kind)
        if first <= largest and (found := ids - ids.dtype.type(first) < length).any()
    ]
    wrong = np.concatenate(wrong) if wrong else ids[:0]
    if not wrong.size:
        return
    if kind == "instance":
        raise UserError(
            f"{path} holds {wrong.max()}, which is not an instance id; those are the "
            "label id * 1000 + a number for an object and the label id alone for all "
            "else, 0 where there is no label."
        )
    last = LABELS[-1].id
    train_ids = {label.train_id for label in LABELS}
    if np.isin(ids, [*train_ids]).all():
        hint = (
            "these look like train ids, as in *_labelTrainIds.png: put the file of "
            "gtFine_trainvaltest.zip in its place"
        )
    else:
        hint = "write 0 where there is no label"
    raise UserError(
        f"{path} holds {wrong.max()}, which is not a label id (0 to {last}); {hint}."
    )


def _size(array):
    return f"{array.shape[0]}x{array.shape[1]}"
