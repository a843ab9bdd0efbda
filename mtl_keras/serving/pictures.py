"""Pictures as people have them: files of many kinds, found and read as RGB."""

import collections
import glob
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_PIXELS = 2**26  # 67 megapixels, 8192 x 8192


def find_pictures(names: Sequence[str]) -> list[pathlib.Path]:
    """The files that names stand for.

    Args:
        names: files, directories, which stand for the pictures right in them, and
            patterns such as `"holiday/*.jpg"`.

    Returns:
        List of paths, in the order of the names and sorted within each.

    Raises:
        UserError: for a name that stands for nothing.
    """
    found: dict[pathlib.Path, None] = {}
    for name in names:
        found |= dict.fromkeys(_find(name))
    return [*found]


def name_answers(paths: Iterable[pathlib.Path]) -> dict[pathlib.Path, str]:
    """What the names of the answers to each file begin with: its name without the
    ending, or with it where another file has the same one."""
    paths = [*paths]
    counts = collections.Counter(path.stem.lower() for path in paths)
    return {
        path: path.stem if counts[path.stem.lower()] == 1 else path.name
        for path in paths
    }


def describe_passed_over(names: Sequence[str]) -> str:
    """A sentence on what `find_pictures` does not take of the directories in `names`:
    directories in them, and files that are not pictures; empty if there is nothing."""
    folders = files = 0
    for path in map(pathlib.Path, dict.fromkeys(names)):
        for child in path.iterdir() if path.is_dir() else ():
            if child.name[0] != "." and not _is_picture(child):
                folders, files = folders + child.is_dir(), files + (not child.is_dir())
    counts = [(folders, "folder", "folders"), (files, "other file", "other files")]
    parts = [f"{n} {one if n == 1 else many}" for n, one, many in counts if n]
    if not parts:
        return ""
    return f"Passed over in the given folders: {' and '.join(parts)}."


def _is_picture(path):
    """Whether a path in a directory is taken for a picture, by its name."""
    is_named_so = path.suffix.lower() in SUFFIXES and path.name[0] != "."
    return is_named_so and not path.is_dir()


def _find(name):
    path = pathlib.Path(name)
    if path.is_dir():
        pictures = sorted(filter(_is_picture, path.iterdir()))
        if not pictures:
            folders = any(child.is_dir() for child in path.iterdir())
            hint = " itself; name the folders in it" if folders else ""
            raise UserError(f"{path} holds no picture ({', '.join(SUFFIXES)}){hint}.")
        return pictures
    if path.exists():
        return [path]
    pictures = [pathlib.Path(match) for match in sorted(glob.glob(name))]
    if not pictures:
        raise UserError(f"There is no file {name}; name pictures or their folder.")
    return [picture for picture in pictures if not picture.is_dir()]


def read_picture(path: PathLike) -> np.ndarray:
    """Reads a picture of any kind, upright, as RGB `(H, W, 3)` uint8.

    Its EXIF orientation is applied. Of 16-bit greys the upper 8 bits count, what is
    transparent becomes white, palettes and CMYK are converted, and of several frames
    the first one is taken.

    Raises:
        UserError: if the file is not a picture, is damaged, or has more than
            `MAX_PIXELS`.
    """
    try:
        with Image.open(path) as picture:
            if picture.format == "PNG":  # decoding passes over some checksums
                picture.verify()
        with Image.open(path) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"{path} has {width}x{height} pixels, more than "
                    f"{MAX_PIXELS // 10**6} million; make it smaller first."
                )
            return np.asarray(_to_rgb(ImageOps.exif_transpose(picture)))
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        size = pathlib.Path(path).stat().st_size
        reason = "is not a picture" if size else "is empty"
        raise UserError(f"{path} {reason}.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise UserError(f"{path} cannot be read ({reason}).") from error


def _to_rgb(picture):
    if picture.mode.startswith("I"):  # grey of 16 bits
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"grey values up to {values.max()}")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise ValueError("grey values that are floats")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture)
    return picture.convert("RGB")
