"""Maps of street scenes, true and predicted, as pictures."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from mtl_keras.cityscapes import EVALUATED, THING_IDS, color_table, label_id_table
from mtl_keras.data.batches import Batch
from mtl_keras.figures.shown import ShownFrames
from mtl_keras.hints import Destination
from mtl_keras.tasks import TASKS

NOT_VALID = 200  # grey


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
        """Draws input, truth and prediction side by side, a row for each frame.

        Classes have the official colours, offsets the hue of their direction and
        the saturation of their length, disparity a perceptual scale. What is not
        valid in the truth is grey.
        """
        tasks = list(self.rows[0].predictions)
        height, width = self.rows[0].image.shape[:2]
        kinds = ("truth", "prediction") if with_truth else ("prediction",)
        num_columns = 1 + len(kinds) * len(tasks)
        cell_height = 2.8 * height / width
        figure = Figure(
            figsize=(2.8 * num_columns, cell_height * len(self.rows) + 1.3),
            layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0),
        )
        (above,), (below,) = figure.subfigures(
            2, 1, squeeze=False, height_ratios=[cell_height * len(self.rows) + 0.3, 1.0]
        )
        axes = above.subplots(len(self.rows), num_columns, squeeze=False)
        legends = below.subplots(1, 1 + len(tasks), width_ratios=[1] + [2] * len(tasks))
        for axis in [*axes.flat, *legends]:
            axis.set_axis_off()
        axes[0, 0].set_title("input")
        for row, axis in zip(self.rows, axes[:, 0]):
            axis.imshow(row.image)
        for i, (task, legend) in enumerate(zip(tasks, legends[1:])):
            columns = axes[:, 1 + i * len(kinds) :][:, : len(kinds)]
            paint = PAINTERS[task](self.rows, self.label_set, legend)
            for row, cells in zip(self.rows, columns):
                truth = paint(row.targets[task])
                predicted = paint(row.predictions[task])
                is_valid = row.masks[task] > 0, find_valid(row, task, self.label_set)
                shown = {
                    "truth": np.where(is_valid[0][..., None], truth, NOT_VALID),
                    "prediction": np.where(
                        is_valid[1][..., None], predicted, NOT_VALID
                    ),
                }
                for kind, cell in zip(kinds, cells):
                    cell.imshow(shown[kind].astype(np.uint8), interpolation="nearest")
            for kind, cell in zip(kinds, columns[0]):
                cell.set_title(f"{task}, {kind}")
        figure.savefig(path, dpi=110)


def find_valid(row: Row, task: str, label_set: str) -> np.ndarray:
    """Where the prediction of a task means something, `(H, W)` bool: everywhere, or on
    predicted things, if it is about things and the network says where they are."""
    if not TASKS[task].of_things or "semantic" not in row.predictions:
        return np.ones(row.image.shape[:2], bool)
    classes = row.predictions["semantic"].argmax(-1)
    return np.isin(label_id_table(label_set)[classes], THING_IDS)


# A painter looks at the rows, draws a legend, and returns the function from values
# to colours.


def _paint_semantic(rows, label_set, legend):
    colors = color_table(label_set)

    def paint(values):
        return colors[values.argmax(-1) if values.ndim == 3 else values]

    legend.legend(
        handles=[
            Patch(color=np.array(label.color) / 255, label=label.name)
            for label in EVALUATED
        ],
        loc="upper left",
        ncols=5,
        fontsize=7,
        frameon=False,
        borderaxespad=0,
        handlelength=1.2,
        columnspacing=1.0,
    )
    return paint


def _paint_instance(rows, label_set, legend):
    scale = largest_shown(_valid_values(rows, "instance"))
    draw_offset_wheel(legend, scale)
    return lambda values: color_offsets(values, scale)


def _paint_depth(rows, label_set, legend):
    scale = largest_shown(_valid_values(rows, "depth"))
    mappable = matplotlib.cm.ScalarMappable(
        matplotlib.colors.Normalize(0, scale), "magma"
    )
    legend.figure.colorbar(
        mappable,
        cax=legend.inset_axes([0.02, 0.7, 0.8, 0.14]),
        orientation="horizontal",
        label="disparity in pixels",
    )
    return lambda values: color_depth(values, scale)


PAINTERS = {
    "semantic": _paint_semantic,
    "instance": _paint_instance,
    "depth": _paint_depth,
}


def _valid_values(rows, task):
    return [row.targets[task][row.masks[task] > 0] for row in rows]


def largest_shown(values: Sequence[np.ndarray]) -> float:
    """The largest value to tell apart: nearly the largest there is, at least 1.

    `values` is a list of arrays.
    """
    sizes = np.abs(np.concatenate(values))
    return max(float(np.percentile(sizes, 99)), 1.0) if sizes.size else 1.0


def draw_offset_wheel(legend: Axes, scale: float) -> None:
    """Draws the legend of `color_offsets` on an axis."""
    dy, dx = np.mgrid[-1:1:101j, -1:1:101j]
    inside = np.hypot(dy, dx)[..., None] <= 1
    wheel = np.where(inside, color_offsets(np.stack([dy, dx], -1), 1.0), 255)
    legend.imshow(wheel, extent=(-1, 1, 1, -1))
    legend.set_anchor("W")
    legend.text(
        1.2,
        0,
        f"direction to the centre of the\ninstance; at the rim {scale:.0f} pixels",
        fontsize=8,
        va="center",
    )


def color_offsets(offsets: np.ndarray, scale: float) -> np.ndarray:
    """Colours of offsets `(..., 2)`: hue is the direction, saturation the length up
    to `scale` pixels. Returns `(..., 3)` uint8."""
    dy, dx = offsets[..., 0], offsets[..., 1]
    hue = (np.arctan2(dy, dx) / (2 * np.pi)) % 1.0
    saturation = np.clip(np.hypot(dy, dx) / scale, 0.0, 1.0)
    hsv = np.stack([hue, saturation, np.ones_like(hue)], axis=-1)
    return (hsv_to_rgb(hsv) * 255).astype(np.uint8)


def color_depth(disparity: np.ndarray, scale: float) -> np.ndarray:
    """Colours of disparity `(..., 1)` from 0 to `scale` pixels, `(..., 3)` uint8."""
    colormap = matplotlib.colormaps["magma"]
    return colormap(np.clip(disparity[..., 0] / scale, 0, 1), bytes=True)[..., :3]
