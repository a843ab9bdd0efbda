"""Tables and scores as Markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_keras.tasks import METRICS


def format_table(rows: Iterable[Sequence[Any]], columns: Sequence[str]) -> str:
    """A Markdown table.

    Args:
        rows: list of lists of cells; `None` makes an empty cell, a float is given
            four significant digits.
        columns: list of str.
    """

    def cell(value):
        if value is None:
            return ""
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def format_metrics(
    metrics: Mapping[str, float | None],
    constant_predictor: Mapping[str, float | None],
    per_class_iou: Mapping[str, float | None],
    instances: Mapping[str, Any] | None = None,
) -> str:
    """The metric table of a split, with the constant predictor and the classes.

    Args:
        metrics: `{task/metric: float}` of the network, `None` where it is absent.
        constant_predictor: the same of the constant predictor.
        per_class_iou: `{class name: IoU or None}`, may be empty.
        instances: optional, the scores of `instances.objects.ObjectScorer`.
    """
    shown = {key: row for key, row in METRICS.items() if key in metrics}
    scores = {"network": metrics, "constant predictor": constant_predictor}
    if instances:
        best = instances["upper_bound"]
        scores["true votes and classes, decoded"] = name_instance_metrics(best)
    rows: list[list[Any]] = [
        [name, *in_columns(values, shown)] for name, values in scores.items()
    ]
    table = format_table(rows, [""] + [row.header for row in shown.values()])
    if per_class_iou or instances:
        table += "\n\n" + _format_classes(per_class_iou, instances)
    return table


def in_columns(scores: Mapping[str, float | None], keys: Iterable[str]) -> list[Any]:
    """The cells of a row of scores: a number in the unit of its column, `"absent"`
    where no element of the split is valid, `None` where it was not scored."""
    return [
        _scale(scores[key], METRICS[key].factor) if key in scores else None
        for key in keys
    ]


def _format_classes(per_class_iou, instances):
    precisions = instances["classes"] if instances else {}
    columns = ["class"] + ["IoU %"] * bool(per_class_iou)
    columns += ["AP %", "AP50 %"] * bool(instances)
    rows = []
    for name in per_class_iou or precisions:
        row = [name]
        if per_class_iou:
            row.append(_percent(per_class_iou[name]))
        if name in precisions:  # stuff is not
            score = precisions[name] or {}
            row += [_percent(score.get(key)) for key in ("ap", "ap50")]
        rows.append(row + [None] * (len(columns) - len(row)))
    return format_table(rows, columns)


def name_instance_metrics(instances: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of `ObjectScorer` as metrics, `None` if there is no object."""
    return {f"instance/{key}": instances[key] for key in ("ap", "ap50")}


def _percent(value):
    return _scale(value, 100.0)


def _scale(value, factor):
    return "absent" if value is None else float(value * factor)


def format_score(score: Any) -> str:
    """`mean ± standard deviation`, to four digits of the mean.

    Args:
        score: has a `mean`, which is NaN if it is absent, and an `std`, which may be
            `None`.
    """
    if math.isnan(score.mean):
        return "absent"
    decimals = 3
    if score.mean and math.isfinite(score.mean):
        decimals = max(3 - math.floor(math.log10(abs(score.mean))), 0)
    text = f"{score.mean:.{decimals}f}"
    return text if score.std is None else f"{text} ± {score.std:.{decimals}f}"
