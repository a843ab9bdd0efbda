"""One picture and what a network says about it, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtl_keras.cityscapes import (
    LABELS,
    SKY_ID,
    color_table,
    evaluated_labels,
    labels_of,
)
from mtl_keras.figures.overlays import distinct_colors

CELL_WIDTHS = 480, 960  # smallest and largest width of a cell in pixels
TITLE_HEIGHT = 24
GAP = 6


class Cell(NamedTuple):
    """A picture `(h, w, 3)` uint8 RGB and what is written above it."""

    title: str
    picture: np.ndarray


def draw_panel(
    picture: np.ndarray,
    classes: np.ndarray | None,
    instances: np.ndarray | None,
    disparity: np.ndarray | None,
    objects: Sequence[Mapping[str, Any]],
    all_classes: bool = False,
    label_set: str = "train_ids",
) -> np.ndarray:
    """Input, classes over it, objects with outline and name, and depth.

    Args:
        picture: `(H, W, 3)` uint8 RGB.
        classes: `(H, W)` label ids, or `None`; as the next two it then has no cell.
        instances: `(H, W)`, the number of the object from 1, else 0.
        disparity: `(H, W)` in pixels.
        objects: dicts with `number`, `class`, `confidence` and `box`, and maybe
            `distance_m`.
        all_classes: bool. Whether the legend names all classes that are evaluated, not
            those in the picture: pictures of one size then have panels of one size.
        label_set: str, a key of `cityscapes.LABEL_SETS`: the classes to name.

    Returns:
        `(h, w, 3)` uint8 RGB: two cells in a row, each of the picture's proportions.
    """
    cells = draw_cells(picture, classes, instances, disparity, objects)
    height, width = cells["input"].picture.shape[:2]
    legend = []
    if all_classes and classes is not None:
        legend = [(label.name, label.color) for label in evaluated_labels(label_set)]
    elif classes is not None:
        small = _resize(classes, width, height, cv2.INTER_NEAREST)
        legend = list_classes(small, label_set)
    return _arrange([*cells.values()], legend, width, height)


def draw_cells(
    picture: np.ndarray,
    classes: np.ndarray | None,
    instances: np.ndarray | None,
    disparity: np.ndarray | None,
    objects: Sequence[Mapping[str, Any]],
) -> dict[str, Cell]:
    """The cells of `draw_panel`, all of one size: `input` and, of what there is,
    `classes`, `objects` and `depth`. The arguments are those of `draw_panel`."""
    height, width = picture.shape[:2]
    cell_width = int(np.clip(width, *CELL_WIDTHS))
    cell_height = max(round(cell_width * height / width), 1)
    scale = cell_width / width
    image = _resize(picture, cell_width, cell_height, cv2.INTER_AREA)
    cells = {"input": Cell("input", image)}
    label_ids = None
    if classes is not None:
        label_ids = _resize(classes, cell_width, cell_height, cv2.INTER_NEAREST)
        colors = _look_up(label_ids, color_table())
        mixed = cv2.addWeighted(image, 0.4, colors, 0.6, 0)
        cells["classes"] = Cell("classes", mixed)
    if instances is not None:
        shown = _resize(
            instances.astype(np.uint16), cell_width, cell_height, cv2.INTER_NEAREST
        )
        drawn = _draw_objects(image, shown, objects, scale)
        cells["objects"] = Cell("objects", drawn)
    if disparity is not None:
        small = _resize(disparity, cell_width, cell_height, cv2.INTER_AREA)
        top = max(float(np.percentile(small, 99)), 1e-6)
        levels = np.clip(small * (255 / top), 0, 255).astype(np.uint8)
        magma = matplotlib.colormaps["magma"](np.arange(256), bytes=True)
        colors = _look_up(levels, magma[:, :3])
        title = f"disparity, 0 to {top:.3g} pixels of the picture: near is bright"
        if label_ids is not None:
            colors[label_ids == SKY_ID] = color_table()[SKY_ID]
            title += ", sky blue"
        cells["depth"] = Cell(title, colors)
    return cells


def _resize(array, width, height, shrinking):
    """Linear where it grows, unless it is the nearest pixel that is asked for."""
    nearest = shrinking == cv2.INTER_NEAREST
    method = cv2.INTER_LINEAR if width > array.shape[1] and not nearest else shrinking
    return cv2.resize(array, (width, height), interpolation=method)


def _look_up(index, table):
    """The colours of an index `(h, w)` uint8 in a table of up to 256 colours."""
    padded = np.zeros((256, 1, 3), np.uint8)
    padded[: len(table), 0] = table
    return cv2.applyColorMap(index, padded)


def _draw_objects(image, instances, objects, scale):
    """Outlines, and names at the upper left of the largest part of each object."""
    grey = cv2.convertScaleAbs(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None, 0.6, 60)
    canvas = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    colors = distinct_colors(len(objects))
    corners = []
    for thing, color in zip(objects, colors):
        left, top, right, bottom = (scale * edge for edge in thing["box"])
        x, y = max(int(left) - 1, 0), max(int(top) - 1, 0)
        window = slice(y, int(bottom) + 2), slice(x, int(right) + 2)
        inside = instances[window] == thing["number"]
        part = canvas[window]
        part[inside] = (0.5 * part[inside] + 0.5 * color).astype(np.uint8)
        outlines, _ = cv2.findContours(
            inside.astype(np.uint8),
            cv2.RETR_EXTERNAL,
            cv2.CHAIN_APPROX_NONE,
            offset=(x, y),
        )
        cv2.drawContours(canvas, outlines, -1, color.tolist(), 2)
        largest = max(outlines, key=cv2.contourArea, default=None)
        corners.append((left, top) if largest is None else cv2.boundingRect(largest))
    shown = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(shown), ImageFont.load_default(size=13)
    for thing, color, (left, top, *_) in zip(objects, colors, corners):
        text = f"{thing['class']} {100 * thing['confidence']:.0f} %"
        if thing.get("distance_m"):
            text += f", {thing['distance_m']:.3g} m"
        box = draw.textbbox((0, 0), text, font)
        x = min(left, shown.width - box[2] - 4)
        y = max(top - box[3] - 4, 0)
        draw.rectangle((x, y, x + box[2] + 4, y + box[3] + 4), fill=tuple(color // 3))
        draw.text((x + 2, y + 1), text, "white", font)
    return np.asarray(shown)


def list_classes(
    classes: np.ndarray, label_set: str = "train_ids"
) -> list[tuple[str, tuple[int, int, int]]]:
    """Name and colour of the classes in a map of label ids, the most frequent
    first, with the names that a label set has for them."""
    labels = {label.id: label for label in (*LABELS, *labels_of(label_set))}
    count = np.bincount(classes.ravel(), minlength=len(LABELS))
    return [
        (labels[label_id].name, labels[label_id].color)
        for label_id in np.argsort(-count, kind="stable")
        if count[label_id]
    ]


def _arrange(cells, legend, width, height):
    font = ImageFont.load_default(size=14)
    columns = min(len(cells), 2)
    rows = -(-len(cells) // columns)
    lines = _break_lines(legend, font, columns * (width + GAP) - GAP)
    panel = Image.new(
        "RGB",
        (
            columns * (width + GAP) - GAP,
            rows * (height + TITLE_HEIGHT) + TITLE_HEIGHT * len(lines),
        ),
        "white",
    )
    draw = ImageDraw.Draw(panel)
    for k, (title, picture) in enumerate(cells):
        x = k % columns * (width + GAP)
        y = k // columns * (height + TITLE_HEIGHT)
        draw.text((x + 4, y + 3), title, "black", font)
        panel.paste(Image.fromarray(picture), (x, y + TITLE_HEIGHT))
    for k, line in enumerate(lines):
        y = rows * (height + TITLE_HEIGHT) + k * TITLE_HEIGHT
        for x, name, color in line:
            draw.rectangle((x, y + 6, x + 14, y + 18), fill=tuple(color))
            draw.text((x + 19, y + 3), name, "black", font)
    return np.asarray(panel)


def _break_lines(legend, font, width):
    """`(x, name, color)` of the entries of each line."""
    lines, x = [[]], 4
    for name, color in legend:
        needed = 19 + font.getlength(name) + 16
        if x + needed > width and lines[-1]:
            lines.append([])
            x = 4
        lines[-1].append((x, name, color))
        x += needed
    return lines if legend else []
