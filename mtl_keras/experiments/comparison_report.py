"""Several runs on one page: scores, courses of the sigmas, settings that differ."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import as_text, flag_of
from mtl_keras.experiments.comparison import (
    Score,
    find_split,
    is_near_best,
    read_scores,
)
from mtl_keras.experiments.options import (
    STARTING_OPTIONS,
    TrainOptions,
    differing_options,
    read_options,
)
from mtl_keras.experiments.runs import read_history
from mtl_keras.figures.charts import COLORS, DASHES, Line, draw_lines
from mtl_keras.figures.markdown import format_score
from mtl_keras.figures.report import Page, Picture, Section, Table, write_page
from mtl_keras.hints import PathLike
from mtl_keras.tasks import METRICS, TASKS

# What the scores of two runs are on.
DATA_OPTIONS = ("dataset", "data", "image_size", "label_set")


def group_runs(
    directories: Sequence[PathLike],
) -> dict[str, list[pathlib.Path]]:
    """Finished runs by name; those that are called `NAME-seedN` share a group.

    Raises:
        UserError: if a directory holds no finished run, is named twice, or has the
            name of another one.
    """
    groups: dict[str, list[pathlib.Path]] = {}
    seen: dict[str, pathlib.Path] = {}
    for name in directories:
        path = pathlib.Path(name)
        if not (path / "result.json").is_file():
            raise UserError(
                f"{path} holds no finished run; train it to its end or leave it out."
            )
        own = path.resolve().name
        other = seen.setdefault(own, path)
        if other is not path:
            raise UserError(
                f"{other} and {path} have the same name; rename one of them, "
                "or leave it out."
            )
        groups.setdefault(re.sub(r"-seed\d+$", "", own), []).append(path)
    return groups


def write_comparison_report(
    groups: Mapping[str, Sequence[pathlib.Path]], title: str, path: PathLike
) -> str:
    """Writes a page that compares groups of runs.

    Args:
        groups: directories of finished runs by name; those of a group count as one run
            with several seeds.
        title: str, of the page.
        path: the file.

    Returns:
        What a reader of the scores has to know, `""` if the runs are on the same data.

    Raises:
        UserError: if runs of a group differ in more than their seed, if a file of a
            run is damaged, or if the page is there and is not a report.
    """
    options = {
        directory: read_options(TrainOptions, directory / "options.json")
        for directories in groups.values()
        for directory in directories
    }
    for name, directories in groups.items():
        _check_alike(name, directories, options)
    warning = _warn(options)
    sections = [
        _show_scores(groups, warning),
        *_show_courses(groups),
        _show_settings(groups, options),
    ]
    count = f"Runs: {len(options)}, rows: {len(groups)}."
    write_page(Page(title, f"{count} {warning}".strip(), sections), path)
    return warning


def _check_alike(name, directories, options):
    first, *others = directories
    seeds = [options[directory].seed for directory in directories]
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"{', '.join(map(str, directories))} are all called {name}, but two of "
            "them have the same seed, so they are no repetitions; leave one out."
        )
    for other in others:
        differing = differing_options(
            options[first], options[other], ("seed", "recipe", *STARTING_OPTIONS)
        )
        if differing:
            raise UserError(
                f"{first} and {other} are both called {name}, which stands for runs "
                f"that differ in their seed alone, but they differ in "
                f"{', '.join(differing)}; rename one of them."
            )


def _warn(options):
    def value_of(one, name):
        is_place = name == "data" and one.data
        return pathlib.Path(one.data).resolve() if is_place else getattr(one, name)

    differing = [
        flag_of(name)
        for name in DATA_OPTIONS
        if len({value_of(one, name) for one in options.values()}) > 1
    ]
    if not differing:
        return ""
    return (
        f"These runs differ in {', '.join(differing)}: their scores are not of the "
        "same task, so none is set off."
    )


def _show_scores(groups, warning):
    split = find_split(path for paths in groups.values() for path in paths)
    scores = {
        name: read_scores(paths, METRICS, split) for name, paths in groups.items()
    }
    keys = [key for key in METRICS if any(key in row for row in scores.values())]
    rows, best = [], set()
    for i, (name, found) in enumerate(scores.items()):
        rows.append([name, str(len(groups[name]))])
        for j, key in enumerate(keys):
            rows[-1].append(_format(found.get(key)))
            is_best = key in found and is_near_best(scores.values(), key, found[key])
            if is_best and not warning and len(groups) > 1:
                best.add((i, j + 2))
    columns = ["run", "seeds", *(METRICS[key].header for key in keys)]
    note = (
        f"After the last step, on the split {split}; mean ± standard deviation over "
        "seeds. Bold and underlined: the best of a column, and what is no more than "
        "one pooled standard deviation away from it."
    )
    table = Table("Scores", columns, rows, frozenset(best), scores=True)
    return Section("Scores", note, [table])


def _format(score: Score | None):
    return None if score is None else format_score(score)


def _show_courses(groups):
    pictures = []
    for task in TASKS:
        lines = []
        for k, (name, directories) in enumerate(groups.items()):
            for directory in directories:
                history = read_history(directory)
                if history and f"{task}/sigma" in history[0]:
                    x = [(row["epoch"] + 1) / len(history) for row in history]
                    y = [row[f"{task}/sigma"] for row in history]
                    color, dash = COLORS[k % len(COLORS)], DASHES[k % len(DASHES)]
                    lines.append(Line(name, x, y, color, dash))
        if lines:
            title = f"noise level sigma of {task}"
            chart = draw_lines(title, lines, "share of the training", log=True)
            pictures.append(Picture("", chart))
    if pictures:
        note = "A line for every run; those of a row look alike."
        yield Section("Courses of sigma", note, pictures=pictures)


def _show_settings(groups, options):
    rows = []
    for field in dataclasses.fields(TrainOptions):
        if field.name in (*STARTING_OPTIONS, "seed"):
            continue
        values = {
            name: [as_text(getattr(options[path], field.name)) for path in paths]
            for name, paths in groups.items()
        }
        if len({value for found in values.values() for value in found}) > 1:
            cells = [", ".join(dict.fromkeys(found)) for found in values.values()]
            rows.append([flag_of(field.name), *cells])
    if not rows:
        return Section("Settings", "All options are alike, but for the seed.")
    return Section(
        "Settings", "", [Table("Settings that differ", ["option", *groups], rows)]
    )
