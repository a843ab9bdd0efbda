"""What the documents point at exists: files, options, modules."""

import dataclasses
import importlib.util
import pathlib
import re

import pytest

from mtl_keras.experiments.arguments import parse_given
from mtl_keras.experiments.options import (
    AppOptions,
    EvaluateOptions,
    PredictOptions,
    SeriesOptions,
    ShowOptions,
    WriteMtanOptions,
)
from mtl_keras.experiments.tables import plan_runs

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "data/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"\]\(\s*([^)\s]+)\s*\)")
# A command ends with its line, at a comment, or where inline code ends.
COMMAND = re.compile(
    r"python (?:-m mtl_keras )?(train|evaluate|predict|app|data [\w-]+)"
    r"(?:\.py)?\b([^`#&\n]*)"
)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OTHER_OPTIONS = {
    *("--help", "--pictures", "--preset", "--rounds"),  # of the benchmarks
    *("--rest", "--model"),  # of TensorFlow Serving: --rest_api_port, --model_name
    "--xla",  # of XLA_FLAGS
    *("--requeue", "--time", "--signal", "--open-mode"),  # of Slurm
}
MODULE = re.compile(r"python -m ((?:benchmarks|examples|docs)\.\w+)")
PLACEHOLDERS = {"ROW": "all", "RATE": "1e-3"}


def read(document):
    return document.read_text(encoding="utf-8")


def commands_of(document):
    for script, arguments in COMMAND.findall(read(document)):
        for placeholder, value in PLACEHOLDERS.items():
            arguments = arguments.replace(placeholder, value)
        yield script, arguments.split()


def headings_of(path):
    titles = re.findall(r"^#+ (.*)$", read(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(document):
    for link in LINK.findall(read(document)):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not heading or heading in headings_of(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_parse(document):
    for script, arguments in commands_of(document):
        if "--help" in arguments:
            continue
        try:
            if script == "train":
                plan_runs(arguments)
            elif script == "evaluate":
                parse_given(EvaluateOptions, arguments, positional=("run",))
            elif script == "app":
                parse_given(AppOptions, arguments, positional=("model",))
            elif script == "data show":
                parse_given(ShowOptions, arguments, positional=("data",))
            elif script == "data write-mtan":
                positional = ("source", "directory")
                parse_given(WriteMtanOptions, arguments, positional=positional)
            elif script == "predict":
                parse_given(PredictOptions, arguments, positional=("inputs",))
        except SystemExit as error:
            raise AssertionError(f"{script} {' '.join(arguments)}") from error


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_exist(document):
    if document.name == "CHANGELOG.md":  # about earlier ones, too
        return
    known = {
        f"--{negation}{field.name.replace('_', '-')}"
        for options_class in (
            SeriesOptions,
            EvaluateOptions,
            PredictOptions,
            AppOptions,
            ShowOptions,
            WriteMtanOptions,
        )
        for field in dataclasses.fields(options_class)
        for negation in (["", "no-"] if field.type is bool else [""])
    }
    assert set(OPTION.findall(read(document))) <= known | OTHER_OPTIONS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_modules_exist(document):
    for module in MODULE.findall(read(document)):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("name", ["draw_scenes", "build_api"])
def test_scripts_of_the_documents_can_be_imported(name):
    assert importlib.import_module(f"docs.{name}").__doc__


def test_the_first_program_of_the_library_learns():
    text = (ROOT / "docs" / "LIBRARY.md").read_text(encoding="utf-8")
    program = text.split("```python\n")[1].split("```")[0]
    names = {}
    exec(program, names)  # noqa: S102
    assert names["weighting"].sigmas()["age"] < 0.5
