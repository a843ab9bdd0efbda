"""The report of a run: what its directory holds, as one page.

It is made from the files alone, so it can be made again at any time.
"""

import dataclasses
import pathlib
import sys

import numpy as np

from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import as_text, flag_of
from mtl_keras.experiments.options import (
    STARTING_OPTIONS,
    TrainOptions,
    read_options,
)
from mtl_keras.experiments.runs import (
    find_best,
    find_best_scores,
    read_history,
    read_json,
)
from mtl_keras.figures.charts import DASHES, Line, draw_confusion, draw_lines
from mtl_keras.figures.markdown import in_columns, name_instance_metrics
from mtl_keras.figures.report import Page, Picture, Section, Table, write_page
from mtl_keras.tasks import METRICS, TASKS

REPORT = "report.html"


def write_run_report(directory: pathlib.Path) -> None:
    """Writes `report.html` into the directory of a run; says so if it cannot, since the
    run itself is whole without."""
    try:
        write_page(_make_page(directory), directory / REPORT)
    except UserError as error:
        print(f"Note: there is no new report. {error}", file=sys.stderr)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        print(
            f"Note: there is no new report, since a file in {directory} does not hold "
            f"what it should ({error!r}); restore it, or evaluate or train again.",
            file=sys.stderr,
        )


def _make_page(directory):
    options = read_options(TrainOptions, directory / "options.json")
    history = read_history(directory)
    clock = read_history(directory, "epochs.csv")
    evaluated = _read_evaluation(directory, options)
    sections = [
        _show_scores(directory, options, evaluated),
        *_show_classes(evaluated),
        *(_show_frames(directory, options) if evaluated else ()),
        *_show_curves(history, clock, options),
        _show_options(options),
        *_show_timings(clock),
        *_show_environment(directory),
    ]
    return Page(f"Run {directory.name}", _summarize(options, history), sections)


def _summarize(options, history):
    data = options.data or {"scenes": "the rendered streets"}.get(
        options.dataset, options.dataset
    )
    return (
        f"{', '.join(options.tasks)} with {options.weighting} weights, recipe "
        f"{options.recipe}, on {data}; {len(history)} epochs."
    )


def _read_evaluation(directory, options):
    """What `evaluate.py` has found for the best checkpoint; empty if that is another
    one by now."""
    found = _read_json(directory / "metrics.json")
    best = find_best(directory, options.tasks)
    return found if found.get("epoch", -1) == best.get("epoch") else {}


def _read_json(path):
    return read_json(path) if path.exists() else {}


def _show_scores(directory, options, evaluated):
    constant = _read_json(directory / "constant_result.json")
    if evaluated:
        note = f"The best checkpoint on {evaluated['title']}."
        rows = [
            ("network", evaluated["metrics"]),
            ("constant predictor", evaluated["constant_predictor"]),
        ]
        if evaluated["instances"]:
            best = name_instance_metrics(evaluated["instances"]["upper_bound"])
            rows.append(("true votes and classes, decoded", best))
    else:
        best = find_best(directory, options.tasks)
        note = "On the split val, as training found them."
        if best:
            note += f" The best checkpoint is that of epoch {best['epoch'] + 1:.0f}."
        rows = [
            ("best checkpoint", find_best_scores(directory, options.tasks)),
            ("after the last step", _read_json(directory / "result.json")),
            ("constant predictor", constant),
        ]
    keys = [key for key in METRICS if any(key in scores for _, scores in rows)]
    cells = [[name, *in_columns(scores, keys)] for name, scores in rows if scores]
    columns = ["", *(METRICS[key].header for key in keys)]
    return Section("Scores", note, [Table("Scores", columns, cells)])


def _show_classes(evaluated):
    iou = evaluated.get("per_class_iou")
    if not iou:
        return
    objects = (evaluated.get("instances") or {}).get("classes", {})
    columns = ["class", "IoU %", *(["AP %", "AP50 %"] if objects else [])]
    rows = []
    for name, value in iou.items():
        row = [name, "absent" if value is None else 100 * value]
        if objects:
            # Stuff has none; a class without an object is absent.
            missing = "absent" if name in objects else None
            found = objects.get(name) or {}
            row += [100 * found[k] if k in found else missing for k in ("ap", "ap50")]
        rows.append(row)
    pictures = []
    if evaluated.get("confusion"):
        matrix = np.array(evaluated["confusion"])
        # What is predicted as an ignored class has no column.
        picture = draw_confusion(
            matrix[:, : len(matrix)],
            list(iou),
            "per cent of the pixels of each true class; below 0.5, and what is "
            "predicted as a class that is not evaluated, left out",
        )
        pictures = [Picture("Confusion matrix", picture, wide=True)]
    yield Section("Classes", "", [Table("Classes", columns, rows)], pictures)


def _show_frames(directory, options):
    pictures = []
    for task in options.tasks:
        path = directory / "figures" / f"frames_{task}.png"
        if path.exists():
            caption = f"{task}: the best, the median and the worst frame"
            pictures.append(Picture(caption, path.read_bytes(), wide=True))
    if pictures:
        note = "Frames of the split, ranked by the first metric of each task."
        yield Section("Frames", note, pictures=pictures)


def _show_curves(history, clock, options):
    if not history:
        return
    epochs = [row["epoch"] + 1 for row in history]
    charts = []
    for key in ["loss", *(f"{task}/loss" for task in options.tasks)]:
        task = key.partition("/")[0]
        color = "#888888" if key == "loss" else TASKS[task].color
        lines = [
            Line(name, epochs, [row[prefix + key] for row in history], color, style)
            for prefix, name, style in (
                ("", "training", "-"),
                ("val_", "validation", "--"),
            )
        ]
        title = "total loss (may be negative)" if key == "loss" else f"{task} loss"
        charts.append(draw_lines(title, lines, log=key != "loss"))
    for kind, title in (("sigma", "noise level sigma"), ("weight", "weight")):
        lines = _lines_of(history, [f"{task}/{kind}" for task in options.tasks])
        if lines:
            charts.append(draw_lines(f"{title} of each task", lines, log=True))
    for key in METRICS:
        if f"val_{key}" in history[0]:
            values = [row[f"val_{key}"] * METRICS[key].factor for row in history]
            color = TASKS[key.partition("/")[0]].color
            line = Line("validation", epochs, values, color)
            charts.append(draw_lines(f"{METRICS[key].header}, validation", [line]))
    if clock:
        numbers = [row["epoch"] + 1 for row in clock]
        rates = [row["learning_rate"] for row in clock]
        line = Line("learning rate", numbers, rates, "#888888")
        charts.append(draw_lines("learning rate at the end of the epoch", [line]))
    yield Section("Curves", pictures=[Picture("", chart) for chart in charts])


def _lines_of(history, keys):
    """A line for each column of a history that is there, by its task."""
    epochs = [row["epoch"] + 1 for row in history]
    return [
        Line(task, epochs, [row[key] for row in history], TASKS[task].color, style)
        for key, style in zip(keys, DASHES)
        if key in history[0]
        for task in [key.partition("/")[0]]
    ]


def _show_options(options):
    default, rows = TrainOptions(), []
    for field in dataclasses.fields(options):
        if field.name not in STARTING_OPTIONS:
            values = [getattr(one, field.name) for one in (options, default)]
            own, other = map(as_text, values)
            rows.append([flag_of(field.name), own, other if other != own else ""])
    table = Table("Options", ["option", "value", "default, where it differs"], rows)
    return Section("Options", "", [table])


def _show_timings(clock):
    if not clock:
        return
    columns = ["epoch", "training, s", "validation, s", "images per second"]
    rows = [
        [
            f"{row['epoch'] + 1:.0f}",
            row["train_seconds"],
            row["val_seconds"],
            row["images_per_second"],
        ]
        for row in clock
    ]
    total = sum(row["train_seconds"] + row["val_seconds"] for row in clock)
    note = f"{total / 60:.1f} minutes in all, without preparation and export."
    yield Section("Timings", note, [Table("Timings", columns, rows)])


def _show_environment(directory):
    found = _read_json(directory / "environment.json")
    if found:
        resumed = found.pop("resumed_with", [])
        rows = _show_values(found)
        for change in resumed:
            rows += [[f"then {key}", value] for key, value in _show_values(change)]
        table = Table("Environment", ["what", "found"], rows)
        yield Section("Environment", "", [table])


def _show_values(environment):
    """Rows of what `environment.describe` found, with a row for each package."""
    packages = environment.get("packages", {})
    values = {key: environment[key] for key in environment if key != "packages"}
    return [[key, as_text(value)] for key, value in (values | packages).items()]
