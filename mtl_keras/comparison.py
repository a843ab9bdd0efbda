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

from mtl_keras.cli import TrainOptions, read_options
from mtl_keras.errors import UserError
from mtl_keras.metrics import SplitScore
from mtl_keras.problems import open_problem
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


class Score(NamedTuple):
    """Mean and standard deviation over seeds (0 for a single one)."""

    mean: float
    std: float


@dataclasses.dataclass
class Comparison:
    """A table or sweep as far as it is trained.

    `runs` holds by row and seed the run directories, `scores` by row and metric
    the `Score` in the units of the columns; `constants` by metric what the constant
    predictor reaches, `published` by publication and row a value or `None` for each
    metric.
    """

    title: str
    table: Table
    options: TrainOptions
    runs: dict
    scores: dict
    constants: dict
    published: dict


def compare_runs(root, name="", pair=(), data=""):
    """Reads the finished runs of a table or a sweep.

    Args:
        root: directory of the runs.
        name: str, a key of `TABLES`, or empty for a sweep.
        pair: the two tasks of a sweep.
        data: optional Cityscapes tree for the constant predictor, if it has moved.

    Returns:
        A `Comparison`.

    Raises:
        UserError: if no run is finished.
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
    runs = {
        key: found[key]
        for key in order
        if key in found and _belongs(found[key], key, name, pair)
    }
    if not runs:
        raise UserError(
            f"{root} holds no finished run of this {'table' if name else 'sweep'}; "
            "train some with train.py first."
        )
    options = read_options(
        TrainOptions, max(_all(runs), key=_count_tasks) / "options.json"
    )
    title = f"Table {name}, {table.title}" if name else table.title
    return Comparison(
        title=f"{title}, {_describe_data(options)}",
        table=table,
        options=options,
        runs=runs,
        scores={key: _read_scores(seeds, table) for key, seeds in runs.items()},
        constants=_score_constant_predictor(runs, table, data),
        published=find_published(name, pair),
    )


def format_comparison(comparison):
    """The comparison as Markdown: ours, what was published, a constant predictor."""
    table, options = comparison.table, comparison.options
    headers = [_header(metric) for metric in table.metrics]
    tasks = _tasks(table)
    columns = ["row", " / ".join(tasks), *headers]
    columns += [f"{name}: {' / '.join(headers)}" for name in comparison.published]
    rows = []
    for key in _row_names(comparison):
        scores = comparison.scores.get(key, {})
        rows.append(
            [key, _describe_weights(comparison, key)]
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
        ["constant predictor", ""]
        + [f"{c:.4g}" if c is not None else "" for c in constants]
    )
    seeds = sorted({len(seeds) for seeds in comparison.runs.values()})
    text = [
        f"**{comparison.title}**",
        format_table(rows, columns),
        f"Ours: mean ± standard deviation of {' to '.join(map(str, seeds))} seeds "
        f"after the last step, on the val split; {_describe_training(options)}. Bold: "
        "no more than one standard deviation from the best (that of the two rows "
        "pooled).",
    ]
    text += [f"{name}: {s['source']}." for name, s in comparison.published.items()]
    return "\n\n".join(text) + "\n"


def write_csv(comparison, path):
    """Writes a line for every row and metric."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        sources = comparison.published
        writer.writerow(
            ["row", "metric", "mean", "std", "seeds", "constant predictor", *sources]
        )
        for key in _row_names(comparison):
            for i, metric in enumerate(comparison.table.metrics):
                score = comparison.scores.get(key, {}).get(metric, ("", ""))
                writer.writerow(
                    [key, _header(metric), *score]
                    + [len(comparison.runs.get(key, ()))]
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
                    xerr=score.std or None,
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
            [score.std for _, score in points],
            fmt="o-",
            color=color,
            capsize=2,
            label="fixed weights (at the end: alone)",
        )
        learned = comparison.scores.get("learned", {}).get(metric)
        if learned:
            axis.axhline(learned.mean, color="black", ls="--", label="learned weights")
            axis.axhspan(
                learned.mean - learned.std,
                learned.mean + learned.std,
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
    """All rows, trained or not; those of a sweep by their weight."""
    names = [*(comparison.table.rows | comparison.runs)]
    if "learned" in names:
        names.remove("learned")
        names = sorted(names, key=float, reverse=True) + ["learned"]
    return names


def _all(runs):
    return [directory for seeds in runs.values() for directory in seeds.values()]


def _count_tasks(directory):
    return len(read_options(TrainOptions, directory / "options.json").tasks)


def _belongs(seeds, key, name, pair):
    """Whether the runs of a row are of this table or sweep: names occur in several."""
    options = [read_options(TrainOptions, d / "options.json") for d in seeds.values()]
    if name:
        return all(each.recipe == f"{name}/{key}" for each in options)
    return all(set(each.tasks) <= set(pair) for each in options)


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
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            scores[metric] = Score(statistics.mean(values), std)
    return scores


def _score_constant_predictor(runs, table, data):
    """What the constant predictor of the runs reaches, `{metric: float}`."""
    found = {}
    for directory in sorted(_all(runs), key=_count_tasks, reverse=True):
        options = read_options(TrainOptions, directory / "options.json")
        if set(_tasks(table)) <= set(task.split("/")[0] for task in found):
            break
        path = directory / "constant_result.json"
        if not path.exists():
            problem = open_problem(options, data)
            values = json.loads((directory / "constant.json").read_text())
            predictor = problem.load_constant_predictor(values)
            score = SplitScore(problem.make_metrics())
            for _, targets, masks in problem.make_batches("val", 16):
                score.update(targets, predictor.predict(targets), masks)
            path.write_text(json.dumps(score.results(), indent=2) + "\n")
        found |= json.loads(path.read_text())
    return {m: found[m] * COLUMN_OF[m][1] for m in table.metrics if m in found}


def _is_near_best(comparison, metric, score):
    scores = [row[metric] for row in comparison.scores.values() if metric in row]
    pick = max if metric in HIGHER_IS_BETTER else min
    best = pick(scores, key=lambda s: s.mean)
    pooled = ((best.std**2 + score.std**2) / 2) ** 0.5
    return abs(score.mean - best.mean) <= pooled


def _format_score(comparison, metric, scores):
    if metric not in scores:
        return ""
    score = scores[metric]
    text = f"{score.mean:.4g} ± {score.std:.2g}" if score.std else f"{score.mean:.4g}"
    return f"**{text}**" if _is_near_best(comparison, metric, score) else text


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


def _describe_training(options):
    frames = (
        f"{options.train_frames} training images"
        if options.train_frames
        else "all training images"
    )
    if options.dataset == "scenes":
        frames += ", {}x{} pixels, {}".format(*options.image_size, options.backbone)
    length = f"{options.steps} steps" if options.steps else f"{options.epochs} epochs"
    return f"{frames}, {length} of {options.batch_size}"


def _kind(row):
    if row["weighting"] == "learned":
        return "learned weights"
    return "one task" if len(row["tasks"]) == 1 else "fixed weights"


def _tasks(table):
    return tuple(metric.split("/")[0] for metric in table.metrics)


def _header(metric):
    return COLUMN_OF[metric][0]
