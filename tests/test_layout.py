"""Imports in the package point downwards."""

import ast
import importlib
import os
import pathlib
import subprocess
import sys

import pytest
from backends import BACKEND, not_on

import mtl_keras

PACKAGE = pathlib.Path(mtl_keras.__file__).parent

# From the bottom to the top; a module may import from its own row and those below.
ROWS = (
    ("errors", "cityscapes", "recipes"),
    ("surfaces", "rendering", "street_objects", "street_plan"),
    ("distribution", "layers", "losses", "optimizers", "pipelines", "weighting"),
    ("clustering", "instances", "frames", "streets", "cli", "workers"),
    ("model", "metrics", "training", "scoring", "objects", "small_images", "tables"),
    ("datasets", "data", "export", "report", "object_gallery"),
    ("problems", "runs"),
    ("comparison", "comparison_figures"),
)
HEIGHTS = {name: height for height, row in enumerate(ROWS) for name in row}
MODULES = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")

# Those a machine with JAX alone has to be able to import, and those that processes
# import which have no time to wait for Keras.
CORE = (
    "cityscapes",
    "instances",
    "layers",
    "losses",
    "metrics",
    "model",
    "optimizers",
    "small_images",
    "streets",
    "training",
    "weighting",
)
LIGHT = (
    "cli",
    "cityscapes",
    "errors",
    "frames",
    "recipes",
    "streets",
    "tables",
    "workers",
)


def imports_of(module, in_functions=True):
    """Full names of the modules that a module imports, in functions or only when it
    is imported itself."""
    names = set()
    todo = [ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if in_functions or not isinstance(node, ast.FunctionDef):
            todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            if node.module == "mtl_keras":
                names |= {f"mtl_keras.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
    return names


def own_imports_of(module):
    return {
        name.split(".")[1]
        for name in imports_of(module)
        if name.startswith("mtl_keras.")
    }


def everything_below(module):
    found, todo = set(), {module}
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= own_imports_of(name) - found
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    assert module in HEIGHTS, f"give {module} its place in ROWS"
    for other in own_imports_of(module):
        assert HEIGHTS[other] <= HEIGHTS[module], f"{module} imports {other}"
        assert module not in everything_below(other), f"{module} and {other} in a ring"


@pytest.mark.parametrize("module", CORE)
def test_the_core_is_imported_without_tensorflow(module):
    """What TensorFlow's kernels are for is imported by the functions that call them.

    That these are not called on another backend is what the second run of
    `make test` is about: there TensorFlow cannot be imported.
    """
    importlib.import_module(f"mtl_keras.{module}")
    for name in everything_below(module):
        assert not any(
            imported.split(".")[0].startswith("tensorflow")
            for imported in imports_of(name, in_functions=False)
        ), name


WITHOUT_OTHERS = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import mtl_keras
import keras
import numpy as np
inputs = keras.Input((2,))
network = keras.Model(inputs, {"a": keras.layers.Dense(1)(inputs)})
weighting = mtl_keras.UncertaintyWeighting({"a": "gaussian"})
trainer = mtl_keras.MultiTaskTrainer(network, {"a": "mse"}, weighting, {"a": "mae"})
trainer.compile("adam")
trainer.fit(np.ones((8, 2)), {"a": np.ones((8, 1))}, verbose=0)
trainer.save(sys.argv[2])
keras.models.load_model(sys.argv[2])
"""


@not_on("jax", "it needs SciPy itself")
def test_the_library_needs_keras_and_numpy_alone(tmp_path):
    others = "scipy sklearn cv2 PIL tqdm matplotlib tensorflow_datasets pytest"
    subprocess.run(
        [sys.executable, "-c", WITHOUT_OTHERS, others, str(tmp_path / "a.keras")],
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        check=True,
    )


@not_on("tensorflow", "about runs without it")
def test_there_is_no_tensorflow_beside_another_backend():
    with pytest.raises(ImportError):
        importlib.import_module("tensorflow")


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_need_no_keras(module):
    for name in everything_below(module):
        heavy = {"keras", "tensorflow", "tensorflow_datasets", "jax", "sklearn"}
        assert not heavy & {n.split(".")[0] for n in imports_of(name)}, name


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_the_scripts(module):
    assert not {"train", "evaluate"} & imports_of(module)


def test_public_names_can_be_had():
    for name in mtl_keras.__all__:
        assert getattr(mtl_keras, name) is not None
    assert set(mtl_keras.__all__) <= set(dir(mtl_keras))
    with pytest.raises(AttributeError, match="nothing"):
        mtl_keras.nothing
