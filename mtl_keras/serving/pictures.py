"""Pictures as people have them: files of many kinds, found and read as RGB."""

import glob
import pathlib
from collections.abc import Sequence

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
        UserError: for a name that stands for nothing, and for two pictures whose
            answers would have the same name.
    """
    found: dict[pathlib.Path, None] = {}
    for name in names:
        found |= dict.fromkeys(_find(name))
    stems: dict[str, pathlib.Path] = {}
    for path in found:
        other = stems.setdefault(path.stem.lower(), path)
        if other != path:
            raise UserError(
                f"{other} and {path} would write the same files; predict them one by "
                "one, each into an --output of its own."
            )
    return [*found]


def _find(name):
    path = pathlib.Path(name)
    if path.is_dir():
        pictures = sorted(
            child
            for child in path.iterdir()
            if child.suffix.lower() in SUFFIXES and child.name[0] != "."
        )
        if not pictures:
            raise UserError(f"{path} holds no picture ({', '.join(SUFFIXES)}).")
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
        raise UserError(f"{path} {reason}; leave it out.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise UserError(f"{path} cannot be read ({reason}); leave it out.") from error


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
