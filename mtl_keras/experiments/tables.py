"""Tables and sweeps: the runs they consist of, and what has come of them.

A table is a directory with a run directory for every row and seed, `ROW-seedN`.
"""

import importlib.resources
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import parse_given
from mtl_keras.experiments.options import SeriesOptions, TrainOptions, override
from mtl_keras.experiments.recipes import (
    DATASETS,
    RECIPES,
    TABLES,
    Table,
    fixed_row,
    learned_row,
)
from mtl_keras.tasks import TASKS, main_metric, tasks_of


def plan_runs(argv: Sequence[str] | None = None) -> list[TrainOptions]:
    """The runs that a command line of `train.py` asks for, in their order.

    Args:
        argv: list of str. Defaults to the arguments of the process.

    Returns:
        A list of `TrainOptions`: one, or one for every row and seed of a table or
        sweep, all rows of the first seed first.

    Raises:
        UserError: for options that do not go together.
    """
    given = parse_given(SeriesOptions, argv, RECIPES)
    name = given.pop("table", None)
    pair = given.pop("sweep", None)
    series = {key: given.pop(key) for key in ("points", "seeds") if key in given}
    if name and pair:
        raise UserError("--table and --sweep are two series of runs; give one of them.")
    if not (name or pair):
        if series:
            raise UserError(f"--{next(iter(series))} needs --table or --sweep.")
        return [TrainOptions(**apply_recipe(given))]
    if "export" in given:
        raise UserError(
            "--export is about a single run; leave it out, and export the row that you "
            "choose with --recipe TABLE/ROW --output RUN --resume --export FORMAT."
        )
    if name and "points" in series:
        raise UserError("--points needs --sweep.")
    if name and "recipe" in given:
        raise UserError(f"--recipe is set by table {name}; leave it out.")
    if name:
        table = TABLES[name]
    else:
        table = make_sweep(pair, series.get("points"), given.pop("recipe", None))
    for row in table.rows.values():  # what makes the difference between them
        for option in (*row, "resume"):
            if option in given:
                raise UserError(
                    f"--{option.replace('_', '-')} is set by the rows of the "
                    f"{'table' if name else 'sweep'}; leave it out."
                )
    _check_dataset(table, given)
    settings = _settings(table, given)
    data = _name_data(table, given)
    root = given.pop("output", None) or _default_root(name, pair, data, given)
    first = given.pop("seed", 0)
    return [
        TrainOptions(
            **override({**settings, **row}, given),
            recipe=f"{name}/{key}" if name else table.recipe,
            output=f"{root}/{key}-seed{seed}",
            seed=seed,
            resume=True,
        )
        for seed in range(first, first + series.get("seeds", 1))
        for key, row in table.rows.items()
    ]


def apply_recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given of the `TrainOptions` of a single run, and the settings of its
    recipe for all else."""
    recipe = given.get("recipe", TrainOptions().recipe)
    settings = RECIPES[recipe]
    if "/" in recipe:
        table, row = recipe.split("/")
        settings = {**_settings(TABLES[table], given), **TABLES[table].rows[row]}
    return override(settings, given)


def _name_data(table, given):
    dataset = given.get("dataset", RECIPES[table.recipe].get("dataset", "scenes"))
    if dataset == "scenes":
        return "cityscapes" if "data" in given else "streets"
    return dataset


def _settings(table, given):
    """What the rows of a table have in common, on the data that is given."""
    settings = RECIPES[table.recipe]
    if _name_data(table, given) in ("streets", "digits"):
        return {**settings, **table.stand_in}
    return settings


def _check_dataset(table, given):
    dataset = given.get("dataset", RECIPES[table.recipe].get("dataset", "scenes"))
    tasks = {task for row in table.rows.values() for task in row["tasks"]}
    if not tasks <= set(tasks_of(DATASETS[dataset])):
        flag = f"--dataset {dataset}"
        if "dataset" not in given:
            flag = f"--recipe {table.recipe}"
        raise UserError(f"{flag} has other tasks than {table.title}; leave it out.")


def make_sweep(
    pair: Sequence[str], points: int | None = None, recipe: str | None = None
) -> Table:
    """The table whose rows lead from one task to another.

    Args:
        pair: two tasks.
        points: int, number of evenly spaced weights of the first task in 0..1.
            Defaults to those of the paper's figure 2, or 11.
        recipe: name of the settings. Defaults to those of the paper's figure 2, or
            of table C.

    Raises:
        UserError: for fewer than two points.
    """
    published = find_published(pair=pair)
    if points is not None and points < 2:
        raise UserError("--points must be at least 2: each task alone.")
    if points is None and published:
        rows = published["paper"]["rows"]
        weights = [float(key) for key in rows if key != "learned"]
    else:
        count = points or 11
        weights = [round(1 - i / (count - 1), 6) for i in range(count)]
    first, second = pair
    rows = {}
    for weight in weights:
        shares = {first: weight, second: round(1 - weight, 6)}
        rows[f"{weight:.4g}"] = fixed_row(**{t: w for t, w in shares.items() if w})
    rows["learned"] = learned_row(*pair)
    is_scene = TASKS[first].kind == "scenes"
    stand_in = TABLES["A" if is_scene else "C"].stand_in
    if recipe:
        table = TABLES.get(recipe.split("/")[0])
        stand_in = table.stand_in if table else {}
    return Table(
        f"Fixed weights of {first} and {second}",
        recipe or ("figure2" if is_scene else "fashion"),
        stand_in,
        rows,
        (main_metric(first), main_metric(second)),
    )


def find_published(name: str = "", pair: Sequence[str] = ()) -> dict[str, Any]:
    """The published figures of a table or a sweep.

    Returns:
        `{publication: {"source": str, "rows": {row: list}}}`, where a list holds a
        value or `None` for every metric of the table; empty if there are none.
    """
    published = _read_published()
    if name:
        return published.get(name, {})
    sweep = published["sweeps"].get(",".join(pair))
    return {"paper": sweep} if sweep else {}


def list_runs(root: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
    """The finished runs in a directory, `{row: {seed: run directory}}`."""
    runs: dict[str, dict[str, pathlib.Path]] = {}
    for path in sorted(pathlib.Path(root).glob("[!.]*-seed*/result.json")):
        key, _, seed = path.parent.name.rpartition("-seed")
        runs.setdefault(key, {})[seed] = path.parent
    return runs


def find_root(name: str = "", pair: Sequence[str] = (), root: str = "") -> pathlib.Path:
    """The directory of the runs of a table or a sweep.

    Args:
        name: str, a key of `TABLES`, or empty for a sweep.
        pair: the two tasks of a sweep.
        root: optional, the directory itself.

    Raises:
        UserError: if it does not exist, or if none is given and there is more than
            one to choose from.
    """
    if root:
        if not pathlib.Path(root).is_dir():
            raise UserError(f"{root} is not a directory of runs; train them first.")
        return pathlib.Path(root)
    stem = _stem(name, pair)
    found = [
        path
        for path in sorted(pathlib.Path("runs").glob(f"{stem}-*"))
        if list_runs(path)
    ]
    if len(found) == 1:
        return found[0]
    flag = f"--table {name}" if name else f"--sweep {','.join(pair)}"
    if not found:
        raise UserError(
            f"There is no finished run in runs/{stem}-*; train some with "
            f"python train.py {flag}."
        )
    raise UserError(
        f"There are {', '.join(map(str, found))}; name one: "
        f"python evaluate.py {found[0]} {flag}."
    )


def _read_published():
    file = importlib.resources.files("mtl_keras.experiments") / "published.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _default_root(name, pair, data, given):
    parts = [_stem(name, pair), data]
    if "train_frames" in given:
        parts.append(str(given["train_frames"]))
    return "runs/" + "-".join(parts)


def _stem(name, pair):
    return name or "sweep-" + "-".join(pair)
