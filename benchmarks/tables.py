"""Markdown tables of measurements, and the files they are kept in."""

import json
import statistics


def make_table(header, rows, text_columns=1):
    """A Markdown table of strings; numbers, after the text, align to the right."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    lines = [header, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_spread(values, digits=3):
    """Median and quartiles, such as `2.71 [2.68, 2.8]`; a single value alone."""
    median = f"{statistics.median(values):.{digits}g}"
    if len(values) == 1:
        return median
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median} [{first:.{digits}g}, {third:.{digits}g}]"


def write_results(directory, name, text, result):
    """Writes `name.md` and `name.json` into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    (directory / f"{name}.json").write_text(
        json.dumps(result, indent=2) + "\n", encoding="utf-8"
    )
