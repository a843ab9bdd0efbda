"""What training sees, as one picture: images, targets and masks of a few frames."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mtl_keras.figures.maps import GREY, Row, paint_truth
from mtl_keras.figures.overlays import distinct_colors, overlay_objects
from mtl_keras.figures.painters import PAINTERS
from mtl_keras.hints import Destination
from mtl_keras.tasks import TASKS

DPI = 110
CELL = 3.6  # the longer side of a picture, in inches
GAP = 0.08
TITLE_HEIGHT = 0.3
LEGEND_HEIGHT = 0.95
NAMES_WIDTH = 0.95  # of the tasks beside their masks
ARROW_SPACING = 0.25  # between the pixels that arrows start from
SHORTEST_ARROW = 0.04

SAME_CENTRE = 0.05  # in pixels; votes of one object differ by rounding only


def draw_contact_sheet(rows: Sequence[Row], label_set: str, path: Destination) -> None:
    """Draws frames of training batches, a row for each.

    The columns are the image, the target of each task, and the masks. Classes have the
    official colours; votes are arrows from some pixels of each object to its centre, a
    dot; disparity has a colour bar. What is not valid is grey, among the votes a
    darkened image.

    Args:
        rows: the frames; their predictions are not looked at.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
        path: where the picture goes.
    """
    tasks = list(rows[0].targets)
    height, width = rows[0].image.shape[:2]
    inch = max(height, width) / CELL  # in pixels of the image
    cell_width, cell_height = width / inch, height / inch
    masks_width = cell_width / len(tasks)
    total_width = (
        GAP + (1 + len(tasks)) * (cell_width + GAP) + masks_width + NAMES_WIDTH
    )
    total_height = TITLE_HEIGHT + len(rows) * (cell_height + GAP) + LEGEND_HEIGHT
    figure = Figure(figsize=(total_width, total_height))

    def place(column, row, width, height):
        """An axis whose upper left corner is that of a cell."""
        left = GAP + column * (cell_width + GAP)
        top = total_height - TITLE_HEIGHT - row * (cell_height + GAP)
        axis = figure.add_axes(
            (
                left / total_width,
                (top - height) / total_height,
                width / total_width,
                height / total_height,
            )
        )
        axis.set_axis_off()
        return axis

    for column, task in enumerate(tasks, 1):
        # The names of the classes need the room below two cells.
        first, span = (0, 2) if task == tasks[0] else (column, 1)
        legend = place(first, len(rows), span * cell_width, LEGEND_HEIGHT)
        paint = VIEWS.get(task, _PaintedView)(rows, task, label_set, legend, inch)
        for number, row in enumerate(rows):
            paint(row, place(column, number, cell_width, cell_height))
    for number, row in enumerate(rows):
        place(0, number, cell_width, cell_height).imshow(row.image)
        axis = place(1 + len(tasks), number, masks_width, cell_height)
        _show_masks(row, axis)
    legend = place(1 + len(tasks), len(rows), masks_width, LEGEND_HEIGHT)
    legend.text(0, 0.94, "colour: valid\ngrey: masked", fontsize=8, va="top")
    titles = ["image", *(VIEW_TITLES.get(task, task) for task in tasks), "masks"]
    for column, title in enumerate(titles):
        axis = place(column, 0, cell_width, cell_height)
        axis.set_title(title, fontsize=11, loc="left", pad=5)
        axis.patch.set_visible(False)
    figure.savefig(path, dpi=DPI)


class _PaintedView:
    """Shows a target in the colours of its painter."""

    def __init__(self, rows, task, label_set, legend, inch):
        self.task, self.label_set = task, label_set
        self.paint = PAINTERS[task](rows, label_set, legend)

    def __call__(self, row, axis):
        picture = paint_truth(row, self.task, self.label_set, self.paint)
        axis.imshow(picture, interpolation="nearest")


class _ArrowView:
    """Shows votes as arrows over the objects."""

    def __init__(self, rows, task, label_set, legend, inch):
        self.task, self.inch = task, inch
        text = (
            "arrows: from pixels of an object to its centre (dot),\n"
            "the mean position of its pixels; colours tell objects apart"
        )
        legend.text(0, 0.94, text, fontsize=8, va="top")

    def __call__(self, row, axis):
        offsets, mask = row.targets[self.task], row.masks[self.task] > 0
        objects = number_objects(offsets, mask)
        colors = distinct_colors(int(objects.max(initial=0)))
        axis.imshow(overlay_objects(row.image, objects, colors))
        spacing = max(round(ARROW_SPACING * self.inch), 1)
        starts, ends = choose_arrows(offsets, objects, spacing)
        draw_arrows(axis, starts, ends, SHORTEST_ARROW * self.inch)


VIEWS = {"instance": _ArrowView}
VIEW_TITLES = {
    "semantic": "semantic: classes",
    "instance": "instance: votes for the centres of objects",
    "depth": "depth: disparity",
}


def number_objects(offsets: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Which pixels vote for one centre.

    Args:
        offsets: `(H, W, 2)`, `(dy, dx)` in pixels, without noise.
        mask: `(H, W)` bool, where they are valid.

    Returns:
        `(H, W)` int, the number of the object from 1, else 0.
    """
    objects = np.zeros(mask.shape, int)
    pixels = np.argwhere(mask)
    if not len(pixels):
        return objects
    centres = np.round(pixels + offsets[mask], 2)
    found, index = np.unique(centres, axis=0, return_inverse=True)
    # Rounding parts votes that lie on both sides of a step.
    is_near = np.abs(found[:, None] - found).max(-1) < SAME_CENTRE
    _, number = np.unique(is_near.argmax(1), return_inverse=True)
    objects[mask] = 1 + number[index.ravel()]
    return objects


def choose_arrows(
    offsets: np.ndarray, objects: np.ndarray, spacing: int
) -> tuple[np.ndarray, np.ndarray]:
    """A few votes that can be told apart in a picture.

    Args:
        offsets: `(H, W, 2)`, `(dy, dx)` in pixels.
        objects: `(H, W)`, the number of the object from 1, else 0.
        spacing: int. Pixels of a grid with this spacing are taken, and the first and
            the last pixel of an object with fewer than two of them.

    Returns:
        Where the arrows start and end, each `(n, 2)`, `(y, x)` in pixels; arrow by
        arrow, `end = start + offset`.
    """
    pixels = np.argwhere(objects > 0)
    numbers = objects[objects > 0]
    is_chosen = (pixels % spacing == spacing // 2).all(axis=1)
    count = np.bincount(numbers[is_chosen], minlength=int(objects.max(initial=0)) + 1)
    for order in (1, -1):
        found, first = np.unique(numbers[::order], return_index=True)
        first = first if order > 0 else len(numbers) - 1 - first
        is_chosen[first[count[found] < 2]] = True
    starts = pixels[is_chosen]
    return starts, starts + offsets[starts[:, 0], starts[:, 1]]


def draw_arrows(
    axis: Axes, starts: np.ndarray, ends: np.ndarray, shortest: float = 0.0
) -> None:
    """Draws arrows with a dot at the end, but the dots alone of very short ones.

    Args:
        axis: one that shows a picture.
        starts, ends: `(n, 2)`, `(y, x)` in pixels of the picture.
        shortest: float, in pixels.
    """
    if not len(starts):
        return
    centres = np.unique(np.round(ends, 1), axis=0)
    is_long = np.hypot(*(ends - starts).T) >= shortest
    (y, x), (dy, dx) = starts[is_long].T, (ends - starts)[is_long].T
    axis.quiver(
        *(x, y, dx, dy),
        angles="xy",
        scale_units="xy",
        scale=1,
        units="inches",
        width=0.013,
        headwidth=4,
        headlength=5,
        headaxislength=4.5,
        minlength=0,
        facecolor="white",
        edgecolor="black",
        linewidth=0.35,
    )
    axis.scatter(
        *(centres[:, 1], centres[:, 0]),
        s=7,
        facecolor="yellow",
        edgecolor="black",
        linewidth=0.5,
        zorder=3,
    )


def _show_masks(row, axis):
    """The masks of a frame, one below the other, with the share of valid pixels."""
    height, width = row.image.shape[:2]
    gap = max(height // 12, 1)
    picture = np.ones((len(row.masks) * (height + gap) - gap, width, 3))
    for number, (task, mask) in enumerate(row.masks.items()):
        top = number * (height + gap)
        color = to_rgb(TASKS[task].color)
        is_valid = (mask > 0)[..., None]
        picture[top : top + height] = np.where(is_valid, color, GREY / 255)
        share = 100 * np.mean(mask > 0)
        text = f" {task}\n {share:.0f} % valid"
        axis.text(width, top + height / 2, text, fontsize=8, va="center")
    axis.imshow(picture, interpolation="nearest")
    axis.set_anchor("NW")
