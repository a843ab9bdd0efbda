"""What is installed: the ranges of pyproject.toml, and the versions that are tested."""

import ast
import pathlib
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
EXTRAS = PROJECT["optional-dependencies"]
# Where a package is imported by another name than it is installed by.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}


def parse(lines):
    """`{name: SpecifierSet}` of requirements, those on this project left out."""
    parsed = map(Requirement, lines)
    return {
        canonicalize_name(requirement.name): requirement.specifier
        for requirement in parsed
        if requirement.name != PROJECT["name"]
    }


def read_pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    texts = (line.partition("#")[0].strip() for line in lines)
    return parse(filter(None, texts))


BASE = parse(PROJECT["dependencies"])
SCRIPTS = BASE | parse(EXTRAS["tensorflow"])
PINS = {name: read_pins(name) for name in ("requirements.txt", "requirements-test.txt")}


def test_the_library_asks_for_keras_and_numpy():
    assert set(BASE) == {"keras", "numpy"}


def test_what_is_installed_for_the_commands_is_what_they_ask_for():
    assert set(PINS["requirements.txt"]) == set(SCRIPTS)


def test_what_is_installed_for_the_tests_is_in_an_extra():
    of_extras = [parse(EXTRAS[name]) for name in ("dev", "jax", "torch", "onnx", "app")]
    assert set(PINS["requirements-test.txt"]) <= set().union(*of_extras)


@pytest.mark.parametrize("extra", EXTRAS)
def test_tested_versions_lie_in_their_ranges(extra):
    pins = PINS["requirements.txt"] | PINS["requirements-test.txt"]
    for name, allowed in (BASE | parse(EXTRAS[extra])).items():
        assert {"<", ">="} == {one.operator for one in allowed}, name
        for pin in pins.get(name, ()):
            assert pin.operator == "==" and pin.version in allowed, name


def imported_packages():
    for path in (ROOT / "mtl_keras").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (name.name.partition(".")[0] for name in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.partition(".")[0]


def test_every_package_that_is_imported_is_asked_for():
    imported = set(imported_packages()) - set(sys.stdlib_module_names) - {"mtl_keras"}
    names = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in imported}
    extras = (parse(EXTRAS[name]) for name in ("jax", "torch", "onnx", "app"))
    assert names <= set(SCRIPTS).union(*extras)


def test_the_version_has_one_home():
    source = (ROOT / "mtl_keras" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation
