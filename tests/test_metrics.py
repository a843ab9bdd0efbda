import doctest
import math

import keras
import numpy as np
import pytest
from keras import ops

from mtl_keras import metrics
from mtl_keras.cityscapes import LABEL_IDS, LABEL_SETS, LABELS
from mtl_keras.metrics import EvaluatedMeanIoU
from mtl_keras.tasks import make_metrics


def test_examples_of_the_docstrings():
    result = doctest.testmod(metrics, extraglobs={"keras": keras, "ops": ops})
    assert result.attempted > 0 and result.failed == 0


def random_maps(label_set, seed=0, batch=4, size=(8, 12)):
    """Class indices, scores of other classes, and a mask that ignores void."""
    rng = np.random.default_rng(seed)
    num_classes = len(LABEL_SETS[label_set])
    y_true = rng.integers(0, num_classes, (batch, *size)).astype("int32")
    guess = np.where(rng.random(y_true.shape) < 0.6, y_true, 0)
    guess = np.where(
        rng.random(y_true.shape) < 0.2,
        rng.integers(0, num_classes, y_true.shape),
        guess,
    )
    y_pred = rng.random((*y_true.shape, num_classes)).astype("float32")
    np.put_along_axis(y_pred, guess[..., None], 2.0, axis=-1)
    valid = ~np.array([label.ignored for label in LABEL_SETS[label_set]])[y_true]
    mask = (valid & (rng.random(y_true.shape) < 0.9)).astype("float32")
    return y_true, y_pred, mask


def iou_by_definition(label_set, y_true, y_pred, mask):
    """Hits over pixels that are or were called the class, void pixels left out."""
    labels = LABEL_SETS[label_set]
    guess = y_pred.argmax(-1)
    counts = (mask > 0) & ~np.array([label.ignored for label in labels])[y_true]
    scores = {}
    for index, label in enumerate(labels):
        if label.ignored:
            continue
        truth, called = (y_true == index) & counts, (guess == index) & counts
        union = (truth | called).sum()
        scores[label.name] = (truth & called).sum() / union if union else None
    return scores


@pytest.mark.parametrize("label_set", LABEL_SETS)
def test_miou_is_the_definition(label_set):
    maps = random_maps(label_set)
    metric = EvaluatedMeanIoU(label_set)
    metric.update_state(*maps)
    expected = iou_by_definition(label_set, *maps)
    assert metric.per_class_iou() == pytest.approx(expected)
    assert len(expected) == (7 if label_set == "categories" else 19)
    assert float(metric.result()) == pytest.approx(
        np.mean([score for score in expected.values() if score is not None]), rel=1e-5
    )


def test_miou_is_that_of_the_official_evaluator():
    official = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    )
    y_true, y_pred, _ = random_maps("label_ids")
    confusion = np.zeros((34, 34), np.ulonglong)
    np.add.at(confusion, (y_true.ravel(), y_pred.argmax(-1).ravel()), 1)
    official.args.evalLabels = [label.id for label in LABELS]
    scores = {
        label.name: official.getIouScoreForLabel(label.id, confusion, official.args)
        for label in LABELS
    }
    metric = EvaluatedMeanIoU("label_ids")
    metric.update_state(y_true, y_pred)
    for name, score in metric.per_class_iou().items():
        assert score == pytest.approx(scores.pop(name)), name
    assert all(math.isnan(score) for score in scores.values())  # the ignored ones


def one_hot(classes, num_classes):
    return np.eye(num_classes, dtype="float32")[np.asarray(classes)]


def test_predicted_ignored_classes_are_misses():
    road, sky, parking = (LABEL_IDS[name] for name in ("road", "sky", "parking"))
    y_true = np.array([[[road, road, road, parking]]])
    y_pred = one_hot([[[road, parking, sky, road]]], 34)
    metric = EvaluatedMeanIoU("label_ids")
    metric.update_state(y_true, y_pred)
    scores = metric.per_class_iou()
    assert scores["road"] == pytest.approx(
        1 / 3
    )  # the parking pixel is not a false one
    assert scores["sky"] == 0
    assert [name for name, score in scores.items() if score is not None] == [
        "road",
        "sky",
    ]
    assert float(metric.result()) == pytest.approx(1 / 6)


def test_absent_class_leaves_the_mean_alone():
    metric = EvaluatedMeanIoU("train_ids")
    metric.update_state(np.array([[[0, 1]]]), one_hot([[[0, 1]]], 19))
    assert float(metric.result()) == pytest.approx(1.0)


def test_empty_mask_leaves_everything_alone():
    y_true, y_pred, mask = random_maps("train_ids")
    metric = EvaluatedMeanIoU("train_ids")
    metric.update_state(y_true, y_pred, mask)
    before = float(metric.result())
    metric.update_state(y_true, 1 - y_pred, np.zeros_like(mask))
    assert float(metric.result()) == before


@pytest.mark.parametrize("task", ["semantic", "instance", "depth"])
def test_two_half_batches_equal_one_and_reset_forgets(task):
    y_true, y_pred, mask = example(task)
    whole, halves = make_metrics(task, "train_ids"), make_metrics(task, "train_ids")
    for one, two in zip(whole, halves):
        assert one.name == two.name
        two.update_state(1 - y_true, y_pred, mask)
        two.reset_state()
        one.update_state(y_true, y_pred, mask)
        two.update_state(y_true[:1], y_pred[:1], mask[:1])
        two.update_state(y_true[1:], y_pred[1:], mask[1:])
        assert float(one.result()) == pytest.approx(float(two.result()), rel=1e-6)


def example(task, batch=4, size=(8, 12)):
    if task == "semantic":
        return random_maps("train_ids", batch=batch, size=size)
    rng = np.random.default_rng(3)
    shape = (batch, *size, 2 if task == "instance" else 1)
    y_true, y_pred = rng.normal(size=(2, *shape)).astype("float32")
    return y_true, y_pred, (rng.random(shape[:-1]) < 0.4).astype("float32")


@pytest.mark.parametrize("task", ["instance", "depth"])
def test_regression_metrics_are_numpys(task):
    y_true, y_pred, mask = example(task)
    scores = {}
    for metric in make_metrics(task, "train_ids"):
        metric.update_state(y_true, y_pred, mask)
        scores[metric.name] = float(metric.result())
    errors = (y_true - y_pred)[mask > 0]
    expected = {
        "mean_abs": np.abs(errors).mean(),
        "rms": np.sqrt(np.square(errors).mean()),
    }
    if task == "instance":
        expected["mean_l2"] = np.hypot(errors[:, 0], errors[:, 1]).mean()
    assert scores == pytest.approx(expected, rel=1e-5)


def test_pixel_accuracy():
    y_true, y_pred, mask = example("semantic")
    accuracy = make_metrics("semantic", "train_ids")[1]
    accuracy.update_state(y_true, y_pred, mask)
    expected = (y_pred.argmax(-1) == y_true)[mask > 0].mean()
    assert accuracy.name == "pixel_accuracy"
    assert float(accuracy.result()) == pytest.approx(expected, rel=1e-6)


def test_miou_round_trip():
    metric = EvaluatedMeanIoU("label_ids", name="score")
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(metric)
    )
    assert (restored.label_set, restored.name) == ("label_ids", "score")
    maps = random_maps("label_ids")
    metric.update_state(*maps)
    restored.update_state(*maps)
    assert float(restored.result()) == float(metric.result())
