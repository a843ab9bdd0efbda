"""The tables of tasks and metrics, and what a further task takes."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from mtl_keras import tasks
from mtl_keras.cityscapes import SKY_ID
from mtl_keras.commands import evaluate, train
from mtl_keras.data.pipelines import ENCODERS
from mtl_keras.experiments.options import EvaluateOptions, TrainOptions
from mtl_keras.experiments.recipes import TABLES
from mtl_keras.figures.painters import PAINTERS
from mtl_keras.likelihoods import LIKELIHOODS
from mtl_keras.tasks import METRICS, TASKS, Metric, Task


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_complete(name):
    task = TASKS[name]
    assert task.likelihood in LIKELIHOODS
    assert all(f"{name}/{metric}" in METRICS for metric in task.metrics)
    if task.kind == "scenes":
        assert task.labels and name in ENCODERS and name in PAINTERS
    assert [metric.name for metric in tasks.make_metrics(name)] == [*task.metrics]
    assert isinstance(tasks.make_losses([name])[name], keras.losses.Loss)


def test_metrics_belong_to_tasks():
    for key in METRICS:
        task, metric = key.split("/")
        row = TASKS[task]
        assert metric in (*row.metrics, *row.masked_sky_metrics, "ap", "ap50")
    for table in TABLES.values():
        assert set(table.metrics) <= set(METRICS)


def test_best_metric():
    assert tasks.best_metric(("semantic", "depth")) == "semantic/miou"
    assert tasks.best_metric(("reconstruction", "class")) == "class/accuracy"
    assert tasks.best_metric(("instance", "depth")) == "instance/mean_abs"


def test_unknown_label_sets_are_refused():
    with pytest.raises(ValueError, match="'ids'.*label_ids, train_ids"):
        tasks.make_metrics("semantic", "ids")


@pytest.fixture
def sky(monkeypatch):
    """A further task: how much sky there is at a pixel, 0 or 1."""

    def encode(record, label_set, sky):
        is_sky = tf.cast(record["semantic"] == SKY_ID, tf.float32)
        return is_sky, tf.ones_like(is_sky[..., 0], tf.bool)

    def paint(rows, label_set, legend):
        legend.text(0, 1, "white: sky")
        return lambda values: np.clip(values, 0, 1).repeat(3, -1) * 255

    row = Task(
        kind="scenes",
        labels=("semantic",),
        channels=1,
        make_loss=keras.losses.MeanSquaredError,
        metrics=("mean_abs",),
        likelihood="gaussian",
        constant="median",
        color="#cc79a7",
    )
    metric = Metric(
        "sky mean abs", lambda label_set: keras.metrics.MeanAbsoluteError("mean_abs")
    )
    monkeypatch.setitem(TASKS, "sky", row)
    monkeypatch.setitem(METRICS, "sky/mean_abs", metric)
    monkeypatch.setitem(ENCODERS, "sky", encode)
    monkeypatch.setitem(PAINTERS, "sky", paint)


@pytest.mark.slow
def test_a_further_task_is_a_row_an_encoder_and_a_painter(
    sky, street_tree, tmp_path, set_policy, capsys
):
    run = tmp_path / "run"
    options = TrainOptions(
        data=str(street_tree),
        data_dir=str(tmp_path / "data"),
        output=str(run),
        tasks=("depth", "sky"),
        image_size=(32, 64),
        batch_size=2,
        steps=2,
    )
    assert options.likelihoods["sky"] == "gaussian"
    train.train(options)
    evaluate.evaluate(EvaluateOptions(batch_size=2), run)
    scores = json.loads((run / "metrics.json").read_text())
    for kind in ("metrics", "constant_predictor"):
        assert 0 < scores[kind]["sky/mean_abs"] < 10
    # Most pixels are not of the sky, so the constant is 0 and misses those that are.
    assert scores["constant_predictor"]["sky/mean_abs"] < 0.5
    header = (run / "table.md").read_text().splitlines()[2]
    assert header == "|  | depth mean abs px | depth RMS px | sky mean abs |"
    assert "sky/sigma" in (run / "history.csv").read_text().splitlines()[0]
    for name in ("losses", "weights", "val"):
        assert (run / "figures" / f"{name}.png").stat().st_size > 10_000
