"""What is in a data set, as Markdown tables."""

from collections.abc import Mapping, Sequence

import numpy as np

from mtl_keras.cityscapes import LABELS
from mtl_keras.data.inspection import Remark, Tally
from mtl_keras.figures.markdown import format_table


def format_tallies(tallies: Mapping[str, Tally]) -> str:
    """The tables of a data set: its splits, and for each of them its classes.

    Args:
        tallies: dict by split.
    """
    tables = [_format_splits(tallies)]
    for split, tally in tallies.items():
        if tally.class_pixels.any() and split != "test":  # which has dummies
            tables.append(f"Classes of {split}:\n\n{_format_classes(tally)}")
    return "\n\n".join(tables)


def _format_splits(tallies):
    tasks = dict.fromkeys(task for tally in tallies.values() for task in tally.valid)
    rows = []
    for split, tally in tallies.items():
        row = [split, tally.total, tally.num_frames, _format_sizes(tally.sizes)]
        for task in tasks:
            valid, pixels = tally.valid.get(task, (0, 0))
            row.append(100.0 * valid / pixels if pixels else None)
        rows.append(row)
    columns = ["split", "frames", "counted", "sizes of the frames"]
    return format_table(rows, columns + [f"valid for {task} %" for task in tasks])


def _format_sizes(sizes, num_shown=3):
    shown = [
        f"{height}x{width}" + (f" ({count})" if len(sizes) > 1 else "")
        for (height, width), count in sizes.most_common(num_shown)
    ]
    if len(sizes) > num_shown:
        shown.append(f"{len(sizes) - num_shown} more")
    return ", ".join(shown)


def _format_classes(tally):
    total = np.sum(tally.class_pixels)
    rows = [
        [
            f"{label.name} (ignored)" if label.ignored else label.name,
            f"{tally.class_pixels[label.id]:,}",
            100.0 * float(tally.class_pixels[label.id] / total),
            int(tally.class_frames[label.id]),
            int(tally.objects[label.id]) if label.has_instances else None,
        ]
        for label in LABELS
        if not label.ignored or tally.class_pixels[label.id]
    ]
    return format_table(rows, ["class", "pixels", "% of pixels", "frames", "objects"])


def format_remarks(title: str, remarks: Sequence[Remark]) -> str:
    """A list of remarks, each with the number of files that it is about."""
    lines = [f"- {_format_count(remark.count)}{remark.sentence}" for remark in remarks]
    return "\n".join([title, "", *lines])


def _format_count(count):
    return f"{count} {'file' if count == 1 else 'files'}: " if count else ""
