import json

import keras
import numpy as np
import pytest
from keras import ops
from test_metrics import example, iou_by_definition
from tqdm import tqdm

from mtl_keras.data.batches import Batch
from mtl_keras.errors import UserError
from mtl_keras.experiments.constant_predictor import ConstantPredictor
from mtl_keras.experiments.evaluation import (
    MapScores,
    evaluate,
    write_constant_predictor,
)
from mtl_keras.experiments.options import TrainOptions
from mtl_keras.experiments.problems import open_problem
from mtl_keras.experiments.setup import build_trainer
from mtl_keras.figures.markdown import format_metrics
from mtl_keras.tasks import make_metrics


def batch_of_all_tasks():
    maps = {task: example(task) for task in ("semantic", "instance", "depth")}
    return [{task: values[i] for task, values in maps.items()} for i in range(3)]


def make_scores(*tasks):
    return MapScores({task: make_metrics(task) for task in tasks})


def test_map_scores():
    targets, predictions, masks = batch_of_all_tasks()
    masks["depth"] = np.zeros_like(masks["depth"])
    score = make_scores("semantic", "instance", "depth")
    score.update(Batch([], None, targets, masks), predictions)
    results = score.result()["metrics"]
    assert list(results) == [
        "semantic/miou",
        "semantic/pixel_accuracy",
        "instance/mean_abs",
        "instance/mean_l2",
        "instance/rms",
        "depth/mean_abs",
        "depth/rms",
    ]
    for name, value in results.items():  # depth has no valid pixel
        assert (value is None) if name.startswith("depth") else type(value) is float
    errors = (targets["instance"] - predictions["instance"])[masks["instance"] > 0]
    assert results["instance/mean_abs"] == pytest.approx(np.abs(errors).mean())
    assert score.result()["per_class_iou"] == pytest.approx(
        iou_by_definition(
            "train_ids", targets["semantic"], predictions["semantic"], masks["semantic"]
        )
    )


def test_map_scores_takes_tensors():
    targets, predictions, masks = batch_of_all_tasks()
    scores = []
    for convert in (np.asarray, ops.convert_to_tensor):
        score = make_scores("semantic", "depth")
        true, predicted, valid = (
            {task: convert(value) for task, value in values.items()}
            for values in (targets, predictions, masks)
        )
        score.update(Batch([], None, true, valid), predicted)
        scores.append(score.result())
    assert scores[0] == scores[1]


def test_map_scores_without_the_semantic_task():
    assert make_scores("depth").result() == {
        "metrics": {"depth/mean_abs": None, "depth/rms": None},
        "per_class_iou": {},
        "confusion": None,
    }


def test_constant_predictor_takes_majority_and_median():
    targets = {
        "semantic": np.array([[[3, 3, 5, 5, 5]]], "int32"),
        "instance": np.ones((1, 1, 5, 2), "float32"),
        "depth": np.array([1.0, 2.0, 7.5, 99.0, 3.0], "float32").reshape(1, 1, 5, 1),
    }
    masks = {
        "semantic": np.array([[[1, 1, 1, 0, 0]]], "float32"),
        "instance": np.ones((1, 1, 5), "float32"),
        "depth": np.array([[[1, 1, 1, 0, 1]]], "float32"),
    }
    predictor = ConstantPredictor.fit([(None, targets, masks)] * 3, 19)
    assert predictor.constants["semantic"] == 3
    assert 2.0 <= predictor.constants["depth"] <= 3.0  # the two in the middle
    predictions = predictor.predict(targets)
    assert predictions["semantic"].shape == (1, 1, 5, 19)
    assert (predictions["semantic"].argmax(-1) == 3).all()
    np.testing.assert_array_equal(predictions["instance"], 0)
    np.testing.assert_array_equal(predictions["depth"], predictor.constants["depth"])
    assert predictions["depth"].shape == targets["depth"].shape


def test_constant_predictor_over_batches_is_the_median_of_all():
    rng = np.random.default_rng(0)
    values = np.round(rng.gamma(2, 4, (5, 1, 3, 7, 1)) * 256) / 256
    values = values.astype("float32")
    masks = np.ones((5, 1, 3, 7), "float32")
    batches = [(None, {"depth": v}, {"depth": m}) for v, m in zip(values, masks)]
    predictor = ConstantPredictor.fit(batches, 19)
    assert predictor.constants["depth"] == pytest.approx(np.median(values), abs=1 / 256)


def test_constant_predictor_of_a_split_without_labels():
    batch = (
        None,
        {"semantic": np.zeros((1, 2, 2), "int32"), "depth": np.ones((1, 2, 2, 1))},
        {"semantic": np.zeros((1, 2, 2)), "depth": np.zeros((1, 2, 2))},
    )
    with pytest.raises(UserError, match="no valid pixel of the task depth to learn"):
        ConstantPredictor.fit([batch], 19)
    batch[2]["depth"][0, 1, 1] = 1
    with pytest.raises(UserError, match="no valid pixel of the task semantic"):
        ConstantPredictor.fit([batch], 19)
    other = (None, *({task: 1 + x for task, x in part.items()} for part in batch[1:]))
    predictor = ConstantPredictor.fit([batch, other], 19)
    assert predictor.constants == {"semantic": 1, "depth": 2.0}


def test_a_task_without_a_valid_pixel_is_absent(monkeypatch, tmp_path, capsys):
    """In the split val: as a note, in files as null, in tables in words."""
    problem = open_problem(TrainOptions(image_size=(32, 64)))
    targets, _, masks = batch_of_all_tasks()
    image = np.zeros((*masks["depth"].shape, 3), "uint8")
    empty = {**masks, "depth": np.zeros_like(masks["depth"])}
    predictor = ConstantPredictor.fit([(image, targets, masks)], 19)
    monkeypatch.setattr(type(problem), "fit_constant_predictor", lambda _: predictor)
    monkeypatch.setattr(
        type(problem), "make_batches", lambda *args: [(image, targets, empty)]
    )
    write_constant_predictor(problem, tmp_path)
    assert "Note: the split val has no valid pixel of the task depth" in (
        capsys.readouterr().err
    )
    scores = json.loads((tmp_path / "constant_result.json").read_text())
    assert scores["depth/mean_abs"] is None and scores["semantic/miou"] >= 0
    table = format_metrics(scores, scores, {})
    assert table.splitlines()[2].endswith("| absent | absent |")
    empty["semantic"] = np.zeros_like(masks["semantic"])
    with pytest.raises(UserError, match="semantic, whose score chooses the best"):
        write_constant_predictor(problem, tmp_path)


def test_evaluators_score_as_keras_validates(set_policy):
    """The metrics of a table are those that the trainer keeps while it validates."""
    options = TrainOptions(image_size=(32, 64), tasks=("semantic", "depth"))
    problem = open_problem(options)
    trainer = build_trainer(problem)
    trainer.compile("sgd")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 32, 64, 3), "uint8")
    targets = {
        "semantic": rng.integers(0, 19, (5, 32, 64)).astype("int32"),
        "depth": rng.uniform(0, 9, (5, 32, 64, 1)).astype("float32"),
    }
    masks = {
        task: (rng.random((5, 32, 64)) < 0.5).astype("float32") for task in targets
    }
    logs = trainer.evaluate(
        images, targets, 2, sample_weight=masks, return_dict=True, verbose=0
    )

    def cut(values, start):
        return {task: value[start : start + 2] for task, value in values.items()}

    batches = [
        Batch(["a", "b"], images[i : i + 2], cut(targets, i), cut(masks, i))
        for i in (0, 2, 4)
    ]
    scores = MapScores(problem.make_metrics())
    results = evaluate(trainer.network, batches, [scores], 2, tqdm(disable=True))
    assert len(results["metrics"]) == 4
    for key, value in results["metrics"].items():
        assert value == pytest.approx(logs[key], rel=1e-5), key


def test_results_of_all_evaluators_are_one_dict():
    seen = []

    class Recorder:
        def __init__(self, name):
            self.name = name

        def update(self, batch, predictions):
            seen.append((self.name, batch.ids, len(predictions["depth"])))

        def result(self):
            return {self.name: 1}

    inputs = keras.Input((4, 4, 3))
    network = keras.Model(inputs, {"depth": keras.layers.Conv2D(1, 1)(inputs)})
    batches = [
        Batch(ids, np.zeros((len(ids), 4, 4, 3), "float32"), {}, {})
        for ids in (["a", "b"], ["c"])
    ]
    bar = tqdm(total=3, disable=True)
    recorders = [Recorder("first"), Recorder("second")]
    assert evaluate(network, batches, recorders, 2, bar) == {"first": 1, "second": 1}
    assert seen == [
        ("first", ["a", "b"], 2),
        ("second", ["a", "b"], 2),
        ("first", ["c"], 1),
        ("second", ["c"], 1),
    ]
