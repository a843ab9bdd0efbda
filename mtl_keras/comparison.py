"""What the runs of a table or a sweep have come to, beside what was published."""

import csv
import dataclasses
import json
import pathlib
import re
import statistics
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mtl_keras.cli import TrainOptions, differing_options, read_options
from mtl_keras.errors import UserError
from mtl_keras.recipes import TABLES, Table
from mtl_keras.report import COLUMNS, TASK_COLORS, format_table, plain_log_ticks
from mtl_keras.runs import read_history
from mtl_keras.tables import find_published, list_runs, make_sweep

COLUMN_OF = {metric: (header, factor) for metric, header, factor in COLUMNS}
HIGHER_IS_BETTER = ("semantic/miou", "class/accuracy")
KIND_COLORS = {
    "one task": "#bbbbbb",
    "fixed weights": "#88ccee",
    "learned weights": "#f0a070",
}


# What the rows of a table or sweep may differ in, and the runs of a row.
OWN_OPTIONS = ("recipe", "output", "resume", "seed")
OWN_OPTIONS += ("tasks", "weighting", "task_weights", "likelihoods")


class Score(NamedTuple):
    """Mean and standard deviation (`None` of a single run) over the runs of a row."""

    mean: float
    std: float | None
    count: int


@dataclasses.dataclass
class Comparison:
    """A table or sweep as far as it is trained.

    `runs` holds by row and seed the run directories, `diverged` by row the number of
    runs that came to nothing, `scores` by row and metric the `Score` in the units of
    the columns; `constants` by metric what the constant predictor reaches,
    `published` by publication and row a value or `None` for each metric.
    """

    title: str
    table: Table
    options: TrainOptions
    runs: dict
    diverged: dict
    scores: dict
    constants: dict
    published: dict


def compare_runs(root, name="", pair=()):
    """Reads the finished runs of a table or a sweep.

    Args:
        root: directory of the runs.
        name: str, a key of `TABLES`, or empty for a sweep.
        pair: the two tasks of a sweep.

    Returns:
        A `Comparison`.

    Raises:
        UserError: if no run is finished, or if the runs were trained differently.
    """
    root = pathlib.Path(root)
    found = list_runs(root)
    if name:
        table = TABLES[name]
        order = list(table.rows)
    else:
        table = make_sweep(pair)
        weights = [key for key in found if re.fullmatch(r"[\d.]+", key)]
        order = sorted(weights, key=float, reverse=True) + ["learned"]
    runs, options = {}, None
    for key in order:
        for seed, directory in found.get(key, {}).items():
            trained = read_options(TrainOptions, directory / "options.json")
            if not _belongs(trained, key, name, pair):
                continue
            options = options or trained
            _check_alike(root, directory, options, trained)
            runs.setdefault(key, {})[seed] = directory
    if not runs:
        raise UserError(
            f"{root} holds no finished run of this {'table' if name else 'sweep'}; "
            "train some with train.py first."
        )
    title = f"Table {name}, {table.title}" if name else table.title
    return Comparison(
        title=f"{title}, {_describe_data(options)}",
        table=table,
        options=options,
        runs=runs,
        diverged={key: _count_diverged(root, key) for key in order},
        scores={key: _read_scores(seeds, table) for key, seeds in runs.items()},
        constants=_read_constants(runs, table),
        published=find_published(name, pair),
    )


def format_comparison(comparison):
    """The comparison as Markdown: ours, what was published, a constant predictor."""
    table, options = comparison.table, comparison.options
    headers = [_header(metric) for metric in table.metrics]
    tasks = _tasks(table)
    columns = ["row", f"weights of {' / '.join(tasks)}", "runs", *headers]
    columns += [f"{name}: {' / '.join(headers)}" for name in comparison.published]
    rows = []
    for key in _row_names(comparison):
        scores = comparison.scores.get(key, {})
        rows.append(
            [key, _describe_weights(comparison, key), _describe_count(comparison, key)]
            + [_format_score(comparison, metric, scores) for metric in table.metrics]
            + [
                " / ".join("–" if v is None else f"{v:g}" for v in source["rows"][key])
                if key in source["rows"]
                else ""
                for source in comparison.published.values()
            ]
        )
    constants = [comparison.constants.get(metric) for metric in table.metrics]
    rows.append(
        ["constant predictor", "", ""]
        + [f"{c:.4g}" if c is not None else "" for c in constants]
        + [""] * len(comparison.published)
    )
    counts = {len(seeds) for seeds in comparison.runs.values()}
    ours = "the score"
    if max(counts) > 1:
        ours = "mean ± standard deviation over runs with different seeds,"
    text = [
        f"**{comparison.title}**",
        format_table(rows, columns),
        f"Ours: {ours} after the last step, on the val split. Bold: the best of a "
        "column, and what is no more than one standard deviation (that of the two "
        f"rows, pooled) away from it. {_describe_training(options)}",
    ]
    if any(_uses_laplace(row) for row in table.rows.values()):
        text.append(
            "all-laplace is ours: as all, with the Laplace likelihood, that of an "
            "absolute error, in place of the published one for the other tasks than "
            f"{tasks[0]}."
        )
    text += [
        " ".join([f"{name}: {source['source']}.", source.get("note", "")]).strip()
        for name, source in comparison.published.items()
    ]
    return "\n\n".join(text) + "\n"


def write_csv(comparison, path):
    """Writes a line for every row and metric."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        sources = comparison.published
        writer.writerow(
            ["row", "metric", "mean", "std", "runs", "diverged"]
            + ["constant predictor", *sources]
        )
        for key in _row_names(comparison):
            for i, metric in enumerate(comparison.table.metrics):
                score = comparison.scores.get(key, {}).get(metric, Score("", "", 0))
                writer.writerow(
                    [key, _header(metric), *score, comparison.diverged.get(key, 0)]
                    + [comparison.constants.get(metric, "")]
                    + [
                        source["rows"].get(key, {i: ""})[i]
                        for source in sources.values()
                    ]
                )


def plot_bars(comparison, path):
    """Draws the rows as bars, a panel for each metric."""
    table = comparison.table
    keys = [key for key in table.rows if key in comparison.runs]
    figure = Figure(
        figsize=(1.6 + 3.2 * len(table.metrics), 1.6 + 0.3 * len(keys)),
        layout="constrained",
    )
    figure.suptitle(comparison.title, fontsize=10)
    axes = figure.subplots(1, len(table.metrics), sharey=True, squeeze=False)[0]
    places = np.arange(len(keys))[::-1]
    for axis, metric in zip(axes, table.metrics):
        for place, key in zip(places, keys):
            score = comparison.scores[key].get(metric)
            if score:
                axis.barh(
                    place,
                    score.mean,
                    xerr=score.std,
                    color=KIND_COLORS[_kind(table.rows[key])],
                    error_kw={"elinewidth": 1, "capsize": 2},
                )
                axis.text(0, place, f" {score.mean:.4g}", va="center", fontsize=7)
        arrow = "higher" if metric in HIGHER_IS_BETTER else "lower"
        axis.set_title(f"{_header(metric)}\n({arrow} is better)", fontsize=9)
        axis.set_yticks(places, keys)
        axis.spines[["top", "right"]].set_visible(False)
    kinds = {_kind(table.rows[key]): None for key in keys}
    figure.legend(
        handles=[Patch(color=KIND_COLORS[kind], label=kind) for kind in kinds],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    figure.savefig(path, dpi=130)


def plot_sweep(comparison, path):
    """Draws both metrics over the fixed weight, and the learned solution as a line."""
    table = comparison.table
    first = _tasks(table)[0]
    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    figure.suptitle(comparison.title, fontsize=10)
    for axis, metric in zip(figure.subplots(1, 2), table.metrics):
        color = TASK_COLORS[metric.split("/")[0]]
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
        arrow = "higher" if metric in HIGHER_IS_BETTER else "lower"
        axis.set_title(f"{_header(metric)} ({arrow} is better)", fontsize=9)
        axis.set_xlabel(f"weight of {first}")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def plot_trajectories(comparison, path):
    """Draws the noise levels of the learned rows over the steps, a line a seed.

    Returns whether there was anything to draw.
    """
    tasks = _tasks(comparison.table)
    learned = [
        key
        for key, seeds in comparison.runs.items()
        if any(
            f"{task}/sigma" in row
            for row in read_history(next(iter(seeds.values())))[:1]
            for task in tasks
        )
    ]
    if not learned:
        return False
    colors = matplotlib.colormaps["Dark2"].colors
    figure = Figure(figsize=(3.4 * len(tasks), 3.6), layout="constrained")
    figure.suptitle(comparison.title, fontsize=10)
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axis, task in zip(axes, tasks):
        for key, color in zip(learned, colors):
            label = key
            for directory in comparison.runs[key].values():
                history = read_history(directory)
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
                label = None
        axis.set(title=f"noise level $\\sigma$ of {task}", yscale="log")
        axis.set_xlabel("share of the training")
        axis.grid(alpha=0.3, which="both")
        plain_log_ticks(axis)
    handles = {h.get_label(): h for axis in axes for h in axis.get_lines()}
    handles = [h for name, h in handles.items() if not name.startswith("_")]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=130)
    return True


def _row_names(comparison):
    """The rows of a table, trained or not; those of a sweep that are trained or
    published, by their weight."""
    if "learned" not in comparison.table.rows:
        return [*comparison.table.rows]
    names = set(comparison.runs)
    for source in comparison.published.values():
        names |= set(source["rows"])
    return sorted(names - {"learned"}, key=float, reverse=True) + ["learned"]


def _belongs(options, key, name, pair):
    """Whether a run is of this table or sweep: names of rows occur in several."""
    if name:
        return options.recipe == f"{name}/{key}"
    return set(options.tasks) <= set(pair)


def _check_alike(root, directory, first, options):
    differing = differing_options(first, options, ignored=OWN_OPTIONS)
    if differing:
        changes = ", ".join(
            f"{flag} {new} in {directory.name} and {old} in others"
            for flag, (old, new) in differing.items()
        )
        raise UserError(
            f"The runs in {root} were trained differently ({changes}), which makes no "
            "comparison; move those of one kind to another directory."
        )


def _count_diverged(root, key):
    return len(list(root.glob(f"{key}-seed*/diverged.txt")))


def _read_scores(seeds, table):
    """`{metric: Score}` of the runs of a row."""
    results = [
        json.loads((path / "result.json").read_text()) for path in seeds.values()
    ]
    scores = {}
    for metric in table.metrics:
        values = [
            result[metric] * COLUMN_OF[metric][1]
            for result in results
            if metric in result
        ]
        if values:
            std = statistics.stdev(values) if len(values) > 1 else None
            scores[metric] = Score(statistics.mean(values), std, len(values))
    return scores


def _read_constants(runs, table):
    """What the constant predictor of the runs reaches, `{metric: float}`."""
    found = {}
    for seeds in runs.values():
        for directory in seeds.values():
            path = directory / "constant_result.json"
            found |= json.loads(path.read_text()) if path.exists() else {}
    return {m: found[m] * COLUMN_OF[m][1] for m in table.metrics if m in found}


def _is_near_best(comparison, metric, score):
    scores = [row[metric] for row in comparison.scores.values() if metric in row]
    pick = max if metric in HIGHER_IS_BETTER else min
    best = pick(scores, key=lambda s: s.mean)
    squares = sum((s.count - 1) * (s.std or 0) ** 2 for s in (best, score))
    pooled = (squares / max(best.count + score.count - 2, 1)) ** 0.5
    return abs(score.mean - best.mean) <= pooled


def _format_score(comparison, metric, scores):
    if metric not in scores:
        return ""
    score = scores[metric]
    text = f"{score.mean:.4g}"
    if score.std is not None:
        text += f" ± {score.std:.2g}"
    return f"**{text}**" if _is_near_best(comparison, metric, score) else text


def _describe_count(comparison, key):
    text = str(len(comparison.runs.get(key, ())) or "")
    diverged = comparison.diverged.get(key)
    return f"{text} ({diverged} diverged)".strip() if diverged else text


def _describe_weights(comparison, key):
    if key in comparison.table.rows:
        row = comparison.table.rows[key]
    else:
        directory = next(iter(comparison.runs[key].values()))
        row = vars(read_options(TrainOptions, directory / "options.json"))
    weights = row.get("task_weights") or dict.fromkeys(row["tasks"], "learned")
    cells = [weights.get(task, "–") for task in _tasks(comparison.table)]
    return " / ".join(c if isinstance(c, str) else f"{c:.3g}" for c in cells)


def _describe_data(options):
    if options.dataset != "scenes":
        names = {"fashion_mnist": "Fashion-MNIST", "digits": "scikit-learn's digits"}
        text = f"on {names[options.dataset]}"
        if options.dataset == "digits":
            text += " (not Fashion-MNIST)"
        return text
    if options.data:
        return "on Cityscapes"
    return "on rendered streets (not Cityscapes)"


def _uses_laplace(row):
    return "laplace" in row.get("likelihoods", {}).values()


def _describe_training(options):
    images = f"{options.train_frames or 'all'} training images"
    network = ""
    if options.dataset == "scenes":
        images += " of {}x{} pixels".format(*options.image_size)
        start = "ImageNet" if options.pretrained else "random"
        network = (
            f"the network {options.architecture} with the backbone {options.backbone} "
            f"and {start} weights at the start; "
        )
    length = f"{options.steps} steps" if options.steps else f"{options.epochs} epochs"
    return (
        f"All rows alike: {images}; {network}{length}, batches of "
        f"{options.batch_size}, {options.optimizer}, learning rate "
        f"{options.learning_rate:g}, {options.schedule}."
    )


def _kind(row):
    if row["weighting"] == "learned":
        return "learned weights"
    return "one task" if len(row["tasks"]) == 1 else "fixed weights"


def _tasks(table):
    return tuple(metric.split("/")[0] for metric in table.metrics)


def _header(metric):
    return COLUMN_OF[metric][0]
