"""Videos, read and written frame by frame."""

import pathlib
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from mtl_keras.errors import UserError

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")


class Video:
    """A video that OpenCV opens; iterating yields its frames, `(H, W, 3)` uint8 RGB.

    Attributes:
        path: `pathlib.Path`.
        rate: float, frames per second.
        num_frames: int, as far as the file says.

    Raises:
        UserError: if it cannot be opened or has no frame.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        capture = cv2.VideoCapture(str(path))
        is_readable = capture.isOpened() and capture.read()[0]
        self.rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        self.num_frames = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        capture.release()
        if not is_readable:
            raise UserError(f"{path} is not a video that OpenCV can read.")

    def __iter__(self) -> Iterator[np.ndarray]:
        capture = cv2.VideoCapture(str(self.path))
        try:
            while True:
                is_frame, frame = capture.read()
                if not is_frame:
                    return
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()


def write_video(path: pathlib.Path, frames: Iterable[np.ndarray], rate: float) -> None:
    """Writes an MP4 file, which appears when it is complete.

    Args:
        path: where to.
        frames: `(H, W, 3)` uint8 RGB, all of one size. A last odd row or column is
            repeated, since the codec takes even sizes only.
        rate: float, frames per second.

    Raises:
        UserError: if the file cannot be written.
        ValueError: for frames of different sizes.
    """
    unfinished = path.with_name(f".{path.name}.part.mp4")
    codec = cv2.VideoWriter_fourcc(*"mp4v")  # type: ignore[attr-defined]
    writer, size, count = None, (0, 0), 0
    try:
        for count, frame in enumerate(frames, 1):
            height, width = frame.shape[:2]
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
            if writer is None:
                size = even.shape[1], even.shape[0]
                writer = cv2.VideoWriter(str(unfinished), codec, rate, size)
                if not writer.isOpened():
                    raise UserError(f"{path} cannot be written as a video.")
            if even.shape[:2] != size[::-1]:  # OpenCV would leave it out
                raise ValueError(
                    f"All frames must have one size. Received: {frame.shape}"
                )
            writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        if writer is not None:
            writer.release()
            if _count_frames(unfinished) != count:  # OpenCV tells nobody
                raise UserError(f"{path} cannot be written; make room for it.")
            unfinished.replace(path)
    finally:
        if writer is not None:
            writer.release()
        unfinished.unlink(missing_ok=True)


def _count_frames(path):
    """The frames that a video says it has, 0 if it cannot be opened."""
    capture = cv2.VideoCapture(str(path))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return count
