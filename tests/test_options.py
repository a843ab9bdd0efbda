import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtl_keras.commands.console import run_command
from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import parse_options
from mtl_keras.experiments.options import (
    OPTIONS_VERSION,
    STARTING_OPTIONS,
    EvaluateOptions,
    PredictOptions,
    SeriesOptions,
    TrainOptions,
    differing_options,
    read_options,
    write_options,
)
from mtl_keras.experiments.recipes import RECIPES
from mtl_keras.experiments.tables import plan_runs

ROOT = Path(__file__).parents[1]


def parse(*argv):
    (options,) = plan_runs(list(argv))
    return options


def test_defaults_are_those_of_the_dataclass():
    assert parse() == TrainOptions()
    assert parse_options(EvaluateOptions, [], positional=("run",)) == EvaluateOptions()


def test_every_field_has_help():
    for options_class in (SeriesOptions, EvaluateOptions):
        for field in dataclasses.fields(options_class):
            assert field.metadata["help"], field.name


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_override_the_defaults(recipe):
    options = parse("--recipe", recipe, "--data", "TREE")  # no stand-in for it
    expected = {**vars(TrainOptions()), **RECIPES[recipe], "recipe": recipe}
    assert vars(options) == {**expected, "data": "TREE"}


def test_recipes_hold_what_the_parser_would_make_of_it():
    fields = {field.name: field for field in dataclasses.fields(TrainOptions)}
    for recipe in RECIPES.values():
        for name, value in recipe.items():
            assert type(value) is type(getattr(TrainOptions(), name)), name
            choices = fields[name].metadata["choices"]
            assert choices is None or value in choices


def test_flags_override_the_recipe():
    options = parse(
        "--recipe", "original", "--epochs", "2", "--no-pretrained", "--no-flip"
    )
    expected = {
        **vars(parse("--recipe", "original")),
        "epochs": 2,
        "pretrained": False,
        "flip": False,
    }
    assert vars(options) == expected


@pytest.mark.parametrize(
    "argv, name, value",
    [
        (["--image-size", "96x160"], "image_size", (96, 160)),
        (["--tasks", "depth, semantic"], "tasks", ("semantic", "depth")),
        (
            ["--task-weights", "semantic=0.8,depth=0"],
            "task_weights",
            {"semantic": 0.8, "depth": 0.0},
        ),
        (["--likelihoods", "depth=laplace"], "likelihoods", {"depth": "laplace"}),
        (["--initial-variance", "0.2,1"], "initial_variance", (0.2, 1.0)),
        (["--initial-variance", "0.5"], "initial_variance", (0.5, 0.5)),
        (["--learning-rate", "1e-4"], "learning_rate", 1e-4),
        (["--weight-decay", "0"], "weight_decay", 0.0),
        (["--steps", "7"], "steps", 7),
        (["--seed", "4294967295"], "seed", 2**32 - 1),
        (["--resume"], "resume", True),
        (["--data", "a b/c"], "data", "a b/c"),
    ],
)
def test_values_are_read(argv, name, value):
    options = parse(*argv)
    assert getattr(options, name) == value
    assert type(getattr(options, name)) is type(value)
    assert dataclasses.replace(TrainOptions(), **{name: value}) == options


@pytest.mark.parametrize(
    "argv",
    [
        ["--image-size", "128"],
        ["--image-size", "31x64"],
        ["--image-size=-64x64"],
        ["--tasks", "semantic,flow"],
        ["--tasks", ""],
        ["--task-weights", "semantic"],
        ["--task-weights", "semantic=-1"],
        ["--task-weights", "semantic=nan"],
        ["--task-weights", "flow=1"],
        ["--likelihoods", "depth=poisson"],
        ["--initial-variance", "0,1"],
        ["--initial-variance", "1,0.2"],
        ["--initial-variance", "a"],
        ["--batch-size", "0"],
        ["--epochs", "1.5"],
        ["--learning-rate", "0"],
        ["--learning-rate", "nan"],
        ["--learning-rate", "inf"],
        ["--weight-decay=-1"],
        ["--seed=-1"],
        ["--seed", "4294967296"],
        ["--seed", "x"],
        ["--optimizer", "lbfgs"],
        ["--backbone", "vgg"],
        ["--recipe", "fast"],
        ["--recipe", "A/none"],
        ["--dataset", "mnist"],
        ["--train-frames", "0"],
        ["--precision", "float8"],
        ["--scales", "2,1"],
        ["--scales", "0.01,1"],
        ["--scales", "1,11"],
        ["--jitter", "2"],
    ],
)
def test_wrong_values_are_named(argv, capsys):
    with pytest.raises(SystemExit) as raised:
        parse(*argv)
    assert raised.value.code == 2
    flag, _, value = argv[0].partition("=")
    value = argv[1] if len(argv) == 2 else value
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"argument {flag}: " in message
    # In lists, it is the wrong item that is named.
    named = [value, *value.replace("=", ",").split(",")]
    assert any(repr(item) in message for item in named), message


@pytest.mark.parametrize("argv", [["--epoch", "3"], ["--sead", "1"], ["demo"]])
def test_unknown_arguments_are_named(argv, capsys):
    with pytest.raises(SystemExit) as raised:
        parse(*argv)
    assert raised.value.code == 2
    message = capsys.readouterr().err
    assert "unrecognized arguments" in message and argv[0] in message


def test_run_is_positional():
    options = parse_options(
        EvaluateOptions, ["runs/x", "--split", "test"], positional=("run",)
    )
    assert (options.run, options.split) == ("runs/x", "test")


def test_options_of_the_method():
    options = parse_options(EvaluateOptions, ["--method-options", "eps=1.5, max_eps=5"])
    assert options.method_options == {"eps": 1.5, "max_eps": 5}
    assert type(options.method_options["max_eps"]) is int
    for text in ("eps", "eps=wide", "eps=1,,"):
        with pytest.raises(SystemExit):
            parse_options(EvaluateOptions, ["--method-options", text])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--recipe", "original"],
        [
            "--weighting=fixed",
            "--task-weights=depth=0.25",
            "--tasks=depth",
            "--image-size=40x72",
            "--initial-variance=0.1,3",
        ],
    ],
)
def test_options_come_back_from_json(argv, tmp_path):
    options = parse(*argv)
    write_options(options, tmp_path / "options.json")
    assert read_options(TrainOptions, tmp_path / "options.json") == options


def test_options_that_cannot_be_read(tmp_path):
    path = tmp_path / "options.json"
    with pytest.raises(UserError, match=f"no run in {tmp_path}.*train.py"):
        read_options(TrainOptions, path)
    for content in ("{", "[]", json.dumps({"version": OPTIONS_VERSION, "x": 3}), "3"):
        path.write_text(content)
        with pytest.raises(UserError, match=f"{path} does not hold the options"):
            read_options(TrainOptions, path)


def test_missing_options_take_no_defaults_but_those_of_starting(tmp_path):
    path = tmp_path / "options.json"
    write_options(TrainOptions(epochs=3), path)
    values = json.loads(path.read_text())
    for name in STARTING_OPTIONS:
        del values[name]
    path.write_text(json.dumps(values))
    assert read_options(TrainOptions, path) == TrainOptions(epochs=3)
    del values["seed"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="options.json does not hold .*seed is missing"):
        read_options(TrainOptions, path)


@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", "3"),
        ("learning_rate", None),
        ("tasks", 3),
        ("flip", 1),
        ("steps", True),
    ],
)
def test_options_of_another_type_are_refused(name, value, tmp_path):
    path = tmp_path / "options.json"
    write_options(TrainOptions(), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(UserError, match=f"does not hold .*{name} is {value!r}"):
        read_options(TrainOptions, path)


@pytest.mark.parametrize(
    "version", [{}, {"version": 2}, {"version": OPTIONS_VERSION + 1}]
)
def test_runs_in_which_options_meant_something_else_are_refused(version, tmp_path):
    path = tmp_path / "options.json"
    path.write_text(json.dumps({**version, "epochs": 3}))
    with pytest.raises(UserError, match=f"{tmp_path} is a run of another version"):
        read_options(TrainOptions, path)


def test_differing_options():
    first, second = TrainOptions(), TrainOptions(epochs=2, resume=True, output="x")
    assert differing_options(first, first) == {}
    assert differing_options(first, second, ignored=("output", "resume")) == {
        "--epochs": (first.epochs, 2)
    }


def test_a_user_error_is_one_sentence(capsys):
    def fail():
        raise UserError("The file\n  a.png is missing.")

    with pytest.raises(SystemExit) as raised:
        run_command(fail)
    assert raised.value.code == 2
    assert capsys.readouterr().err == "error: The file a.png is missing.\n"


@pytest.mark.parametrize(
    "act, sentence",
    [
        (
            lambda: open("/nowhere/a.png", encoding="utf-8"),
            "/nowhere/a.png cannot be read or written (No such file or directory)",
        ),
        (lambda: "tree-ä".encode("ascii"), "'tree-ä' has characters that the encoding"),
    ],
)
def test_errors_of_the_system_are_one_sentence(capsys, act, sentence):
    with pytest.raises(SystemExit) as raised:
        run_command(act)
    assert raised.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {sentence}") and errors.count("\n") == 1


@pytest.mark.parametrize(
    "encoding, shown",
    [
        ("utf-8", "1.5 ± 0.2 – ü ☃".encode()),
        ("latin-1", b"1.5 \xb1 0.2 - \xfc ?"),
        ("ascii", b"1.5 +/- 0.2 - ? ?"),
    ],
)
def test_every_console_shows_tables(encoding, shown):
    code = (
        "from mtl_keras.commands.console import run_command\n"
        "run_command(lambda: print('1.5 ± 0.2 – ü ☃', 'l\\udcc3\\udca4uf'))\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"},
        capture_output=True,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout == shown + " läuf\n".encode()  # names as they came


def test_damaged_records_are_one_sentence(capsys):
    class DataLossError(Exception):
        """As TensorFlow's, which is not imported for this."""

    def fail():
        raise DataLossError

    with pytest.raises(SystemExit) as raised:
        run_command(fail)
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert "The records are damaged; remove" in said and "--data-dir" in said


def test_other_errors_keep_their_traceback():
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(fail)


def test_an_interrupt_says_how_to_go_on(capsys):
    def stop(argv):
        raise KeyboardInterrupt

    stop.__module__ = "mtl_keras.commands.train"
    importlib.import_module(stop.__module__)
    with pytest.raises(SystemExit) as raised:
        run_command(stop, [])
    assert raised.value.code == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["train", "evaluate", "predict"])
def test_help_is_complete_and_loads_nothing_heavy(script):
    code = (
        "import runpy, sys\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "heavy = {'keras', 'tensorflow', 'jax', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code, f"{script}.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    options_classes = {
        "train": SeriesOptions,
        "evaluate": EvaluateOptions,
        "predict": PredictOptions,
    }
    for field in dataclasses.fields(options_classes[script]):
        is_flag = field.name not in ("run", "inputs")
        name = "--" + field.name.replace("_", "-") if is_flag else field.name.upper()
        assert name in completed.stdout, field.name
    if script == "train":
        for recipe in RECIPES:
            assert "/" in recipe or f"{recipe}:" in completed.stdout


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--weighting", "dwa", "--priorities", "depth=2"], "--priorities needs"),
        (["--weighting", "gls", "--temperature", "2"], "--temperature needs"),
        (["--weighting", "rlw", "--task-weights", "depth=2"], "--task-weights needs"),
        (
            ["--tasks", "semantic", "--priorities", "depth=2"],
            "--priorities names depth",
        ),
    ],
)
def test_options_of_another_weighting_are_refused(argv, message):
    from mtl_keras.experiments import setup

    with pytest.raises(UserError, match=message):
        setup.check_options(parse_options(TrainOptions, argv))


def test_every_weighting_is_built_from_its_options():
    from mtl_keras.experiments import setup
    from mtl_keras.experiments.recipes import WEIGHTINGS

    built = {
        name: setup.build_weighting(TrainOptions(weighting=name), steps_per_epoch=7)
        for name in WEIGHTINGS
    }
    assert len({type(layer) for layer in built.values()}) == len(WEIGHTINGS)
    assert built["dwa"].steps_per_epoch == 7 and built["dwa"].temperature == 2
    options = TrainOptions(priorities={"depth": 2.0})
    assert setup.build_weighting(options).priorities == {"depth": 2.0}
    options = TrainOptions(weighting="uw-so", temperature=9.0)
    assert setup.build_weighting(options).temperature == 9
