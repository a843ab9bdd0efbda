"""Charts inside a page: SVG that takes the page's colour of text, light or dark.

Lines differ in dashes as well as in colour.
"""

import contextlib
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtl_keras.figures.curves import plain_log_ticks

INK = "#010203"  # in the drawing what becomes the page's colour of text
DASHES = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)))
COLORS = matplotlib.color_sequences["Dark2"]


class Line(NamedTuple):
    """A line of a chart: `style` is a dash pattern of Matplotlib."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str | tuple
    style: str | tuple = "-"


def draw_lines(
    title: str, lines: Sequence[Line], xlabel: str = "epoch", log: bool = False
) -> str:
    """A chart of lines as SVG, with a legend if there are several.

    Args:
        title: str, what is drawn, with its unit.
        lines: at least one `Line`.
        xlabel: str.
        log: bool. Whether the axis of values is logarithmic; it is linear all the
            same if a value is not above 0.
    """
    log = log and all(np.min(line.y, initial=1) > 0 for line in lines)
    with _style():
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        axis = figure.subplots()
        for line in lines:
            axis.plot(
                line.x,
                line.y,
                color=line.color,
                linestyle=line.style,
                marker="o" if len(line.x) == 1 else None,
                label=line.label,
            )
        axis.set_title(title)
        axis.set_xlabel(xlabel)
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axis.grid(alpha=0.25)
        if log:
            axis.set_yscale("log")
            plain_log_ticks(axis)
        if len(lines) > 1:
            handles = {h.get_label(): h for h in axis.get_lines()}
            figure.legend(
                handles=[*handles.values()],
                loc="outside lower center",
                ncols=min(len(handles), 3),
                frameon=False,
                handlelength=3,
            )
        return _to_svg(figure, title)


def draw_confusion(matrix: np.ndarray, names: Sequence[str], title: str) -> str:
    """A confusion matrix as SVG: per cent of each true class, in a row.

    Args:
        matrix: `(n, n)` counts, true classes in rows.
        names: n str.
        title: str.
    """
    totals = matrix.sum(axis=1, keepdims=True)
    shares = 100 * matrix / np.maximum(totals, 1)
    with _style():
        figure = Figure(figsize=(9.5, 8.2), layout="constrained")
        axis = figure.subplots()
        axis.imshow(shares, "cividis", vmin=0, vmax=100)
        for i, j in np.ndindex(*matrix.shape):
            if shares[i, j] >= 0.5:
                color = "white" if shares[i, j] < 50 else "black"
                text = f"{shares[i, j]:.0f}"
                axis.text(j, i, text, color=color, ha="center", va="center", size=8)
        ticks = np.arange(len(names))
        axis.set_xticks(ticks, names, rotation=60, ha="right", rotation_mode="anchor")
        axis.set_yticks(ticks, names)
        axis.set(xlabel="predicted class", ylabel="true class")
        axis.set_title(title)
        return _to_svg(figure, title)


@contextlib.contextmanager
def _style() -> Iterator[None]:
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor")
    ticks = ("xtick.color", "ytick.color", "grid.color")
    style: dict[Any, Any] = {
        **dict.fromkeys((*inked, *ticks), INK),
        "svg.fonttype": "none",  # text stays text
        "text.parse_math": False,  # names are shown as they are
        "font.family": "sans-serif",
        "font.sans-serif": ["system-ui", "DejaVu Sans", "sans-serif"],
        "font.size": 9,
        "axes.titlesize": 10,
    }
    with matplotlib.rc_context(style):
        yield


def _to_svg(figure, description):
    """SVG without a header, as wide as there is room, with a name for those who
    cannot see it."""
    with matplotlib.rc_context({"svg.hashsalt": description}):  # ids of its own
        file = io.StringIO()
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2]
    opening = (
        f'<svg role="img" aria-label="{_escape(description)}" '
        f'viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    prefix = f"f{zlib.crc32(description.encode())}"
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'(href="#|url\(#)([^")]+)', rf"\1{prefix}-\2", body)
    return opening + body


def _escape(text):
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
