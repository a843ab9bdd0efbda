"""Imports in the package point downwards."""

import ast
import importlib
import inspect
import os
import pathlib
import subprocess
import sys

import pytest
from backends import BACKEND, not_on

import mtl_keras

PACKAGE = pathlib.Path(mtl_keras.__file__).parent

# From the bottom to the top, "" being the library on top of the package. A module may
# import from its own part and from those of the rows below.
ROWS = (
    ("",),
    ("streets", "instances"),
    ("data",),
    ("figures",),
    ("serving",),
    ("experiments",),
    ("commands",),
)
HEIGHTS = {part: height for height, row in enumerate(ROWS) for part in row}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.stem not in ("__init__", "__main__")
)
LIBRARY = [module for module in MODULES if "." not in module]

# What the library imports, beside Keras and NumPy, where it is called.
LIBRARY_IMPORTS = {
    "distribution": {"tensorflow"},
    "layers": {"tensorflow"},
    "optimizers": {"tensorflow"},
    "png": {"cv2"},
}
# Those that `--help` and worker processes import, which do not wait for Keras.
LIGHT = (
    "commands.replay",
    "commands.app",
    "commands.console",
    "commands.data",
    "commands.evaluate",
    "commands.predict",
    "commands.show",
    "commands.train",
    "commands.write_mtan",
    "data.examples",
    "data.inspection",
    "experiments.arguments",
    "experiments.options",
    "experiments.recipes",
    "experiments.tables",
    "instances.objects",
    "streets.scenes",
    "tasks",
    "workers",
)


def part_of(module):
    return module.rpartition(".")[0]


def imports_of(module, in_functions=True):
    """Full names of the modules that a module imports, in functions or only when it
    is imported itself."""
    names = set()
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    todo = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if in_functions or not _waits(node):
            todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _waits(node):
    """Whether what is below it is not run when the module is imported."""
    is_for_hints = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(
        node.test
    )
    return is_for_hints or isinstance(node, ast.FunctionDef)


def own_imports_of(module, in_functions=True):
    """The modules of the package that a module imports."""
    found = set()
    for name in imports_of(module, in_functions):
        package, _, name = name.partition(".")
        if package != "mtl_keras":
            continue
        while name and name not in MODULES and name not in HEIGHTS:
            name = name.rpartition(".")[0]  # of a function, its module
        if name in HEIGHTS and name:  # what the package hands on
            found |= own_imports_of(f"{name}.__init__")
        elif name:
            found.add(name)
    return found


def everything_below(module, in_functions=True):
    found, todo = set(), {module}
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= own_imports_of(name, in_functions) - found
    return found


def third_party(module, in_functions=True):
    names = {name.split(".")[0] for name in imports_of(module, in_functions)}
    return names - {*sys.stdlib_module_names, "mtl_keras"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    part = part_of(module)
    assert part in HEIGHTS, f"give {part} its place in ROWS"
    for other in own_imports_of(module):
        is_own = part_of(other) == part
        assert is_own or HEIGHTS[part_of(other)] < HEIGHTS[part], other
        assert module not in everything_below(other), f"{module} and {other} in a ring"


@pytest.mark.parametrize("module", LIBRARY)
def test_the_library_imports_keras_and_numpy(module):
    assert third_party(module, in_functions=False) <= {"keras", "numpy"}
    allowed = {"keras", "numpy"} | LIBRARY_IMPORTS.get(module, set())
    assert third_party(module) <= allowed


@pytest.mark.parametrize("module", [*LIBRARY, "streets.scenes", "instances.objects"])
def test_no_tensorflow_is_needed(module):
    """What TensorFlow's kernels are for is imported by the functions that call them.

    That these are not called on another backend is what the other runs of
    `make test` are about: there TensorFlow cannot be imported.
    """
    importlib.import_module(f"mtl_keras.{module}")
    for name in everything_below(module):
        heads = {imported.split("_")[0] for imported in third_party(name, False)}
        assert "tensorflow" not in heads, name


def test_packages_hand_names_on_and_do_nothing_else():
    for part in [row for rows in ROWS[1:] for row in rows]:
        tree = ast.parse((PACKAGE / part / "__init__.py").read_text(encoding="utf-8"))
        docstring, *rest = tree.body
        assert isinstance(docstring, ast.Expr)
        for node in rest:
            is_all = isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
            assert is_all or isinstance(node, ast.ImportFrom), f"{part}: {node}"


WITHOUT_OTHERS = """
import sys

for name in sys.argv[1].split():
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
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
    heavy = {"keras", "tensorflow", "tensorflow_datasets", "jax", "sklearn", "scipy"}
    for name in everything_below(module, in_functions=False):
        assert not heavy & third_party(name, in_functions=False), name


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_the_scripts(module):
    heads = {name.partition(".")[0] for name in imports_of(module)}
    assert not {"train", "evaluate", "predict"} & heads


def test_public_names_can_be_had():
    for name in mtl_keras.__all__:
        assert getattr(mtl_keras, name) is not None
    assert set(mtl_keras.__all__) <= set(dir(mtl_keras))
    with pytest.raises(AttributeError, match="nothing"):
        mtl_keras.nothing


def public_names(module):
    """The public functions and classes of a module, and the methods of the latter."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value
        if inspect.isclass(value):
            for attribute in [a for a in vars(value) if not a.startswith("_")]:
                if any(hasattr(base, attribute) for base in value.__mro__[1:]):
                    continue  # documented there
                method = inspect.getattr_static(value, attribute)
                method = getattr(method, "__func__", method)  # of a classmethod
                if inspect.isfunction(method) or isinstance(method, property):
                    yield f"{name}.{attribute}", getattr(value, attribute)


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented(module):
    if BACKEND != "tensorflow" and module not in LIBRARY:
        pytest.skip("what the commands need is not there")
    module = importlib.import_module(f"mtl_keras.{module}")
    for name, value in public_names(module):
        assert inspect.getdoc(value), name


@pytest.mark.parametrize("module", MODULES)
def test_public_names_have_type_hints(module):
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    todo = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                todo.append(node)
            is_public = isinstance(node, ast.FunctionDef) and node.name[0] != "_"
            if is_public or getattr(node, "name", "") in ("__init__", "__call__"):
                named = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                rest = filter(None, (node.args.vararg, node.args.kwarg))
                hints = [
                    argument.annotation
                    for argument in (*named, *rest)
                    if argument.arg not in ("self", "cls")
                ]
                assert node.returns is not None and None not in hints, node.name
