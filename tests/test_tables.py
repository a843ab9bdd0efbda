import json

import pytest

from mtl_keras.errors import UserError
from mtl_keras.experiments import tables
from mtl_keras.experiments.comparison import ROW_OPTIONS
from mtl_keras.experiments.options import TrainOptions, differing_options
from mtl_keras.experiments.recipes import DATASETS, RECIPES, TABLES, WEIGHTINGS
from mtl_keras.experiments.tables import (
    find_published,
    find_root,
    make_sweep,
    plan_runs,
)
from mtl_keras.tasks import tasks_of


def plan(text):
    return plan_runs(text.split())


def test_without_a_series_there_is_one_run():
    assert plan("") == [TrainOptions()]
    (options,) = plan("--recipe original --steps 3 --seed 5")
    assert (options.recipe, options.steps, options.seed) == ("original", 3, 5)
    assert options.backbone == "resnet101" and not options.output


@pytest.mark.parametrize("name", TABLES)
def test_a_table_trains_every_row_with_every_seed(name):
    planned = plan(f"--table {name} --seeds 2 --seed 3 --output out")
    rows = list(TABLES[name].rows)
    assert [options.output for options in planned] == [
        f"out/{row}-seed{seed}" for seed in (3, 4) for row in rows
    ]
    assert [options.seed for options in planned] == [3] * len(rows) + [4] * len(rows)
    assert all(options.resume for options in planned)


@pytest.mark.parametrize("name", ["A", "B", "mtan"])
def test_rows_on_cityscapes_are_the_recipes(name):
    for options in plan(f"--table {name} --data TREE"):
        differing = {
            key: value
            for key, value in vars(options).items()
            if value != getattr(TrainOptions(), key)
        }
        expected = {**RECIPES[options.recipe], "recipe": options.recipe}
        own = {"data": "TREE", "output": options.output, "resume": True}
        assert vars(options) == {**vars(TrainOptions()), **expected, **own}, differing
        assert options.output.startswith(f"runs/{name}-cityscapes/")


@pytest.mark.parametrize("name", TABLES)
def test_rows_differ_in_nothing_but_what_they_are_about(name):
    """Whoever compares weightings trains them all alike."""
    about = {"recipe", "output", *ROW_OPTIONS}
    for data in ("", " --data TREE" if name != "C" else " --dataset digits"):
        shared = {
            json.dumps({k: v for k, v in vars(options).items() if k not in about})
            for options in plan(f"--table {name}{data}")
        }
        assert len(shared) == 1


@pytest.mark.parametrize("name", TABLES)
def test_rows_have_the_weights_of_the_table(name):
    for options in plan(f"--table {name}"):
        assert set(options.tasks) <= set(tasks_of(DATASETS[options.dataset]))
        if options.weighting == "fixed":
            assert set(options.task_weights) == set(options.tasks)
            # 1 and 1 in the units of MTAN's protocol, 1 and 1 / 32 in ours
            total = 1 + 2**19 / 65535 / 256 if options.recipe == "mtan/equal" else 1
            assert sum(options.task_weights.values()) == pytest.approx(total)
        else:
            assert set(options.tasks) <= set(options.likelihoods)


@pytest.mark.parametrize(
    "table, data",
    [("A", ""), ("B", ""), ("A", "--data TREE"), ("C", "--dataset digits")],
)
def test_a_row_by_itself_is_that_of_the_table(table, data):
    for row in plan(f"--table {table} {data}"):
        (alone,) = plan(f"--recipe {row.recipe} {data}")
        assert not alone.output and not alone.resume
        assert differing_options(row, alone, ignored=("output", "resume")) == {}


def test_streets_take_the_place_of_cityscapes():
    options = plan("--table A")[0]
    assert options.backbone == "small" and not options.pretrained
    assert options.architecture == "kendall"
    assert options.output.startswith("runs/A-streets/")
    (given, *_) = plan("--table A --backbone resnet50 --train-frames 300")
    assert given.backbone == "resnet50"
    assert given.output.startswith("runs/A-streets-300/")


def test_epochs_take_the_place_of_the_steps_of_a_recipe():
    options = plan("--table A --epochs 7")[0]
    assert (options.epochs, options.steps) == (7, 0)


def test_digits_take_the_place_of_fashion_mnist():
    assert plan("--table C")[0].dataset == "fashion_mnist"
    options = plan("--table C --dataset digits")[0]
    assert options.dataset == "digits"
    assert options.output.startswith("runs/C-digits/")


def test_sweep_over_even_weights():
    planned = plan("--sweep semantic,depth --points 3")
    assert [options.output for options in planned] == [
        f"runs/sweep-semantic-depth-streets/{row}-seed0"
        for row in ("1", "0.5", "0", "learned")
    ]
    first, middle, last, learned = planned
    assert first.tasks == ("semantic",) and last.tasks == ("depth",)
    assert middle.task_weights == {"semantic": 0.5, "depth": 0.5}
    assert learned.weighting == "learned" and learned.tasks == ("semantic", "depth")
    assert {options.architecture for options in planned} == {"kendall"}
    assert plan("--sweep semantic,depth --recipe original")[0].architecture == "mtl"


@pytest.mark.parametrize("pair", ["semantic,depth", "instance,depth"])
def test_sweep_over_the_weights_of_the_paper(pair):
    rows = make_sweep(tuple(pair.split(","))).rows
    assert list(rows) == list(
        find_published(pair=tuple(pair.split(",")))["paper"]["rows"]
    )


def test_sweep_of_a_pair_that_the_paper_does_not_have():
    rows = make_sweep(("class", "reconstruction")).rows
    assert len(rows) == 12 and list(rows)[1] == "0.9"


def test_even_weights_are_those_of_the_paper_where_they_meet():
    pair = ("semantic", "depth")
    even, published = make_sweep(pair, 11).rows, make_sweep(pair).rows
    for weight in ("1", "0.8", "0.2", "0.1", "0"):
        assert even[weight] == published[weight]


def test_sweep_with_the_settings_of_the_figure_or_of_a_recipe():
    options = plan("--sweep semantic,depth --data TREE")[-1]
    assert (options.architecture, options.learning_rate) == ("kendall", 1e-2)
    assert plan("--sweep semantic,depth")[-1].backbone == "small"  # of the stand-in
    options = plan("--sweep semantic,depth --recipe demo")[-1]
    assert options.image_size == (128, 256) and options.recipe == "demo"
    options = plan("--sweep semantic,depth --recipe A/tuned")[-1]
    assert options.weighting == "learned" and not options.task_weights
    assert options.backbone == "small"  # of the stand-in of table A


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--table A --sweep semantic,depth", "give one of them"),
        ("--seeds 3", "--seeds needs --table or --sweep"),
        ("--table A --points 3", "--points needs --sweep"),
        ("--table A --export onnx", "--export is about a single run"),
        ("--table A --tasks depth", "--tasks is set by the rows"),
        ("--table A --recipe original", "--recipe is set by table A"),
        ("--table A --likelihoods depth=laplace", "--likelihoods is set by the rows"),
        ("--table A --dataset digits", "--dataset digits has other tasks"),
        ("--table C --dataset scenes", "--dataset scenes has other tasks"),
        (
            "--sweep class,reconstruction --recipe original",
            "--recipe original has other tasks",
        ),
        ("--sweep semantic,depth --points 1", "--points must be at least 2"),
        ("--sweep semantic,depth --weighting fixed", "--weighting is set by the rows"),
    ],
)
def test_options_that_do_not_go_together(arguments, message):
    with pytest.raises(UserError, match=message):
        plan(arguments)


@pytest.mark.parametrize("pair", ["semantic", "semantic,class", "a,b"])
def test_pairs_that_are_none(pair, capsys):
    with pytest.raises(SystemExit):
        plan(f"--sweep {pair}")
    assert pair.split(",")[-1] in capsys.readouterr().err


@pytest.mark.parametrize("name", TABLES)
def test_published_rows_are_rows_of_the_table(name):
    table = TABLES[name]
    for publication in find_published(name).values():
        assert publication["source"]
        for key, values in publication["rows"].items():
            trained = {task for task in table.rows[key]["tasks"]}
            published = {
                metric.split("/")[0]
                for metric, value in zip(table.metrics, values, strict=True)
                if value is not None
            }
            assert published == trained, key


def test_there_is_nothing_published_for_other_sweeps():
    assert find_published(pair=("class", "reconstruction")) == {}


def finish(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "result.json").write_text("{}")


def test_list_runs(tmp_path):
    finish(tmp_path, "all-seed0", "all-seed12", "semantic+depth-seed0")
    (tmp_path / "depth-seed0").mkdir()  # not finished
    assert tables.list_runs(tmp_path) == {
        "all": {"0": tmp_path / "all-seed0", "12": tmp_path / "all-seed12"},
        "semantic+depth": {"0": tmp_path / "semantic+depth-seed0"},
    }


def test_find_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"runs/A-\*; train some.*--table A"):
        find_root("A")
    finish(tmp_path / "runs" / "A-streets", "all-seed0")
    (tmp_path / "runs" / "A-streets-300").mkdir()  # nothing is finished there
    assert str(find_root("A")) == "runs/A-streets"
    finish(tmp_path / "runs" / "A-digits", "all-seed0")
    with pytest.raises(UserError, match="runs/A-digits, runs/A-streets; name one"):
        find_root("A")
    assert (
        find_root("A", root="runs/A-streets")
        == (tmp_path / "runs").relative_to(tmp_path) / "A-streets"
    )
    with pytest.raises(UserError, match="none is not a directory of runs"):
        find_root("A", root="none")


def test_table_of_weightings_has_a_row_for_each_and_nothing_published():
    rows = TABLES["D"].rows
    assert {row["weighting"] for row in rows.values()} == set(WEIGHTINGS)
    assert rows["priority"] == {**rows["all"], "priorities": {"semantic": 3.0}}
    assert find_published("D") == {}
