"""Which frames of a split are shown."""

import numpy as np


class ShownFrames:
    """A few frames, spread over a split.

    Args:
        num_frames: int. Frames in the split.
        num_shown: int. How many of them are shown, at most.
    """

    def __init__(self, num_frames: int, num_shown: int) -> None:
        shown = np.linspace(0, num_frames - 1, min(num_shown, num_frames))
        self._shown = set(shown.round().astype(int).tolist())
        self._seen = 0

    def next(self, count: int) -> list[int]:
        """Which of the next `count` frames are shown, a list of indices among them."""
        first = self._seen
        self._seen += count
        return [i for i in range(count) if first + i in self._shown]
