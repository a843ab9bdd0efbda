"""Fixtures that several files share: trees of street scenes and dtype policies.

The backend is that of the environment variable `KERAS_BACKEND`. With another than
TensorFlow the tests run as on a machine that has no TensorFlow.
"""

import importlib.abc
import os
import pathlib
import shutil
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


class NoTensorFlow(importlib.abc.MetaPathFinder):
    """Lets every import of TensorFlow fail as if it were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    if os.environ["KERAS_BACKEND"] == "torch":
        import torch._dynamo  # noqa: F401  it looks whether there is a TensorFlow
    assert "tensorflow" not in sys.modules
    sys.meta_path.insert(0, NoTensorFlow())
    # JAX compiles hundreds of operations that run for microseconds.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    )

import keras  # noqa: E402
import pytest  # noqa: E402

from mtl_keras import streets  # noqa: E402

# What needs no TensorFlow. The tf.data pipelines, the export and the scripts do.
CORE_TESTS = (
    "batch_norm",
    "cityscapes",
    "distribution",
    "examples",
    "instances",
    "layers",
    "layout",
    "losses",
    "metrics",
    "model",
    "optimizers",
    "streets",
    "training",
    "weighting",
    "weighting_optimizer",
    "weightings",
)
# These call no backend: one run without TensorFlow is enough, that on JAX.
NUMPY_TESTS = ("cityscapes", "instances", "streets")
if keras.backend.backend() != "tensorflow":
    is_second = keras.backend.backend() == "torch"
    chosen = set(CORE_TESTS) - set(NUMPY_TESTS if is_second else ())
    collect_ignore = [
        path.name
        for path in pathlib.Path(__file__).parent.glob("test_*.py")
        if path.stem.removeprefix("test_") not in chosen
    ]

TREE_SIZES = {"train": 4, "val": 2, "test": 1}
TREE_SEED = 5
TREE_IMAGE_SIZE = (32, 64)


@pytest.fixture(scope="session")
def street_tree(tmp_path_factory):
    """Rendered scenes in the layout of Cityscapes; to be read only."""
    root = tmp_path_factory.mktemp("trees") / "streets"
    streets.write_cityscapes_tree(
        root, TREE_SIZES, TREE_IMAGE_SIZE, seed=TREE_SEED, progress=False
    )
    return root


@pytest.fixture
def own_tree(street_tree, tmp_path):
    """A copy of `street_tree` that a test may damage."""
    return shutil.copytree(street_tree, tmp_path / "tree")


@pytest.fixture
def set_policy():
    """Sets the global dtype policy until the end of the test."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)
