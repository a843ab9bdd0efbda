"""Fixtures that several files share: trees of street scenes and dtype policies."""

import os
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import pytest  # noqa: E402

from mtl_keras import streets  # noqa: E402

# The tf.data pipelines, the export and the scripts are TensorFlow's.
if keras.backend.backend() != "tensorflow":
    collect_ignore = [
        "test_data.py",
        "test_datasets.py",
        "test_export.py",
        "test_runs.py",
        "test_scoring.py",
        "test_scripts.py",
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
