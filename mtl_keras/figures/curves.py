"""Curves of a training: losses, noise levels and weights."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtl_keras.hints import PathLike
from mtl_keras.tasks import TASKS


def plot_losses(
    history: Sequence[Mapping[str, float]], tasks: Sequence[str], path: PathLike
) -> None:
    """Draws total and task losses over the epochs, training and validation."""
    figure = Figure(figsize=(3.6 * (len(tasks) + 1), 3.2), layout="constrained")
    axes = figure.subplots(1, len(tasks) + 1, squeeze=False)[0]
    epochs = [row["epoch"] + 1 for row in history]
    for axis, key in zip(axes, ["loss"] + [f"{task}/loss" for task in tasks]):
        task = key.split("/")[0]
        color = "black" if key == "loss" else TASKS[task].color
        for prefix, style in (("", "-"), ("val_", "--")):
            values = [row[prefix + key] for row in history]
            name = "validation" if prefix else "training"
            axis.plot(epochs, values, style, color=color, label=name)
        axis.set_title("total (may be negative)" if key == "loss" else f"{task} loss")
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        if key != "loss":
            axis.set_yscale("log")
            plain_log_ticks(axis)
    figure.savefig(path, dpi=120)


def plot_weights(
    history: Sequence[Mapping[str, float]], tasks: Sequence[str], path: PathLike
) -> bool:
    """Draws the noise levels, if there are any, and the effective loss weights over
    the epochs.

    Returns whether there was anything to draw: fixed weights do not move.
    """
    titles = {"sigma": "noise level $\\sigma$", "weight": "weight of the loss"}
    titles = {
        key: title
        for key, title in titles.items()
        if history and f"{tasks[0]}/{key}" in history[0]
    }
    if not titles:
        return False
    figure = Figure(figsize=(4.25 * len(titles), 3.4), layout="constrained")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    epochs = [row["epoch"] + 1 for row in history]
    for axis, (key, title) in zip(axes, titles.items()):
        for task in tasks:
            values = [row[f"{task}/{key}"] for row in history]
            axis.plot(epochs, values, color=TASKS[task].color, label=task)
        axis.set(title=title, xlabel="epoch", yscale="log")
        plain_log_ticks(axis)
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    return True


def plain_log_ticks(axis: Axes) -> None:
    """Labels a logarithmic axis with plain numbers, such as 0.5 and 20."""
    formatter = matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_major_formatter(formatter)
    axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    low, high = axis.get_ylim()
    if high / low < 4:
        axis.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    elif high / low < 30:
        axis.yaxis.set_major_locator(
            matplotlib.ticker.LogLocator(subs=(1, 2, 5), numticks=12)
        )
