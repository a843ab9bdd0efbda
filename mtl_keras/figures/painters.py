"""Values of street scenes as colours, with their legends.

A painter looks at the rows of a gallery, draws a legend, and returns the function from
values to colours.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.patches import Patch

from mtl_keras.cityscapes import color_table, evaluated_labels

Painter: TypeAlias = Callable[[np.ndarray], np.ndarray]  # from values to colours


def _paint_semantic(rows, label_set, legend):
    colors = color_table(label_set)

    def paint(values):
        return colors[values.argmax(-1) if values.ndim == 3 else values]

    legend.legend(
        handles=[
            Patch(color=np.array(label.color) / 255, label=label.name)
            for label in evaluated_labels(label_set)
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
    sky = "; blue: sky" if "semantic" in rows[0].targets else ""
    mappable = matplotlib.cm.ScalarMappable(
        matplotlib.colors.Normalize(0, scale), "magma"
    )
    legend.figure.colorbar(
        mappable,
        cax=legend.inset_axes([0.02, 0.7, 0.8, 0.14]),
        orientation="horizontal",
        label=f"disparity in pixels{sky}",
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
