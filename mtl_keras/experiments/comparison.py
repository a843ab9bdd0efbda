"""What the runs of a table or a sweep have come to, beside what was published."""

import collections
import csv
import dataclasses
import math
import pathlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mtl_keras.errors import UserError
from mtl_keras.experiments.options import (
    STARTING_OPTIONS,
    TrainOptions,
    differing_options,
    read_options,
)
from mtl_keras.experiments.recipes import RECIPES, TABLES, Table
from mtl_keras.experiments.runs import RESULTS, read_history, read_result
from mtl_keras.experiments.tables import find_published, list_runs, make_sweep
from mtl_keras.figures.markdown import format_score, format_table
from mtl_keras.hints import PathLike
from mtl_keras.tasks import METRICS

# What the rows of a table may differ in, and the runs of a row.
ROW_OPTIONS = (
    "tasks",
    "weighting",
    "task_weights",
    "likelihoods",
    "priorities",
    "temperature",
)
RUN_OPTIONS = ("recipe", "seed", *STARTING_OPTIONS)


class Score(NamedTuple):
    """Mean and standard deviation (`None` of a single run) over the runs of a row."""

    mean: float
    std: float | None
    num_runs: int


@dataclasses.dataclass
class Comparison:
    """A table or sweep as far as it is trained.

    `runs` holds by row and seed the run directories, `split` is what they are scored
    on, `diverged` by row the number of runs that came to nothing, `scores` by row and
    metric the `Score` in the units of the columns; `constants` by metric what the
    constant predictor reaches, `published` by publication and row a value or `None`
    for each metric.
    """

    title: str
    table: Table
    options: TrainOptions
    runs: dict
    split: str
    diverged: dict
    scores: dict
    constants: dict
    published: dict

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order of the columns."""
        tasks = (metric.split("/")[0] for metric in self.table.metrics)
        return tuple(dict.fromkeys(tasks))

    def read_histories(self, key: str) -> list[list[dict[str, float]]]:
        """The histories of the runs of a row, a list of rows each."""
        return [read_history(directory) for directory in self.runs[key].values()]


def compare_runs(
    root: PathLike, name: str = "", pair: Sequence[str] = ()
) -> Comparison:
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
    found, diverged = list_runs(root), _count_diverged(root)
    if name:
        table = TABLES[name]
        order = list(table.rows)
    else:
        table = make_sweep(pair)
        weights = {key for key in {**found, **diverged} if re.fullmatch(r"[\d.]+", key)}
        order = sorted(weights, key=float, reverse=True) + ["learned"]
    runs: dict[str, dict[str, pathlib.Path]] = {}
    options: TrainOptions | None = None
    for key in order:
        for seed, directory in found.get(key, {}).items():
            trained = read_options(TrainOptions, directory / "options.json")
            if not _belongs(trained, key, name, pair):
                continue
            options = options or trained
            if name:
                _check_row(directory, trained, name, key)
            _check_alike(root, directory, options, trained, name)
            runs.setdefault(key, {})[seed] = directory
    if options is None:
        raise UserError(
            f"{root} holds no finished run of this {'table' if name else 'sweep'}; "
            "train some with train.py first."
        )
    title = f"Table {name}, {table.title}" if name else table.title
    split = find_split(path for seeds in runs.values() for path in seeds.values())
    return Comparison(
        title=f"{title}, {_describe_data(options)}, {_describe_length(options)}",
        table=table,
        options=options,
        runs=runs,
        split=split,
        diverged={key: diverged[key] for key in order if key in diverged},
        scores={
            key: read_scores([*seeds.values()], table.metrics, split)
            for key, seeds in runs.items()
        },
        constants=_read_constants(runs, table, split),
        published=find_published(name, pair),
    )


def format_comparison(comparison: Comparison) -> str:
    """The comparison as Markdown: ours, what was published, a constant predictor."""
    table, options = comparison.table, comparison.options
    headers = [METRICS[metric].header for metric in table.metrics]
    tasks = comparison.tasks
    columns = ["row", f"weights of {' / '.join(tasks)}", "runs", *headers]
    columns += [f"{name}: {' / '.join(headers)}" for name in comparison.published]
    rows = []
    for key in _row_names(comparison):
        scores = comparison.scores.get(key, {})
        rows.append(
            [key, _describe_weights(comparison, key), _describe_count(comparison, key)]
            + [_format_cell(comparison, metric, scores) for metric in table.metrics]
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
        + ["" if c is None else format_score(Score(c, None, 1)) for c in constants]
        + [""] * len(comparison.published)
    )
    counts = {len(seeds) for seeds in comparison.runs.values()}
    ours = "the score"
    if max(counts) > 1:
        ours = "mean ± standard deviation over runs with different seeds,"
    text = [
        f"**{comparison.title}**",
        format_table(rows, columns),
        f"Ours: {ours} after the last step, on the {comparison.split} split. Bold: the "
        "best of a column, and what is no more than one standard deviation (that of "
        f"the two rows, pooled) away from it. {_describe_training(options)}",
    ]
    if any(_uses_laplace(row) for row in table.rows.values()):
        text.append(
            "all-laplace has no published figures: as all, with the Laplace "
            "likelihood, that of an absolute error (the paper, after equation 5; "
            f"Oxford's report), for the other tasks than {tasks[0]}."
        )
    text += [
        " ".join([f"{name}: {source['source']}.", source.get("note", "")]).strip()
        for name, source in comparison.published.items()
    ]
    return "\n\n".join(text) + "\n"


def write_csv(comparison: Comparison, path: PathLike) -> None:
    """Writes a line for every row and metric."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        sources = comparison.published
        writer.writerow(
            ["row", "metric", "mean", "std", "runs", "diverged"]
            + ["constant predictor", *sources]
        )
        for key in _row_names(comparison):
            for i, metric in enumerate(comparison.table.metrics):
                score = comparison.scores.get(key, {}).get(metric, ("", "", 0))
                writer.writerow(
                    [key, METRICS[metric].header, *score]
                    + [comparison.diverged.get(key, 0)]
                    + [comparison.constants.get(metric, "")]
                    + [
                        source["rows"].get(key, {i: ""})[i]
                        for source in sources.values()
                    ]
                )


def _row_names(comparison):
    """The rows of a table, trained or not; those of a sweep that are trained or
    published, by their weight."""
    if "learned" not in comparison.table.rows:
        return [*comparison.table.rows]
    names = {*comparison.runs, *comparison.diverged}
    for source in comparison.published.values():
        names |= set(source["rows"])
    return sorted(names - {"learned"}, key=float, reverse=True) + ["learned"]


def _belongs(options, key, name, pair):
    """Whether a run is of this table or sweep: names of rows occur in several."""
    if name:
        return options.recipe == f"{name}/{key}"
    return set(options.tasks) <= set(pair)


def _check_row(directory, options, name, key):
    row = {**RECIPES[TABLES[name].recipe], **TABLES[name].rows[key]}
    for option in ROW_OPTIONS:
        if option in row and getattr(options, option) != row[option]:
            raise UserError(
                f"{directory} was trained with other "
                f"--{option.replace('_', '-')} than the row {key} of table {name} has; "
                "move it to another directory."
            )


def _check_alike(root, directory, first, options, name):
    # The likelihoods of a sweep belong to all of its rows.
    own = ROW_OPTIONS if name else set(ROW_OPTIONS) - {"likelihoods"}
    differing = differing_options(first, options, ignored={*RUN_OPTIONS, *own})
    if differing:
        changes = ", ".join(
            f"{flag} {new} in {directory.name} and {old} in others"
            for flag, (old, new) in differing.items()
        )
        raise UserError(
            f"The runs in {root} were trained differently ({changes}), which makes no "
            "comparison; move those of one kind to another directory."
        )


def _count_diverged(root):
    """The runs that came to nothing, by row."""
    paths = root.glob("[!.]*-seed*/diverged.txt")
    return collections.Counter(
        path.parent.name.rpartition("-seed")[0] for path in paths
    )


def find_split(directories: Iterable[pathlib.Path]) -> str:
    """The split to compare finished runs on: `"test"`, on which nothing was chosen, if
    each has scores on it, or else `"val"`."""
    has_test = all((path / RESULTS["test"]).exists() for path in directories)
    return "test" if has_test else "val"


def read_scores(
    directories: Sequence[pathlib.Path], metrics: Iterable[str], split: str
) -> dict[str, Score]:
    """`{metric: Score}` on a split of finished runs that differ in their seed, in the
    units of the columns."""
    results = [read_result(path / RESULTS[split]) for path in directories]
    scores = {}
    for metric in metrics:
        found = [result[metric] for result in results if metric in result]
        values = [
            math.nan if value is None else value * METRICS[metric].factor
            for value in found
        ]
        if values:
            std = statistics.stdev(values) if len(values) > 1 else None
            scores[metric] = Score(statistics.mean(values), std, len(values))
    return scores


def _read_constants(runs, table, split):
    """What the constant predictor of the runs reaches, `{metric: float}`."""
    found = {}
    for seeds in runs.values():
        for directory in seeds.values():
            path = directory / f"constant_{RESULTS[split]}"
            found |= read_result(path) if path.exists() else {}
    return {
        metric: found[metric] * METRICS[metric].factor
        for metric in table.metrics
        if found.get(metric) is not None
    }


def is_near_best(
    all_scores: Iterable[Mapping[str, Score]], metric: str, score: Score
) -> bool:
    """Whether a score is the best of a column, or no more than one standard deviation
    (that of the two rows, pooled) away from it."""
    scores = [row[metric] for row in all_scores if metric in row]
    scores = [score for score in scores if math.isfinite(score.mean)]
    if not math.isfinite(score.mean):
        return False
    pick = max if METRICS[metric].higher_is_better else min
    best = pick(scores, key=lambda s: s.mean)
    squares = sum((s.num_runs - 1) * (s.std or 0) ** 2 for s in (best, score))
    pooled = (squares / max(best.num_runs + score.num_runs - 2, 1)) ** 0.5
    return abs(score.mean - best.mean) <= pooled


def _format_cell(comparison, metric, scores):
    if metric not in scores:
        return ""
    score = scores[metric]
    text = format_score(score)
    return (
        f"**{text}**"
        if is_near_best(comparison.scores.values(), metric, score)
        else text
    )


def _describe_count(comparison, key):
    text = str(len(comparison.runs.get(key, ())) or "")
    diverged = comparison.diverged.get(key)
    return f"{text} ({diverged} diverged)".strip() if diverged else text


def _describe_weights(comparison, key):
    tasks = comparison.tasks
    if key in comparison.table.rows:
        row = comparison.table.rows[key]
        weights = row["task_weights"] or dict.fromkeys(row["tasks"], row["weighting"])
        for task, priority in row.get("priorities", {}).items():
            weights = {**weights, task: f"{weights[task]} x {priority:g}"}
    else:  # of a sweep with points of its own
        weights = dict(zip(tasks, (float(key), 1 - float(key))))
    cells = [weights.get(task, "–") for task in tasks]
    return " / ".join(c if isinstance(c, str) else f"{c:.3g}" for c in cells)


def _describe_data(options):
    count = f"{options.train_frames} of " if options.train_frames else ""
    if options.dataset == "fashion_mnist":
        return f"on {count}Fashion-MNIST"
    if options.dataset == "digits":
        return f"on {count}scikit-learn's digits (not Fashion-MNIST)"
    if options.data:
        return f"on {count}Cityscapes"
    return f"on {count}the rendered streets (not Cityscapes)"


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
    return (
        f"All rows alike: {images}; {network}{_describe_length(options)}, batches of "
        f"{options.batch_size}, {options.optimizer}, learning rate "
        f"{options.learning_rate:g}, {options.schedule}."
    )


def _describe_length(options):
    return f"{options.steps} steps" if options.steps else f"{options.epochs} epochs"
