"""The scripts as a user runs them, on a tiny tree in the layout of Cityscapes."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mtl_keras import cityscapes
from mtl_keras.experiments.runs import (
    claim_directory,
    find_best_scores,
    read_history,
)
from mtl_keras.experiments.tables import plan_runs

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow

TINY = ("--image-size", "32x64", "--batch-size", "2", "--steps", "6")  # 3 epochs of 2


def start(script, *arguments, cwd):
    return subprocess.Popen(
        [sys.executable, ROOT / f"{script}.py", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(script, *arguments, cwd):
    process = start(script, *arguments, cwd=cwd)
    output, errors = process.communicate()
    return process.returncode, output, errors


def succeed(script, *arguments, cwd):
    status, output, errors = call(script, *arguments, cwd=cwd)
    assert status == 0, errors
    return output


def fail(script, *arguments, cwd, usage=False):
    """Runs what must end with status 2 and one sentence, which it returns; with
    `usage` it is argparse that says it."""
    status, _, errors = call(script, *arguments, cwd=cwd)
    assert status == 2, errors
    assert "Traceback" not in errors
    if usage:
        return errors.splitlines()[-1]
    sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1 and errors.rstrip().endswith(sentences[0]), errors
    return sentences[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory, street_tree):
    """A working directory with a finished run in `run`, and what evaluate.py says."""
    place = tmp_path_factory.mktemp("place")
    trained = succeed(
        "train", "--data", street_tree, "--output", "run", *TINY, cwd=place
    )
    return place, trained, succeed("evaluate", "run", "--predictions", cwd=place)


def snapshot(directory):
    """Contents and times of all files below a directory."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file()
    }


def arrays(path):
    found = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(collect)
    return found


def test_every_promised_file_exists(place):
    run = place[0] / "run"
    for name in (
        "options.json",
        "constant.json",
        "history.csv",
        "epochs.csv",
        "environment.json",
        "report.html",
        "figures/frames_semantic.png",
        "figures/frames_instance.png",
        "figures/frames_depth.png",
        "checkpoints/best.weights.h5",
        "checkpoints/last/latest.weights.h5",
        "saved_model/saved_model.pb",
        "figures/losses.png",
        "figures/weights.png",
        "figures/val.png",
        "metrics.json",
        "table.md",
        *(
            f"predictions/val/streets_00000{number}_000019_{ending}"
            for number in (0, 1)
            for ending in ("labelIds.png", "disparity.png", "offsets.npy")
        ),
    ):
        assert (run / name).stat().st_size > 0, name
    assert any((run / "tensorboard").rglob("events.*"))
    assert not (run / "checkpoints" / "before").exists()
    assert "evaluate.py run" in place[1]


def test_history_has_a_row_an_epoch(place):
    history = read_history(place[0] / "run")
    assert [row["epoch"] for row in history] == [0, 1, 2]
    for row in history:
        assert np.isfinite(list(row.values())).all()
        for task in ("semantic", "instance", "depth"):
            assert {f"{task}/loss", f"{task}/sigma", f"{task}/weight"} <= row.keys()
            assert f"val_{task}/loss" in row


def test_epochs_are_timed(place):
    clock = read_history(place[0] / "run", "epochs.csv")
    assert [row["epoch"] for row in clock] == [0, 1, 2]
    for row in clock:
        assert min(row["train_seconds"], row["val_seconds"]) > 0
        images = 2 * 2  # steps of an epoch, images of a step
        assert row["images_per_second"] == pytest.approx(
            images / row["train_seconds"], rel=0.02
        )
    rates = [row["learning_rate"] for row in clock]
    assert rates[0] > rates[1] > rates[2] == 0  # the cosine ends at 0
    packages = json.loads((place[0] / "run" / "environment.json").read_text())
    assert packages["packages"]["keras"] == keras.__version__


def test_the_report_has_the_metrics(place):
    run = place[0] / "run"
    page = (run / "report.html").read_text(encoding="utf-8")
    metrics = json.loads((run / "metrics.json").read_text())
    for key, factor in (("semantic/miou", 100), ("depth/rms", 1)):
        assert f">{metrics['metrics'][key] * factor:.4g}<" in page
    assert np.sum(metrics["confusion"]) > 0 and "Confusion matrix" in page


def test_metrics(place):
    metrics = json.loads((place[0] / "run" / "metrics.json").read_text())
    assert {"split", "frames", "metrics", "constant_predictor", "per_class_iou"} <= (
        metrics.keys()
    )
    assert (metrics["split"], metrics["frames"]) == ("val", 2)
    names = {
        "semantic/miou",
        "semantic/pixel_accuracy",
        "instance/mean_abs",
        "instance/mean_l2",
        "instance/rms",
        "depth/mean_abs",
        "depth/rms",
    }
    assert set(metrics["metrics"]) == set(metrics["constant_predictor"]) == names
    assert set(metrics["per_class_iou"]) == {
        label.name for label in cityscapes.EVALUATED
    }
    # What is printed is what is kept, and agrees with the validation of the best epoch.
    table = (place[0] / "run" / "table.md").read_text()
    assert table.strip() in place[2] and "constant predictor" in table
    best = max(row["val_semantic/miou"] for row in read_history(place[0] / "run"))
    assert metrics["metrics"]["semantic/miou"] == pytest.approx(best, rel=1e-4)


def test_a_finished_run_is_left_as_it_is(place, street_tree):
    run = place[0] / "run"
    before = snapshot(run / "checkpoints") | snapshot(run / "saved_model")
    history = (run / "history.csv").read_text()
    for more in ([], ["--resume"]):
        arguments = ["--data", street_tree, "--output", "run", *TINY, *more]
        succeed("train", *arguments, cwd=place[0])
    assert snapshot(run / "checkpoints") | snapshot(run / "saved_model") == before
    assert (run / "history.csv").read_text() == history


def test_other_options_change_nothing(place, street_tree):
    run = place[0] / "run"
    before = snapshot(run)
    arguments = ["--data", street_tree, "--output", "run", *TINY, "--seed", "7"]
    sentence = fail("train", *arguments, cwd=place[0])
    assert "--seed 0 there and 7 here" in sentence
    assert snapshot(run) == before


PLACES = ("last", "before")  # of a checkpoint


def test_killed_and_resumed_equals_uninterrupted(place, street_tree):
    arguments = ["--data", street_tree, "--output", "other", *TINY]
    process = start("train", *arguments, cwd=place[0])
    checkpoints = place[0] / "other" / "checkpoints"
    while process.poll() is None and not (checkpoints / "last").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # Perhaps between two renames, when there is only the one before.
    last = next(filter(Path.exists, map(checkpoints.joinpath, PLACES)))
    metadata = json.loads((last / "training_metadata.json").read_text())
    assert metadata["epoch"] < 3, "the run was over before it could be killed"
    assert "--resume" in fail("train", *arguments, cwd=place[0])
    succeed("train", *arguments, "--resume", cwd=place[0])
    whole, resumed = place[0] / "run", place[0] / "other"
    assert read_history(whole) == read_history(resumed)
    for name in ("best.weights.h5", "last/latest.weights.h5"):
        expected = arrays(whole / "checkpoints" / name)
        found = arrays(resumed / "checkpoints" / name)
        assert expected.keys() == found.keys() and len(expected) > 100
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_a_run_that_is_not_written_to_is_evaluated(place, tmp_path):
    run = place[0] / "run"
    before = snapshot(run)
    output = tmp_path / "scores"
    for _ in range(2):
        said = succeed("evaluate", "run", "--output", output, cwd=place[0])
        assert f"Also in {output}: metrics.json, table.md and figures." in said
    assert snapshot(run) == before
    assert json.loads((output / "metrics.json").read_text())["frames"] == 2
    assert (output / "figures" / "val.png").stat().st_size > 0
    (output / "mine.txt").write_text("")
    assert "holds something else" in fail(
        "evaluate", "run", "--output", output, cwd=place[0]
    )


def test_unlabelled_split_is_predicted(place):
    before = (place[0] / "run" / "metrics.json").read_text()
    arguments = ["run", "--split", "test", "--predictions", "--submission", "sent"]
    output = succeed("evaluate", *arguments, cwd=place[0])
    assert "The submission is in sent" in output
    (ids,) = (place[0] / "sent" / "semantic").iterdir()
    assert Image.open(ids).size == (2048, 1024)
    assert [*(place[0] / "sent" / "instances").glob("*.txt")]
    assert "'test' has no labels: predicted, not evaluated" in output
    run = place[0] / "run"
    assert (run / "figures" / "test.png").stat().st_size > 0
    assert len([*(run / "predictions" / "test").iterdir()]) == 3
    assert (run / "metrics.json").read_text() == before


def test_tensorboard_shows_steps_and_pictures(place):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = place[0] / "run"
    events = EventAccumulator(str(run / "tensorboard" / "steps")).Reload()
    history = read_history(run)
    steps = events.Tensors("sigma/depth")
    per_epoch = len(steps) // len(history)
    assert [event.step for event in steps] == [*range(1, len(steps) + 1)]
    for task in ("semantic", "instance", "depth"):
        for name in ("sigma", "weight"):
            found = [
                tf.make_ndarray(e.tensor_proto)
                for e in events.Tensors(f"{name}/{task}")
            ]
            by_epoch = [row[f"{task}/{name}"] for row in history]
            np.testing.assert_allclose(
                found[per_epoch - 1 :: per_epoch], by_epoch, 1e-5
            )
    for name in ("learning rate", "images per second"):
        values = [float(tf.make_ndarray(e.tensor_proto)) for e in events.Tensors(name)]
        assert len(values) == len(steps) and min(values) >= 0 and max(values) > 0
    (options,) = events.Tensors("options")
    assert "| learning_rate | 0.004 |" in str(options.tensor_proto.string_val[0])
    pictures = events.Tensors("validation frames")
    assert [event.step for event in pictures] == [
        per_epoch * epoch for epoch in (1, 2, 3)
    ]
    width, height, png = pictures[-1].tensor_proto.string_val
    picture = Image.open(io.BytesIO(png))
    assert picture.size == (int(width), int(height)) and picture.size[0] > 1000


def test_other_formats_are_exported_later(place, street_tree):
    options = ["--data", street_tree, "--output", "run", *TINY]
    output = succeed("train", *options, "--export", "litert", cwd=place[0])
    assert "Exporting the best checkpoint to run/litert." in output
    card = (place[0] / "run" / "litert" / "README.md").read_text(encoding="utf-8")
    best = find_best_scores(place[0] / "run", ("semantic", "instance", "depth"))
    assert f"| mIoU % | {100 * best['semantic/miou']:.4g} |" in card
    assert "- --image-size: (32, 64)" in card and "| 13 | car | 26 |" in card
    assert "the split train of Cityscapes" in card and str(street_tree) not in card


def test_a_run_of_one_task_with_fixed_weights(place, street_tree):
    options = ["--data", street_tree, "--output", "single", *TINY]
    options += ["--tasks", "depth", "--weighting", "fixed"]
    succeed("train", *options, cwd=place[0])
    succeed("evaluate", "single", cwd=place[0])
    metrics = json.loads((place[0] / "single" / "metrics.json").read_text())
    assert set(metrics["metrics"]) == {"depth/mean_abs", "depth/rms"}
    assert metrics["per_class_iou"] == {}
    assert not (place[0] / "single" / "figures" / "weights.png").exists()


def test_mistakes_are_explained(place, own_tree):
    root = place[0]
    assert "no directory" in fail("train", "--data", "nowhere", cwd=root)
    assert "no run in nowhere" in fail("evaluate", "nowhere", cwd=root)
    assert "'dev'" in fail("evaluate", "run", "--split", "dev", cwd=root)
    arguments = ["--data", own_tree, "--output", "new", *TINY]
    assert "--weighting fixed" in fail(
        "train", *arguments, "--task-weights", "depth=1", cwd=root
    )
    assert "fewer than a batch of 64" in fail(
        "train", *arguments, "--batch-size", "64", cwd=root
    )
    label = cityscapes.frame_path(
        own_tree, "train", "streets_000002_000019", "semantic"
    )
    Image.fromarray(np.zeros((30, 60), np.uint8)).save(label)
    assert f"{label.name} is 30x60" in fail("train", *arguments, cwd=root)
    label.unlink()
    assert f"{label.name} is missing" in fail("train", *arguments, cwd=root)
    assert not (root / "new").exists()


def test_damaged_checkpoints_are_explained(place, street_tree):
    shutil.copytree(place[0] / "run", place[0] / "damaged")
    best = place[0] / "damaged" / "checkpoints" / "best.weights.h5"
    best.write_bytes(best.read_bytes()[:2000])
    assert "best.weights.h5 is damaged" in fail("evaluate", "damaged", cwd=place[0])
    for path in (best.parent / "last").glob("*.h5*"):
        path.write_bytes(b"")
    arguments = ["--data", street_tree, "--output", "damaged", *TINY, "--resume"]
    assert "latest.weights.h5 is damaged" in fail("train", *arguments, cwd=place[0])


QUICK = ("--dataset", "digits", "--epochs", "2", "--train-frames", "128")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A working directory in which table C was killed in its third row and then
    finished, and the contents of its finished rows when it was killed."""
    place = tmp_path_factory.mktemp("digits")
    process = start("train", "--table", "C", *QUICK, "--output", "C", cwd=place)
    while not (place / "C" / "reconstruction-seed0" / "result.json").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = {
        path.parent: snapshot(path.parent)
        for path in (place / "C").glob("*/result.json")
    }
    succeed("train", "--table", "C", *QUICK, "--output", "C", cwd=place)
    return place, killed


def test_an_interrupted_table_goes_on(digits):
    place, killed = digits
    assert 2 <= len(killed) < 6
    for directory, contents in killed.items():
        found = snapshot(directory)
        for path in {*found, *contents}:  # finished rows are left as they are
            # but for a report that the kill came before
            if path not in contents or path.suffix == ".part":
                assert path.name.strip(".").startswith("report.html")
            else:
                assert found[path] == contents[path], path
        assert (directory / "report.html").exists()
    assert len([*(place / "C").glob("*-seed0/result.json")]) == 6


def test_a_table_is_compared_with_the_published_one(digits):
    place, _ = digits
    output = succeed("evaluate", "C", "--table", "C", cwd=place)
    assert "scikit-learn's digits (not Fashion-MNIST)" in output
    assert "| all | learned / learned |" in output and "90.2 / 0.075" in output
    for name in ("table.md", "table.csv", "table.png", "sigmas.png"):
        assert (place / "C" / name).stat().st_size > 0, name


def test_a_row_has_the_scores_of_its_last_checkpoint(digits):
    """The table shows what evaluate.py finds, here where the last is the best."""
    place, _ = digits
    run = place / "C" / "all-seed0"
    last = run / "checkpoints" / "last" / "latest.weights.h5"
    shutil.copy(last, run / "checkpoints" / "best.weights.h5")
    output = succeed("evaluate", "C/all-seed0", cwd=place)
    assert "digits, split val, 500 frames" in output
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    result = json.loads((run / "result.json").read_text())
    for name, value in metrics.items():
        assert result[name] == pytest.approx(value, rel=1e-5), name
    assert (run / "figures" / "val.png").stat().st_size > 0


def test_a_sweep_leads_from_one_task_to_the_other(place, street_tree):
    arguments = ("--sweep", "semantic,depth", "--points", "2", "--backbone", "small")
    arguments += ("--no-pretrained", "--data", street_tree, "--output", "sweep", *TINY)
    succeed("train", *arguments, cwd=place[0])
    output = succeed("evaluate", "sweep", "--sweep", "semantic,depth", cwd=place[0])
    assert "on Cityscapes" in output and "| learned | learned / learned |" in output
    assert (place[0] / "sweep" / "table.png").stat().st_size > 0


def test_runs_of_another_process_are_left_to_it(digits, monkeypatch):
    place, _ = digits
    monkeypatch.chdir(place)
    arguments = ("--sweep", "class,reconstruction", "--points", "2", *QUICK)
    busy = plan_runs([*arguments, "--output", "sweep"])[1]
    with claim_directory(busy, 2):
        output = succeed("train", *arguments, "--output", "sweep", cwd=place)
    assert f"Left out: {busy.output} is being trained by another process" in output
    assert "All runs are complete" not in output
    finished = {path.parent.name for path in (place / "sweep").glob("*/result.json")}
    assert finished == {"1-seed0", "learned-seed0"}
    output = succeed("train", *arguments, "--output", "sweep", cwd=place)
    assert "All runs are complete" in output
    assert (place / busy.output / "result.json").exists()


def test_what_would_end_a_table_early_is_found_before_it_begins(
    place, street_tree, tmp_path
):
    """The third row is the first that needs disparities."""
    tree = tmp_path / "tree"
    shutil.copytree(street_tree, tree, ignore=shutil.ignore_patterns("disparity*"))
    arguments = ("--table", "A", "--data", tree, "--no-pretrained", *TINY)
    message = fail("train", *arguments, "--output", "A", cwd=tmp_path)
    assert "disparity" in message
    assert not (tmp_path / "A").exists()


def test_mistakes_about_tables_are_explained(digits):
    place, _ = digits
    message = fail("train", "--table", "C", "--tasks", "class", cwd=place)
    assert "--tasks is set by the rows of the table" in message
    message = fail("evaluate", "C", "--table", "A", cwd=place)
    assert "C holds no finished run of this table" in message
    message = fail("evaluate", "C", "--table", "C", "--split", "train", cwd=place)
    assert "--split is about a single run" in message
    message = fail("train", "--table", "A", "--data", "", cwd=place, usage=True)
    assert "--data: the path is empty" in message
    message = fail("evaluate", "C/all-seed0", "--instances", cwd=place)
    assert "--instances is about street scenes" in message


def test_a_last_step_that_spoils_the_weights_is_told(tmp_path):
    options = ("--recipe", "fashion", "--dataset", "digits", "--steps", "1")
    options += ("--train-frames", "64", "--optimizer", "sgd", "--output", "run")
    status, _, errors = call("train", *options, "--learning-rate", "1e30", cwd=tmp_path)
    assert status == 2 and "Traceback" not in errors
    assert re.search("error: The loss of .* of run became infinite or NaN", errors)
    assert not (tmp_path / "run" / "result.json").exists()
    assert read_history(tmp_path / "run") == []
