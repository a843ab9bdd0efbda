"""Figures of a table or a sweep: bars, curves over the weight, courses of sigma.

Each draws an `experiments.comparison.Comparison`.
"""

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mtl_keras.figures.curves import plain_log_ticks
from mtl_keras.figures.markdown import format_score
from mtl_keras.hints import PathLike
from mtl_keras.tasks import METRICS, TASKS

COLORS = {"fixed": "#88ccee", "learned": "#f0a070"}
OTHER_COLOR = "#b0b0b0"


def plot_bars(comparison: Any, path: PathLike) -> None:
    """Draws as bars what each row gains over the task alone, a panel for each metric.

    Without a run of the task alone it is the gain over the first row.
    """
    table = comparison.table
    keys = [key for key in table.rows if key in comparison.runs]
    figure = Figure(
        figsize=(1.6 + 3.6 * len(table.metrics), 1.8 + 0.3 * len(keys)),
        layout="constrained",
    )
    figure.suptitle(comparison.title, fontsize=10)
    axes = figure.subplots(1, len(table.metrics), sharey=True, squeeze=False)[0]
    places = np.arange(len(keys))[::-1]
    grid = {"color": "#dddddd", "lw": 0.6, "zorder": 0, "clip_on": False}
    for axis, metric in zip(axes, table.metrics):
        reference = _reference_row(comparison, keys, metric)
        sign = 1 if METRICS[metric].higher_is_better else -1
        for place, key in zip(places, keys):
            score = comparison.scores[key].get(metric)
            if score and reference:
                percent = 100 / comparison.scores[reference][metric].mean
                axis.barh(
                    place,
                    sign * (score.mean * percent - 100),
                    xerr=None if score.std is None else score.std * percent,
                    color=COLORS.get(table.rows[key]["weighting"], OTHER_COLOR),
                    error_kw={"elinewidth": 1, "capsize": 2},
                )
                axis.text(
                    1.02,
                    place,
                    format_score(score),
                    transform=axis.get_yaxis_transform(),
                    va="center",
                    fontsize=7,
                )
        axis.axvline(0, color="black", lw=0.8)
        axis.margins(x=0.08)
        axis.use_sticky_edges = False  # bars begin inside the panel
        axis.set_title(METRICS[metric].header, fontsize=9)
        if reference:
            axis.set_xlabel(f"% better than row {reference}", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="y", length=0)
        axis.hlines(places + 0.5, 0, 1.3, **grid, transform=axis.get_yaxis_transform())
        axis.set_yticks(places, keys)
        axis.spines[["top", "right", "left"]].set_visible(False)
    has_others = any(table.rows[key]["weighting"] not in COLORS for key in keys)
    figure.legend(
        handles=[Patch(color=COLORS[k], label=f"{k} weights") for k in COLORS]
        + [Patch(color=OTHER_COLOR, label="other weightings")] * has_others,
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    figure.savefig(path, dpi=130)


def plot_sweep(comparison: Any, path: PathLike) -> None:
    """Draws both metrics over the fixed weight, and the learned solution as a line."""
    table = comparison.table
    first = comparison.tasks[0]
    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    figure.suptitle(comparison.title, fontsize=10)
    for axis, metric in zip(figure.subplots(1, 2), table.metrics):
        color = TASKS[metric.split("/")[0]].color
        points = sorted(
            (float(key), scores[metric])
            for key, scores in comparison.scores.items()
            if key != "learned" and metric in scores
        )
        axis.errorbar(
            [weight for weight, _ in points],
            [score.mean for _, score in points],
            [score.std or 0 for _, score in points],
            fmt="o-",
            color=color,
            capsize=2,
            label="fixed weights (at the end: alone)",
        )
        learned = comparison.scores.get("learned", {}).get(metric)
        if learned:
            axis.axhline(learned.mean, color="black", ls="--", label="learned weights")
            axis.axhspan(
                learned.mean - (learned.std or 0),
                learned.mean + (learned.std or 0),
                color="black",
                alpha=0.12,
                lw=0,
            )
        arrow = "higher" if METRICS[metric].higher_is_better else "lower"
        axis.set_title(f"{METRICS[metric].header} ({arrow} is better)", fontsize=9)
        axis.set(xlabel=f"weight of {first}", xlim=(-0.04, 1.04))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def plot_trajectories(comparison: Any, path: PathLike) -> bool:
    """Draws the noise levels of the learned rows over the steps, a line per seed.

    Returns whether there was anything to draw.
    """
    tasks = comparison.tasks
    histories = {key: comparison.read_histories(key) for key in comparison.runs}
    learned = [
        key
        for key, runs in histories.items()
        if any(f"{task}/sigma" in row for row in runs[0][:1] for task in tasks)
    ]
    if not learned:
        return False
    colors = matplotlib.color_sequences["Dark2"]
    figure = Figure(figsize=(3.4 * len(tasks), 3.6), layout="constrained")
    figure.suptitle(comparison.title, fontsize=10)
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axis, task in zip(axes, tasks):
        for key, color in zip(learned, colors):
            label = key
            for history in histories[key]:
                if f"{task}/sigma" not in history[0]:
                    continue
                axis.plot(
                    [(row["epoch"] + 1) / len(history) for row in history],
                    [row[f"{task}/sigma"] for row in history],
                    color=color,
                    lw=1,
                    alpha=0.8,
                    label=label,
                )
                label = "_"  # in the legend once
        axis.set(title=f"noise level $\\sigma$ of {task}", yscale="log")
        axis.set_xlabel("share of the training")
        axis.grid(alpha=0.3, which="both")
        plain_log_ticks(axis)
    handles = {h.get_label(): h for axis in axes for h in axis.get_lines()}
    figure.legend(
        handles=[h for name, h in handles.items() if not name.startswith("_")],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    figure.savefig(path, dpi=130)
    return True


def _reference_row(comparison, keys, metric):
    """The task of a metric alone, or else the first row that has the metric; `None`
    if there is nothing to divide by."""
    having = [
        key
        for key in keys
        if metric in comparison.scores[key]
        and math.isfinite(comparison.scores[key][metric].mean)
        and comparison.scores[key][metric].mean
    ]
    alone = [key for key in having if len(comparison.table.rows[key]["tasks"]) == 1]
    return next(iter(alone + having), None)
