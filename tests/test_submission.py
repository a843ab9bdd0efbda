"""What is written for the benchmark, read and scored by the official scripts."""

import argparse
import json

import keras
import numpy as np
import pytest
from PIL import Image

from mtl_keras.cityscapes import FILES, IMAGE_SIZE, LABEL_IDS, label_id_table
from mtl_keras.data.batches import Batch
from mtl_keras.errors import UserError
from mtl_keras.experiments.options import EvaluateOptions, TrainOptions
from mtl_keras.experiments.setup import check_evaluation
from mtl_keras.instances import average_precision, encode_offsets
from mtl_keras.serving import export
from mtl_keras.serving.submission import SubmissionWriter

FRAME = "aachen_000000_000019"
SIZE = (64, 128)


def two_cars():
    ids = np.full(SIZE, LABEL_IDS["road"], np.int32)
    ids[:20] = LABEL_IDS["sky"]
    ids[25:45, 10:40] = 26000
    ids[25:45, 60:100] = 26001
    return ids


def perfect_predictions(ids):
    """Logits and offsets of a network that is sure and right, for one frame."""
    classes = np.where(ids >= 1000, ids // 1000, ids)
    logits = 20.0 * (classes[..., None] == label_id_table("train_ids"))
    offsets, _ = encode_offsets(ids)
    return {"semantic": logits[None].astype("float32"), "instance": offsets[None]}


def write(path, ids, **options):
    batch = Batch([FRAME], np.zeros((1, *SIZE, 3), np.uint8), {}, {})
    with SubmissionWriter(path, "train_ids", **options) as writer:
        writer.update(batch, perfect_predictions(ids))


@pytest.fixture
def truth(tmp_path):
    """The true files of the frame, at the size of Cityscapes."""
    ids = two_cars()
    factor = IMAGE_SIZE[0] // SIZE[0]
    large = ids.repeat(factor, 0).repeat(factor, 1)
    folder = tmp_path / "gtFine" / "val" / "aachen"
    folder.mkdir(parents=True)
    for kind, array, dtype in (
        ("semantic", np.where(large >= 1000, large // 1000, large), np.uint8),
        ("instance", large, np.uint16),
    ):
        Image.fromarray(array.astype(dtype)).save(folder / (FRAME + FILES[kind][1]))
    return folder


def test_label_ids_are_read_by_the_official_evaluator(truth, tmp_path, capsys):
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    write(tmp_path / "submission", two_cars())
    path = str(truth / (FRAME + FILES["semantic"][1]))
    args = argparse.Namespace(**vars(official.args))
    args.predictionPath = str(tmp_path / "submission" / "semantic")
    args.predictionWalk, args.quiet, args.JSONOutput = None, True, False
    prediction = official.getPrediction(args, path)
    assert prediction.endswith(f"semantic/{FRAME}_labelIds.png")
    picture = Image.open(prediction)
    assert picture.size == IMAGE_SIZE[::-1] and picture.mode == "L"
    confusion = official.generateMatrix(args)
    args.evalPixelAccuracy = args.evalInstLevelScore = False
    statistics = official.generateInstanceStats(args)
    official.evaluatePair(prediction, path, confusion, statistics, {}, args)
    for name in ("road", "sky", "car"):
        label = LABEL_IDS[name]
        assert official.getIouScoreForLabel(label, confusion, args) > 0.97, name


def test_objects_are_read_by_the_official_evaluator(truth, tmp_path):
    write(tmp_path / "submission", two_cars())
    folder = tmp_path / "submission" / "instances"
    lines = (folder / f"{FRAME}.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split()[1:] for line in lines] == [["26", "1.000000"]] * 2
    for line in lines:
        assert Image.open(folder / line.split()[0]).size == IMAGE_SIZE[::-1]
    scores = average_precision.score_instances(folder, truth, progress=False)
    assert scores["classes"]["car"] == {"ap": 1.0, "ap50": 1.0}


def test_an_earlier_submission_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "submission"
    write(path, two_cars())
    (path / "instances" / f"{FRAME}.txt").write_text("an older one")
    write(path, two_cars())
    assert "masks/" in (path / "instances" / f"{FRAME}.txt").read_text()
    assert [child.name for child in tmp_path.iterdir()] == ["submission"]
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="also holds notes.txt"):
        write(path, two_cars())
    assert (path / "notes.txt").read_text() == "mine"


def test_models_and_submissions_do_not_replace_each_other(tmp_path):
    image = keras.Input((4, 6, 3))
    network = keras.Model(image, {"depth": keras.layers.Conv2D(1, 1)(image)})
    export(network, tmp_path / "model")
    with pytest.raises(UserError, match="holds a model, which a submission does not"):
        write(tmp_path / "model", two_cars())
    assert (tmp_path / "model" / "saved_model.pb").exists()
    write(tmp_path / "sent", two_cars())
    with pytest.raises(UserError, match="holds a submission, which a model does not"):
        export(network, tmp_path / "sent")
    assert (tmp_path / "sent" / "semantic").is_dir()


def test_an_interrupted_submission_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with SubmissionWriter(tmp_path / "submission", "train_ids"):
            raise KeyboardInterrupt
    assert not any(tmp_path.iterdir())


def test_options_of_the_clustering_are_followed(tmp_path):
    write(tmp_path / "submission", two_cars(), min_cluster_size=10**4)
    folder = tmp_path / "submission" / "instances"
    assert (folder / f"{FRAME}.txt").read_text(encoding="utf-8") == ""
    assert json.loads((tmp_path / "submission" / "mtl_keras_export.json").read_text())


def test_runs_without_classes_are_refused():
    with_depth = TrainOptions(tasks=("depth",))
    options = EvaluateOptions(run="runs/a", submission="out")
    with pytest.raises(UserError, match="--submission needs the task semantic"):
        check_evaluation(options, with_depth)
    check_evaluation(options, TrainOptions())
    digits = TrainOptions(dataset="digits", tasks=("class",))
    with pytest.raises(UserError, match="--submission is about street scenes"):
        check_evaluation(options, digits)
    objects = EvaluateOptions(run="a", submission="out", method="hdbscan")
    check_evaluation(objects, TrainOptions())
    with pytest.raises(UserError, match="--method is about objects"):
        check_evaluation(objects, TrainOptions(tasks=("semantic",)))
