"""Which of many are taken where a few have to do.

Neighbouring frames are of one city and alike, so that they are taken evenly. This
module imports nothing heavy.
"""

from collections.abc import Sequence
from typing import Any


def is_taken_evenly(index: Any, count: int, total: int) -> Any:
    """Whether an element is one of `count` that are spread evenly over `total`.

    Args:
        index: int, array or tensor of them, in 0..`total` - 1.
        count: int, not more than `total`.
        total: int.
    """
    return index * count % total < count


def take_evenly(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items, spread evenly; all of them if it is 0 or too many."""
    total = len(items)
    if not 0 < count < total:
        return [*items]
    return [item for i, item in enumerate(items) if is_taken_evenly(i, count, total)]
