"""Maps of street scenes, true and predicted, as pictures."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mtl_keras.cityscapes import (
    SKY_ID,
    THING_IDS,
    color_table,
    label_id_table,
)
from mtl_keras.data.batches import Batch
from mtl_keras.figures.overlays import (
    color_matches,
    distinct_colors,
    overlay_objects,
)
from mtl_keras.figures.painters import PAINTERS, Painter
from mtl_keras.figures.shown import ShownFrames
from mtl_keras.hints import Destination
from mtl_keras.instances import cluster_offsets
from mtl_keras.instances.offsets import keep_things
from mtl_keras.tasks import TASKS

GREY = 200  # what is not valid


class Row(NamedTuple):
    """A frame that is shown; the dicts are by task."""

    image: np.ndarray
    targets: dict
    masks: dict
    predictions: dict

    @classmethod
    def of(
        cls, batch: Batch, predictions: Mapping[str, np.ndarray], index: int
    ) -> "Row":
        """One of the frames of a batch."""
        return cls(
            np.asarray(batch.images[index]),
            *(
                {task: np.asarray(value[index]) for task, value in values.items()}
                for values in (batch.targets, batch.masks, predictions)
            ),
        )


class MapGallery:
    """Gathers a few frames of a split and draws what was predicted for them.

    Args:
        path: where the picture goes.
        num_frames: int. Frames in the split; those shown are spread over it.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        num_shown: int. Rows of the picture. Defaults to 5.
    """

    def __init__(
        self, path: Destination, num_frames: int, label_set: str, num_shown: int = 5
    ) -> None:
        self.path = path
        self.label_set = label_set
        self.frames = ShownFrames(num_frames, num_shown)
        self.rows: list[Row] = []
        self.has_truth = False

    def update(self, batch: Batch, predictions: Mapping[str, np.ndarray]) -> None:
        """Looks through a batch, with `images`, and `targets` and `masks` by task."""
        self.has_truth |= any(np.any(mask) for mask in batch.masks.values())
        for i in self.frames.next(len(batch.images)):
            self.rows.append(Row.of(batch, predictions, i))

    def result(self) -> dict[str, Any]:
        """Draws the picture."""
        self.plot(self.path, self.has_truth)
        return {}

    def plot(self, path: Destination, with_truth: bool = True) -> None:
        """Draws the picture, see `plot_maps`."""
        plot_maps(self.rows, self.label_set, path, with_truth)


def plot_maps(
    rows: Sequence[Row],
    label_set: str,
    path: Destination,
    with_truth: bool = True,
    tasks: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> None:
    """Draws input, truth and prediction side by side, a row for each frame.

    Classes have the official colours, offsets the hue of their direction and the
    saturation of their length, disparity a perceptual scale but for the sky, which has
    the colour of its class. What is not valid is grey. With classes and votes there are
    also objects: one that is found has the colour of the true one, any other is white.

    Args:
        rows: the frames.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        path: where the picture goes.
        with_truth: bool. Whether there is a truth to show.
        tasks: those that are shown. Defaults to all, and the objects.
        notes: what is written over the inputs.
    """
    with_objects = not tasks and {"semantic", "instance"} <= set(rows[0].predictions)
    tasks = tasks or list(rows[0].predictions)
    height, width = rows[0].image.shape[:2]
    kinds = ("truth", "prediction") if with_truth else ("prediction",)
    num_views = len(tasks) + with_objects
    num_columns = 1 + len(kinds) * num_views
    cell_height = 2.8 * height / width
    figure = Figure(
        figsize=(2.8 * num_columns, cell_height * len(rows) + 1.3),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0),
    )
    (above,), (below,) = figure.subfigures(
        2, 1, squeeze=False, height_ratios=[cell_height * len(rows) + 0.3, 1.0]
    )
    axes = above.subplots(len(rows), num_columns, squeeze=False)
    legends = below.subplots(1, 1 + num_views, width_ratios=[1] + [2] * num_views)
    for axis in [*axes.flat, *legends]:
        axis.set_axis_off()
    axes[0, 0].set_title("input")
    for row, axis in zip(rows, axes[:, 0]):
        axis.imshow(row.image)
    for note, axis in zip(notes, axes[:, 0]):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        axis.text(4, 4, note, fontsize=8, va="top", bbox=box)
    for i, (task, legend) in enumerate(zip(tasks, legends[1:])):
        columns = axes[:, 1 + i * len(kinds) :][:, : len(kinds)]
        paint = PAINTERS[task](rows, label_set, legend)
        for row, cells in zip(rows, columns):
            shown = {
                "truth": paint_truth(row, task, label_set, paint),
                "prediction": paint_prediction(row, task, label_set, paint),
            }
            _show(cells, kinds, shown)
        _set_titles(columns[0], kinds, task)
    if with_objects:
        columns = axes[:, -len(kinds) :]
        for row, cells in zip(rows, columns):
            _show(cells, kinds, paint_objects(row, label_set))
        _set_titles(columns[0], kinds, "objects")
        if with_truth:
            note = "colour: found (overlap above\none half); white: not"
            legends[-1].text(0, 1, note, fontsize=8, va="top")
    figure.savefig(path, dpi=110)


def _show(cells, kinds, shown):
    for kind, cell in zip(kinds, cells):
        cell.imshow(shown[kind], interpolation="nearest")


def _set_titles(cells, kinds, name):
    for kind, cell in zip(kinds, cells):
        cell.set_title(f"{name}, {kind}")


def paint_truth(row: Row, task: str, label_set: str, paint: Painter) -> np.ndarray:
    """The true map of a task in colours, `(H, W, 3)` uint8."""
    picture = np.where((row.masks[task] > 0)[..., None], paint(row.targets[task]), GREY)
    return _paint_sky(picture, task, _true_ids(row, label_set))


def paint_prediction(row: Row, task: str, label_set: str, paint: Painter) -> np.ndarray:
    """The predicted map of a task in colours, `(H, W, 3)` uint8.

    Votes are shown on predicted things, where they mean something, if the network
    says where those are.
    """
    picture = paint(row.predictions[task])
    label_ids = _predicted_ids(row, label_set)
    if TASKS[task].of_things and label_ids is not None:
        is_thing = np.isin(label_ids, THING_IDS)
        picture = np.where(is_thing[..., None], picture, GREY)
    return _paint_sky(picture, task, label_ids)


def paint_objects(row: Row, label_set: str) -> dict[str, np.ndarray]:
    """True and predicted objects over the image, `(H, W, 3)` uint8 by `"truth"` and
    `"prediction"`."""
    things = keep_things(_predicted_ids(row, label_set))
    instances = cluster_offsets(row.predictions["instance"], things)
    true_ids = _true_ids(row, label_set)
    true_things = np.where(row.masks["instance"] > 0, keep_things(true_ids), 0)
    true_instances = cluster_offsets(row.targets["instance"], true_things)
    colors = distinct_colors(true_instances.max())
    found = color_matches(instances, things, true_instances, true_things, colors)
    return {
        "truth": overlay_objects(row.image, true_instances, colors),
        "prediction": overlay_objects(row.image, instances, found),
    }


def _paint_sky(picture, task, label_ids):
    """Paints the sky in the colour of its class where a task's pictures show it so."""
    if TASKS[task].sky_apart and label_ids is not None:
        is_sky = (label_ids == SKY_ID)[..., None]
        picture = np.where(is_sky, color_table()[SKY_ID], picture)
    return picture.astype(np.uint8)


def _predicted_ids(row, label_set):
    """Label ids `(H, W)` of the predicted classes, `None` without them."""
    if "semantic" not in row.predictions:
        return None
    return label_id_table(label_set)[row.predictions["semantic"].argmax(-1)]


def _true_ids(row, label_set):
    """Label ids `(H, W)` of the true classes, 0 where there is none; `None` if the
    network is not about classes."""
    if "semantic" not in row.targets:
        return None
    is_valid = row.masks["semantic"] > 0
    classes = np.where(is_valid, row.targets["semantic"], 0)
    return np.where(is_valid, label_id_table(label_set)[classes], 0)
