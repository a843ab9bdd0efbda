"""Training on crops of frames as large as they come; the network per size."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from conftest import TREE_IMAGE_SIZE
from test_scripts import ROOT, fail, succeed

from mtl_keras import streets
from mtl_keras.data import pipelines, records
from mtl_keras.data.augmentation import Augmentation
from mtl_keras.data.batches import limit_batch
from mtl_keras.experiments import runs, setup
from mtl_keras.experiments.options import TrainOptions, read_options
from mtl_keras.experiments.problems import open_problem
from mtl_keras.experiments.runs import read_history

TASKS = ("semantic", "instance", "depth")
SIZE = "x".join(map(str, TREE_IMAGE_SIZE))
CROPS = ("--records", "source", "--image-size", SIZE, "--crop", "32x32")
CROPS += ("--scales", "0.7,2", "--jitter", "0.2", "--batch-size", "2", "--steps", "4")


def make_options(street_tree, tmp_path, **options):
    return TrainOptions(
        data=str(street_tree),
        data_dir=str(tmp_path),
        image_size=TREE_IMAGE_SIZE,
        records="source",
        batch_size=4,
        **options,
    )


def test_the_network_for_whole_frames_has_the_weights_of_that_for_crops(
    street_tree, tmp_path
):
    problem = open_problem(make_options(street_tree, tmp_path, crop=(32, 32)))
    assert problem.has_crops and problem.training_size == (32, 32)
    assert problem.batch_size == 2  # as many pixels as four crops have
    crops = setup.build_trainer(problem, image_size=problem.training_size).network
    whole = problem.of_whole_frames(crops)
    assert whole.input.shape[1:3] == TREE_IMAGE_SIZE
    for one, two in zip(crops.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    crops.set_weights([weight + 1 for weight in crops.get_weights()])
    assert problem.of_whole_frames(crops) is whole
    np.testing.assert_array_equal(crops.get_weights()[0], whole.get_weights()[0])
    assert problem.of_whole_frames(whole) is whole


def test_the_network_for_whole_frames_is_the_only_one_without_crops(
    street_tree, tmp_path
):
    problem = open_problem(make_options(street_tree, tmp_path))
    network = setup.build_trainer(problem).network
    assert not problem.has_crops and problem.of_whole_frames(network) is network


@pytest.mark.parametrize(
    "size, most", [((32, 64), 16), ((128, 256), 16), ((256, 512), 4), ((1024, 2048), 1)]
)
def test_large_frames_come_in_smaller_batches(size, most):
    assert limit_batch(16, size) == most


@pytest.fixture(scope="module")
def place(tmp_path_factory, street_tree):
    """A working directory with a run on crops in `run`."""
    place = tmp_path_factory.mktemp("crops")
    arguments = ("--data", street_tree, "--output", "run", *CROPS)
    succeed("train", *arguments, cwd=place)
    return place


@pytest.mark.slow
def test_crops_are_trained_on_and_whole_frames_evaluated(place):
    output = succeed("evaluate", "run", "--instances", cwd=place)
    assert "split val, 2 frames" in output
    scores = json.loads((place / "run" / "metrics.json").read_text())["metrics"]
    rows = read_history(place / "run")
    assert len(rows) == 2
    best = runs.find_best_scores(place / "run", ("semantic", "instance", "depth"))
    # The validation of the training saw the same frames through the same weights.
    for name, value in best.items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_the_export_takes_whole_frames(place):
    saved = tf.saved_model.load(str(place / "run" / "saved_model"))
    frames = tf.zeros((1, *TREE_IMAGE_SIZE, 3), tf.uint8)
    outputs = saved.signatures["serving_default"](frames)
    assert outputs["depth"].shape == (1, *TREE_IMAGE_SIZE, 1)
    options = read_options(TrainOptions, place / "run" / "options.json")
    assert options.crop == (32, 32) and options.scales == (0.7, 2.0)


@pytest.mark.slow
def test_training_on_crops_goes_on_as_if_it_had_not_stopped(place, street_tree):
    arguments = ("--data", street_tree, "--output", "again", *CROPS)
    script = (
        "import sys; from mtl_keras.experiments import callbacks; import os\n"
        "original = callbacks.ProgressReport.on_epoch_begin\n"
        "def end(self, epoch, logs=None):\n"
        "    if epoch == 1: os._exit(9)\n"
        "    original(self, epoch, logs)\n"
        "callbacks.ProgressReport.on_epoch_begin = end\n"
        "from mtl_keras.commands.train import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=place, env=environment, capture_output=True)
    assert ended.returncode == 9
    succeed("train", *arguments, "--resume", cwd=place)
    assert read_history(place / "again") == read_history(place / "run")


@pytest.mark.slow
def test_options_about_frames_of_cityscapes_need_some(tmp_path):
    for option in (("--records", "source"), ("--train-split", "train_extra")):
        sentence = fail("train", *option, cwd=tmp_path)
        assert option[0] in sentence and "--data" in sentence
    sentence = fail("train", "--recipe", "fashion", "--crop", "32x32", cwd=tmp_path)
    assert "--crop is about street scenes" in sentence


@pytest.mark.slow
def test_archives_at_the_size_of_cityscapes(tmp_path):
    """Two frames in archives as they are downloaded, read in place and cropped."""
    tree, data = tmp_path / "tree", tmp_path / "data set"
    streets.write_cityscapes_tree(tree, {"train": 2}, (1024, 2048), progress=False)
    data.mkdir()
    for folder in ("leftImg8bit", "gtFine", "disparity"):
        name = data / f"{folder}_trainvaltest.zip"
        with zipfile.ZipFile(name, "w") as archive:
            for path in sorted((tree / folder).rglob("*.png")):
                archive.write(path, path.relative_to(tree))
    arguments = ("train", TASKS, "train_ids", 2, 0, (128, 256))
    batches = [
        next(iter(pipelines.make_dataset(builder, *arguments)))
        for builder in (
            records.prepare_cityscapes(tree, (128, 256), TASKS, tmp_path),
            records.prepare_cityscapes(data, None, TASKS, tmp_path),
        )
    ]
    tf.nest.map_structure(np.testing.assert_array_equal, *batches)
    crops = pipelines.make_training_dataset(
        records.prepare_cityscapes(data, None, TASKS, tmp_path),
        TASKS,
        "train_ids",
        2,
        augmentation=Augmentation(crop=(512, 512), scales=(0.7, 2.0)),
        image_size=(1024, 2048),
    )
    image, targets, masks = next(iter(crops))
    assert image.shape == (2, 512, 512, 3)
    assert targets["instance"].shape == (2, 512, 512, 2)
    assert masks["depth"].numpy().any()
