"""How votes become objects, as a picture of a few frames of a split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from mtl_keras.cityscapes import FIRST_INSTANCE_ID, LABELS, THING_IDS, color_table
from mtl_keras.data.batches import Batch
from mtl_keras.figures.overlays import (
    color_matches,
    distinct_colors,
    overlay_objects,
)
from mtl_keras.figures.painters import color_offsets, draw_offset_wheel, largest_shown
from mtl_keras.figures.shown import ShownFrames
from mtl_keras.hints import PathLike
from mtl_keras.instances.offsets import encode_offsets, keep_things

NO_THING = 225  # grey


class ObjectGallery:
    """Gathers a few frames of a split and draws how their objects were found.

    Args:
        path: where the picture goes.
        num_frames: int. Frames in the split; those shown are spread over it.
        num_shown: int. Rows of the picture. Defaults to 5.
    """

    def __init__(self, path: PathLike, num_frames: int, num_shown: int = 5) -> None:
        self.path = path
        self.frames = ShownFrames(num_frames, num_shown)
        self.rows: list = []
        self.has_truth = False

    def update(
        self,
        batch: Batch,
        predictions: Mapping[str, np.ndarray],
        decoded: Sequence[tuple],
    ) -> None:
        """Looks through a batch, with `images`, `masks` by task and `instance_ids`,
        the predictions by task, and what `ObjectScorer.update` returned for them."""
        assert batch.instance_ids is not None  # loaded where objects are asked for
        self.has_truth |= any(np.any(mask) for mask in batch.masks.values())
        for i in self.frames.next(len(batch.images)):
            image, offsets = np.asarray(batch.images[i]), predictions["instance"][i]
            self.rows.append((image, offsets, *decoded[i], batch.instance_ids[i]))

    def result(self) -> dict[str, Any]:
        """Draws the picture."""
        self.plot(self.path, self.has_truth)
        return {}

    def plot(self, path: PathLike, with_truth: bool = True) -> None:
        """Draws the steps from image to objects side by side, a row for each frame.

        Offsets have the hue of their direction and the saturation of their length,
        classes the official colours. An object that is found, that is, overlaps a
        true one of its class by more than half, has the colour of the true one; any
        other is white.
        """
        titles = ["input", "offsets", "classes", "votes", "objects"]
        titles += ["true objects"] * with_truth
        height, width = self.rows[0][0].shape[:2]
        cell_height = 2.8 * height / width
        figure = Figure(
            figsize=(2.8 * len(titles), cell_height * len(self.rows) + 1.1),
            layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0),
        )
        (above,), (below,) = figure.subfigures(
            2, 1, squeeze=False, height_ratios=[cell_height * len(self.rows) + 0.3, 0.8]
        )
        axes = above.subplots(len(self.rows), len(titles), squeeze=False)
        legends = below.subplots(1, len(titles))
        for axis in [*axes.flat, *legends]:
            axis.set_axis_off()
        for axis, title in zip(axes[0], titles):
            axis.set_title(title)
        scale = largest_shown([row[1][row[2] > 0] for row in self.rows])
        for row, cells in zip(self.rows, axes):
            _draw_row(row, cells, scale, with_truth)
        draw_offset_wheel(legends[1], scale)
        legends[2].legend(
            handles=[
                Patch(color=tuple(np.array(label.color) / 255), label=label.name)
                for label in LABELS
                if label.id in THING_IDS
            ],
            loc="upper left",
            ncols=3,
            fontsize=7,
            frameon=False,
            borderaxespad=0,
            handlelength=1.2,
            columnspacing=1.0,
        )
        _explain(legends[3], "where the pixels of things\nbelieve their centre to be")
        if with_truth:
            _explain(legends[3], "\n\n+  true centres", "#00a0d0")
            _explain(legends[4], "colour: found (overlap above\none half); white: not")
        figure.savefig(path, dpi=110)


def _draw_row(row, cells, scale, with_truth):
    image, offsets, classes, instances, ids = row
    height, width = classes.shape
    is_thing = (classes > 0)[..., None]
    shown = [
        image,
        np.where(is_thing, color_offsets(offsets, scale), NO_THING),
        np.where(is_thing, color_table()[classes], NO_THING),
    ]
    for cell, picture in zip(cells, shown):
        cell.imshow(picture.astype(np.uint8), interpolation="nearest")
    edges = (-0.5, width - 0.5, height - 0.5, -0.5)
    cells[3].imshow(
        _count_votes(offsets, classes), "magma", extent=edges, interpolation="nearest"
    )
    true_classes = keep_things(ids // FIRST_INSTANCE_ID)
    objects = np.where(true_classes > 0, ids, 0)
    number, index = np.unique(objects, return_inverse=True)
    index = index.reshape(objects.shape)
    colors = distinct_colors(len(number) - 1)
    if with_truth:
        cells[5].imshow(overlay_objects(image, index, colors), interpolation="nearest")
        y, x = _find_centres(index, encode_offsets(ids)[0]).T
        cells[3].plot(x, y, "+", color="#40d0ff", markersize=5, markeredgewidth=0.8)
        found = color_matches(instances, classes, index, true_classes, colors)
    else:
        found = distinct_colors(instances.max())
    cells[4].imshow(overlay_objects(image, instances, found), interpolation="nearest")


def _count_votes(offsets, classes):
    """Votes for every pixel, on a logarithmic scale."""
    height, width = classes.shape
    votes = np.argwhere(classes) + offsets[classes > 0]
    count, _, _ = np.histogram2d(
        *votes.T,
        bins=(height, width),
        range=((-0.5, height - 0.5), (-0.5, width - 0.5)),
    )
    return np.log1p(count)


def _find_centres(index, offsets):
    """Where the pixels of each object 1 to n point, `(n, 2)`."""
    _, first = np.unique(index, return_index=True)
    pixels = np.unravel_index(first[1:], index.shape)
    return np.stack(pixels, axis=-1) + offsets[pixels]


def _explain(legend, text, color="black"):
    legend.text(0, 1, text, fontsize=8, va="top", color=color)
