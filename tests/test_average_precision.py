import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mtl_keras.cityscapes import (
    LABEL_IDS,
    LABEL_SETS,
    LABELS,
    THING_IDS,
    class_index_table,
)
from mtl_keras.errors import UserError
from mtl_keras.experiments.options import EvaluateOptions, TrainOptions
from mtl_keras.experiments.setup import check_evaluation
from mtl_keras.instances import average_precision, decode_objects, encode_offsets
from mtl_keras.instances.decoding import choose_classes
from mtl_keras.instances.objects import ObjectScorer
from mtl_keras.instances.offsets import keep_things
from mtl_keras.metrics import EvaluatedMeanIoU

CAR, PERSON = LABEL_IDS["car"], LABEL_IDS["person"]


def street(*boxes, size=(40, 60)):
    """Instance ids on a road: one `(id, top, bottom, left, right)` after another."""
    ids = np.full(size, LABEL_IDS["road"], np.uint16)
    for number, top, bottom, left, right in boxes:
        ids[top:bottom, left:right] = number
    return ids


TWO_CARS = street((26000, 5, 20, 5, 20), (26001, 5, 20, 30, 45))  # 225 pixels each


def score(tmp_path, *frames, name="frame_{:06d}_000019"):
    """The score of frames `(true ids, predicted)`.

    What is predicted are ids, or a list of `(mask, label id, confidence)`.
    """
    (tmp_path / "truth").mkdir(parents=True)
    for number, (truth, predicted) in enumerate(frames):
        frame_id = name.format(number)
        average_precision.write_truth(tmp_path / "truth", frame_id, truth)
        if isinstance(predicted, np.ndarray):
            predicted = [
                (predicted == value, value // 1000, 0.9)
                for value in np.unique(predicted[predicted >= 1000])
            ]
        instances = np.zeros(truth.shape, int)
        for index, (mask, _, _) in enumerate(predicted, start=1):
            instances[mask] = index
        average_precision.write_prediction(
            tmp_path / "predictions",
            frame_id,
            instances,
            [(label, confidence) for _, label, confidence in predicted],
        )
    return average_precision.score_instances(
        tmp_path / "predictions", tmp_path / "truth", progress=False
    )


# What AP is.


def test_perfect(tmp_path):
    other = street((24000, 0, 30, 3, 9), (33000, 10, 30, 20, 40))
    result = score(tmp_path, (TWO_CARS, TWO_CARS), (other, other))
    assert result["ap"] == result["ap50"] == 1.0
    present = {name for name, value in result["classes"].items() if value}
    assert present == {"car", "person", "bicycle"}
    assert result["classes"]["car"] == {"ap": 1.0, "ap50": 1.0}
    assert result["classes"]["train"] is None
    assert [LABEL_IDS[name] for name in result["classes"]] == list(THING_IDS)
    json.dumps(result, allow_nan=False)


def test_nothing_predicted(tmp_path):
    result = score(tmp_path, (TWO_CARS, []))
    assert result["ap"] == result["ap50"] == 0.0


def test_all_wrong(tmp_path):
    elsewhere = street((26000, 25, 40, 5, 20))
    assert score(tmp_path / "a", (TWO_CARS, elsewhere))["ap50"] == 0.0
    person = [(TWO_CARS == 26000, PERSON, 0.9)]
    result = score(tmp_path / "b", (TWO_CARS, person))
    assert result["ap50"] == 0.0 and result["classes"]["person"] is None


def test_one_of_two_objects_found(tmp_path):
    result = score(tmp_path, (TWO_CARS, [(TWO_CARS == 26001, CAR, 0.9)]))
    assert result["ap"] == pytest.approx(0.5) and result["ap50"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "confidence, expected",
    [
        (0.5, 1.0),  # below both
        (0.85, (1 + 1 + 1 / 2 + 2 / 3) / 4),  # steps of the curve centre on its points
        (0.95, (1 + 0 + 2 / 3) / 4),
    ],
)
def test_a_false_object_costs_by_its_rank(tmp_path, confidence, expected):
    predicted = [
        (TWO_CARS == 26000, CAR, 0.9),
        (TWO_CARS == 26001, CAR, 0.8),
        (street((26009, 25, 40, 5, 20)) == 26009, CAR, confidence),
    ]
    result = score(tmp_path, (TWO_CARS, predicted))
    assert result["ap50"] == pytest.approx(expected)


def test_overlap(tmp_path):
    # Rows 5 to 16 of 5 to 20: an overlap of 12/15, above 0.5 to 0.75 of the ten.
    # (0.8 is not above 0.8.)
    predicted = street((26000, 5, 17, 5, 20), (26001, 5, 17, 30, 45))
    result = score(tmp_path, (TWO_CARS, predicted))
    assert result["ap50"] == 1.0 and result["ap"] == pytest.approx(0.6)


def test_two_halves_are_two_false_objects(tmp_path):
    left, right = street((26000, 5, 20, 5, 12)), street((26000, 5, 20, 13, 20))
    predicted = [(left == 26000, CAR, 0.9), (right == 26000, CAR, 0.8)]
    assert score(tmp_path, (TWO_CARS, predicted))["ap50"] == 0.0


def test_what_is_not_evaluated_does_not_count(tmp_path):
    truth = street(
        (26000, 0, 15, 0, 15),
        (26001, 20, 29, 0, 11),  # 99 pixels
        (26, 20, 40, 20, 40),  # a group
        (29000, 0, 15, 20, 35),  # a caravan
        (LABEL_IDS["ego vehicle"], 35, 40, 0, 15),
    )
    found = [(truth == 26000, CAR, 0.5)]
    ignored = [(truth == number, CAR, 0.9) for number in (26001, 26, 1)]
    assert score(tmp_path / "a", (truth, found))["ap"] == 1.0
    assert score(tmp_path / "b", (truth, found + ignored))["ap"] == 1.0
    road = street((26000, 30, 40, 45, 60)) == 26000
    assert score(tmp_path / "c", (truth, [*found, (road, CAR, 0.9)]))["ap"] < 1.0


def test_all_that_is_predicted_is_to_be_ignored(tmp_path):
    # The official evaluator fails here with an IndexError.
    truth = street((26000, 0, 15, 0, 15), (26, 20, 40, 20, 40))
    result = score(tmp_path, (truth, [(truth == 26, CAR, 0.9)]))
    assert result["ap"] == 0.0 and result["classes"]["car"] == {"ap": 0.0, "ap50": 0.0}


def test_frames_without_objects(tmp_path):
    empty = street()
    assert score(tmp_path / "a", (TWO_CARS, TWO_CARS), (empty, empty))["ap"] == 1.0
    for name, predicted in {"b": empty, "c": TWO_CARS}.items():
        result = score(tmp_path / name, (empty, predicted))
        assert result["ap"] is None and result["ap50"] is None
        assert set(result["classes"].values()) == {None}


# How the official evaluator is called.


def test_frame_without_prediction(tmp_path):
    score(tmp_path, (TWO_CARS, TWO_CARS))
    (tmp_path / "predictions" / "frame_000000_000019.txt").unlink()
    with pytest.raises(UserError, match="frame_000000_000019.txt is missing"):
        average_precision.score_instances(tmp_path / "predictions", tmp_path / "truth")


def test_no_frame(tmp_path):
    (tmp_path / "truth").mkdir()
    assert average_precision.score_instances(tmp_path, tmp_path / "truth")["ap"] is None


def test_unknown_label(tmp_path):
    with pytest.raises(UserError, match="frame x has the instance id 35001"):
        average_precision.write_truth(tmp_path, "x", street((35001, 0, 5, 0, 5)))


def test_names_with_spaces(tmp_path):
    frame = (TWO_CARS, TWO_CARS)
    assert score(tmp_path / "a b", frame, name="my frame {}")["ap"] == 1.0


def test_submission_format(tmp_path):
    score(tmp_path, (TWO_CARS, [(TWO_CARS == 26001, CAR, 0.25)]))
    text = (tmp_path / "predictions" / "frame_000000_000019.txt").read_text()
    assert text == "masks/frame_000000_000019_1.png 26 0.250000\n"
    with Image.open(tmp_path / "predictions" / text.split()[0]) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image) > 0, TWO_CARS == 26001)


def test_leaves_no_trace(tmp_path, monkeypatch):
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as tool

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = dict(vars(tool.args))
    score(tmp_path / "a", (TWO_CARS, TWO_CARS))
    # A second data set with the same names is not mistaken for the first.
    other = street((26000, 20, 40, 20, 40))
    assert score(tmp_path / "a" / "b", (other, other))["ap"] == 1.0
    assert not list((tmp_path / "cwd").iterdir())
    after = vars(tool.args)
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before if name != "instLabels")
    assert not (pathlib.Path(tool.__file__).parent / "gtInstances.json").exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_numpy_is_left_as_it_was(is_there, monkeypatch):
    monkeypatch.delattr(np, "in1d", raising=False)
    own = object()
    if is_there:
        monkeypatch.setattr(np, "in1d", own, raising=False)
    with pytest.raises(KeyError):
        with average_precision._numpy_with_in1d():
            assert (np.in1d is own) == is_there
            raise KeyError
    assert hasattr(np, "in1d") == is_there


@pytest.mark.parametrize("label_set", ["label_ids", "train_ids"])
def test_miou_equals_the_official_pixel_level_evaluator(tmp_path, label_set):
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as tool

    rng = np.random.default_rng(0)
    labels = LABEL_SETS[label_set]
    label_ids = np.array([label.id for label in labels])
    # A class that is absent, and predictions of it and of ignored classes.
    true_ids = rng.choice([label.id for label in LABELS[:31]], (2, 24, 32))
    predicted = np.where(
        rng.random(true_ids.shape) < 0.6,
        np.maximum(class_index_table(label_set)[true_ids], 0),
        rng.integers(0, len(labels) - 1, true_ids.shape),
    )
    paths = {"true": [], "predicted": []}
    for kind, maps in {"true": true_ids, "predicted": label_ids[predicted]}.items():
        for number, ids in enumerate(maps):
            paths[kind].append(str(tmp_path / f"{kind}_{number}_labelIds.png"))
            Image.fromarray(ids.astype(np.uint8)).save(paths[kind][-1])
    args = tool.CArgs()
    vars(args).update(vars(tool.args))
    args.evalInstLevelScore, args.quiet, args.JSONOutput = False, True, False
    official = tool.evaluateImgLists(paths["predicted"], paths["true"], args)

    metric = EvaluatedMeanIoU(label_set)
    ignored = np.array([label.ignored for label in LABELS])
    index = np.maximum(class_index_table(label_set)[true_ids], 0)
    one_hot = np.eye(len(labels), dtype=np.float32)[predicted]
    metric.update_state(index, one_hot, (~ignored[true_ids]).astype(np.float32))
    assert float(metric.result()) == pytest.approx(
        official["averageScoreClasses"], abs=1e-6
    )
    for name, iou in metric.per_class_iou().items():
        expected = official["classScores"][name]
        assert (iou is None) == np.isnan(expected)
        assert iou is None or iou == pytest.approx(expected, abs=1e-6)


# From votes to objects.


def busy_street():
    return street(
        (26000, 5, 20, 5, 20),
        (26001, 8, 20, 20, 32),  # touches the first
        (24000, 3, 25, 24, 28),  # cuts the second in two
        (33000, 25, 38, 30, 50),
    )


def test_true_votes_recover_the_objects():
    ids = busy_street()
    offsets, _ = encode_offsets(ids)
    probability = np.full(ids.shape, 0.25)
    probability[ids == 26001] = 0.75
    instances, objects = decode_objects(offsets, keep_things(ids // 1000), probability)
    assert [label for label, _ in objects] == [24, 26, 26, 33]
    assert [confidence for _, confidence in objects] == [0.25, 0.25, 0.75, 0.25]
    order = [24000, 26000, 26001, 33000]
    for number, value in enumerate(order, start=1):
        np.testing.assert_array_equal(instances == number, ids == value)


@pytest.mark.parametrize("method", ["optics", "hdbscan", "optics-xi"])
def test_true_votes_recover_the_objects_by_every_method(method):
    # The centres are no float32 numbers, so that the votes of an object differ.
    ids = street(
        (26000, 3, 27, 3, 14), (26001, 10, 29, 16, 33), (26002, 11, 31, 40, 52)
    )
    ids[11, 40] = LABEL_IDS["road"]
    offsets, _ = encode_offsets(ids)
    offsets += np.random.default_rng(0).normal(0, 1e-5, offsets.shape)
    instances, objects = decode_objects(
        offsets, keep_things(ids // 1000), np.ones(ids.shape), method
    )
    assert objects == [(CAR, 1.0)] * 3
    for number in range(3):
        np.testing.assert_array_equal(instances == number + 1, ids == 26000 + number)


def test_no_object_to_decode():
    blank = np.zeros((8, 9), np.uint8)
    instances, objects = decode_objects(np.zeros((8, 9, 2)), blank, blank)
    assert not instances.any() and objects == []


def test_workers_need_not_wait_for_keras():
    code = (
        "import sys, mtl_keras.instances.objects; "
        "print(*{'keras', 'tensorflow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_choose_classes():
    logits = np.log([[[[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]]])
    logits = np.pad(logits, [(0, 0)] * 3 + [(0, 16)], constant_values=-np.inf)
    logits = np.roll(logits, 12, axis=-1)  # rider, car, truck
    ids = np.array([[[27003, 26]]])
    classes, probability = choose_classes(logits, ids, "train_ids", "predicted")
    np.testing.assert_array_equal(classes, [[[26, 25]]])
    np.testing.assert_allclose(probability, [[[0.5, 0.6]]], rtol=1e-6)
    classes, probability = choose_classes(logits, ids, "train_ids", "true")
    np.testing.assert_array_equal(classes, [[[27, 0]]])
    assert probability[0, 0, 0] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="Without logits there are no predicted"):
        choose_classes(None, ids, "train_ids", "predicted")
    classes, probability = choose_classes(None, ids, "train_ids", "true")
    np.testing.assert_array_equal(classes, [[[27, 0]]])
    np.testing.assert_array_equal(probability, [[[1, 1]]])


def predict_perfectly(ids):
    classes = np.stack([keep_things(frame // 1000) for frame in ids])
    return {
        "semantic": 9.0 * np.eye(34, dtype=np.float32)[classes],
        "instance": np.stack([encode_offsets(frame)[0] for frame in ids]),
    }


@pytest.mark.parametrize(
    "num_frames", [2, pytest.param(40, marks=pytest.mark.slow)], ids=["one", "pool"]
)
def test_object_score(tmp_path, num_frames):
    ids = np.stack([busy_street(), TWO_CARS] * (num_frames // 2))
    names = [f"street_{number:06d}_000019" for number in range(num_frames)]
    with ObjectScorer(
        num_frames, "label_ids", "predicted", "optics", tmp_path / "kept"
    ) as objects:
        decoded = objects.update(names, predict_perfectly(ids), ids)
    assert len(decoded) == num_frames
    classes, instances = decoded[1]
    assert set(np.unique(classes)) == {0, CAR} and instances.max() == 2
    result = objects.result()["instances"]
    assert result["ap"] == result["upper_bound"]["ap"] == 1.0
    assert (result["object_classes"], result["method"]) == ("predicted", "optics")
    kept = [*(tmp_path / "kept").glob("*.txt")]
    assert sorted(path.stem for path in kept) == names
    with ObjectScorer(1, "label_ids", "true", "optics", tmp_path / "kept"):
        assert not [*(tmp_path / "kept").glob("*.txt")]


@pytest.mark.parametrize(
    "name", ["notes.txt", "masks/mine.png", "masks/notes.txt", "more/a_0_0.txt"]
)
def test_object_score_deletes_predictions_alone(tmp_path, name):
    average_precision.write_prediction(tmp_path, "a_0_0", TWO_CARS, [(CAR, 0.5)] * 2)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is not a prediction"):
        ObjectScorer(1, "label_ids", "true", "optics", tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert (tmp_path / "a_0_0.txt").exists()
    (tmp_path / name).unlink()
    ObjectScorer(1, "label_ids", "true", "optics", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("left_over, found", [("noise", False), ("nearest", True)])
def test_left_over_pixels_reach_the_score(left_over, found):
    ids = TWO_CARS[None]
    predictions = predict_perfectly(ids)
    stray = tuple(np.argwhere(ids[0] >= 1000)[0])
    predictions["instance"][0][stray] += 500
    with ObjectScorer(1, "label_ids", "true", "optics", left_over=left_over) as objects:
        ((_, instances),) = objects.update(["a_0_0"], predictions, ids)
    assert (instances[stray] > 0) == found
    assert objects.result()["instances"]["left_over"] == left_over


def test_options_of_the_method_reach_the_decoder():
    ids = TWO_CARS[None]
    predictions = predict_perfectly(ids)
    size = int(np.bincount(ids[ids >= 1000])[26000:].max())
    for min_samples, found in ((size, True), (size + 1, False)):
        options = {"min_samples": min_samples, "max_eps": 5}
        with ObjectScorer(1, "label_ids", "true", **options) as objects:
            ((_, instances),) = objects.update(["a_0_0"], predictions, ids)
        assert instances.any() == found
        scores = objects.result()["instances"]
        assert scores.items() >= {"method": "optics", **options}.items()


def test_upper_bound_does_not_depend_on_the_network():
    ids = busy_street()[None]
    predictions = predict_perfectly(ids)
    predictions["instance"] *= -5  # no vote near another
    with ObjectScorer(1, "label_ids", "true", "optics") as objects:
        objects.update(["a_0_0"], predictions, ids)
    result = objects.result()["instances"]
    assert result["upper_bound"]["ap50"] == 1.0 and result["ap50"] < 1.0


@pytest.mark.parametrize(
    "tasks, classes, message",
    [
        (("semantic", "depth"), "predicted", "needs the task instance"),
        (("semantic", "depth"), "true", "needs the task instance"),
        (("instance",), "predicted", "--object-classes true"),
    ],
)
def test_tasks_that_do_not_suffice(tasks, classes, message):
    with pytest.raises(UserError, match=message):
        check_evaluation(
            EvaluateOptions(instances=True, object_classes=classes),
            TrainOptions(tasks=tasks),
        )


def test_tasks_that_suffice():
    for tasks, classes in (
        (("semantic", "instance"), "predicted"),
        (("instance",), "true"),
    ):
        check_evaluation(
            EvaluateOptions(instances=True, object_classes=classes),
            TrainOptions(tasks=tasks),
        )


# The script.


@pytest.mark.slow
def test_evaluate_instances(tmp_path):
    from mtl_keras.streets.scenes import write_cityscapes_tree

    tree, run = tmp_path / "tree", tmp_path / "run"
    write_cityscapes_tree(
        tree, {"train": 4, "val": 3, "test": 2}, (64, 128), progress=False
    )
    root = pathlib.Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}

    def call(script, *arguments):
        return subprocess.run(
            [sys.executable, str(root / script), *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    training = ["--batch-size", 2, "--steps", 2, "--output"]
    done = call("train.py", "--data", tree, *training, run)
    assert done.returncode == 0, done.stderr
    for classes in ("predicted", "true"):
        flags = ("--instances", "--object-classes", classes, "--predictions")
        done = call("evaluate.py", run, *flags)
        assert done.returncode == 0, done.stderr
        scores = json.loads((run / "metrics.json").read_text())
        assert 0 <= scores["metrics"]["instance/ap"] <= 1
        assert scores["constant_predictor"]["instance/ap50"] == 0.0
        assert scores["instances"]["object_classes"] == classes
        assert scores["instances"]["upper_bound"]["ap50"] > 0.95
        table = (run / "table.md").read_text()
        assert "AP50 %" in table and "true votes and classes, decoded" in table
        assert (run / "figures" / "instances_val.png").stat().st_size > 10_000
    assert len([*(run / "predictions/val/instances").glob("*.txt")]) == 3
    left_over = ("--left-over", "nearest")
    done = call("evaluate.py", run, "--instances", *left_over)
    assert done.returncode == 0, done.stderr
    assert "left-over pixels to the nearest" in done.stdout
    scores = json.loads((run / "metrics.json").read_text())
    assert scores["instances"]["left_over"] == "nearest"
    done = call("evaluate.py", run, *left_over)
    assert done.returncode == 2
    assert "--left-over is about objects; add --instances." in done.stderr
    done = call("evaluate.py", run, "--instances", "--split", "test")
    assert done.returncode == 0 and "no labels" in done.stdout, done.stderr
    assert (run / "figures" / "instances_test.png").exists()

    other = tmp_path / "depth"
    done = call("train.py", "--data", tree, "--tasks", "depth", *training, other)
    assert done.returncode == 0, done.stderr
    done = call("evaluate.py", other, "--instances")
    assert done.returncode == 2 and "needs the task instance" in done.stderr
