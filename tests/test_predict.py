"""Pictures in, answers out: reading, enlarging, objects, files, and the command."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from PIL import Image

from mtl_keras.cityscapes import LABEL_IDS, label_id_table
from mtl_keras.commands import predict
from mtl_keras.commands.console import run_command
from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import parse_options
from mtl_keras.experiments.options import PredictOptions, TrainOptions, write_options
from mtl_keras.figures.panel import draw_panel
from mtl_keras.instances import encode_offsets
from mtl_keras.model import build_network, build_small_network
from mtl_keras.serving import ModelFacts, answers, export, models, pictures, videos
from mtl_keras.streets import render_scene

ROOT = Path(__file__).parents[1]
SIZE = (32, 64)
CAR = LABEL_IDS["car"]


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(3)
    return build_network("mtl", "small", SIZE, 19)


@pytest.fixture(scope="module")
def run(network, tmp_path_factory):
    """A run directory with a checkpoint, as far as a prediction needs it."""
    from mtl_keras.experiments import setup
    from mtl_keras.experiments.problems import open_problem

    directory = tmp_path_factory.mktemp("runs") / "run"
    (directory / "checkpoints").mkdir(parents=True)
    options = TrainOptions(image_size=SIZE, output=str(directory))
    write_options(options, directory / "options.json")
    trainer = setup.build_trainer(open_problem(options))
    trainer.network.set_weights(network.get_weights())
    trainer.save_weights(directory / "checkpoints" / "best.weights.h5")
    return directory


@pytest.fixture
def street():
    return render_scene(7, (48, 80))["image"]


def colors(*size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)


# Reading.


@pytest.mark.parametrize("ending", ["png", "bmp", "webp"])
def test_pictures_of_every_kind_are_read(tmp_path, ending):
    expected = colors(5, 7)
    options = {"lossless": True} if ending == "webp" else {}
    path = tmp_path / f"a.{ending}"
    Image.fromarray(expected).save(path, **options)
    np.testing.assert_array_equal(pictures.read_picture(path), expected)


def test_orientation_is_applied(tmp_path):
    expected = colors(5, 7)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored as if the camera lay on its left side
    Image.fromarray(np.rot90(expected)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pictures.read_picture(tmp_path / "a.png"), expected)


def test_other_modes_become_rgb(tmp_path):
    grey = np.arange(35, dtype=np.uint8).reshape(5, 7)
    rgb = np.stack([grey] * 3, -1)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 256 + 99).save(tmp_path / "deep.png")
    Image.fromarray(rgb).convert("P").save(tmp_path / "palette.png")
    for name in ("grey", "deep"):
        read = pictures.read_picture(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read, rgb)
    assert pictures.read_picture(tmp_path / "palette.png").shape == (5, 7, 3)
    alpha = np.full((5, 7), 255, np.uint8)
    alpha[0] = 0
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "alpha.png")
    read = pictures.read_picture(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read[1:], rgb[1:])
    assert (read[0] == 255).all()  # what is transparent is white
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert (
        abs(pictures.read_picture(tmp_path / "print.jpg").astype(int) - rgb).max() < 9
    )


def test_what_is_not_a_picture_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png is empty\.$"):
        pictures.read_picture(path)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match=r"a\.png is not a picture"):
        pictures.read_picture(path)
    Image.fromarray(colors(50, 70)).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        pictures.read_picture(path)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 34)
    Image.fromarray(colors(5, 7)).save(path)
    with pytest.raises(UserError, match="7x5 pixels, more than"):
        pictures.read_picture(path)


def test_names_stand_for_files(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    expected = [tmp_path / "a.JPG", tmp_path / "b.png"]
    assert pictures.find_pictures([str(tmp_path)]) == expected
    assert pictures.find_pictures([str(tmp_path / "*.png")]) == expected[1:]
    assert pictures.find_pictures([str(p) for p in expected[::-1]]) == expected[::-1]
    with pytest.raises(UserError, match="There is no file"):
        pictures.find_pictures([str(tmp_path / "c.png")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no picture"):
        pictures.find_pictures([str(tmp_path / "empty")])
    sentence = "Passed over in the given folders: 1 folder and 1 other file."
    assert pictures.describe_passed_over([str(tmp_path)] * 2) == sentence
    assert pictures.describe_passed_over([str(p) for p in expected]) == ""


def test_files_of_one_stem_keep_their_endings():
    paths = [Path("x/a.png"), Path("x/A.jpg"), Path("y/b.png")]
    assert [*pictures.name_answers(paths).values()] == ["a.png", "A.jpg", "b"]


# From outputs to answers.


def test_classes_are_decided_after_enlarging():
    """Where class 1 is sure of itself it reaches beyond the middle of two pixels."""
    probabilities = np.array([[[0.6, 0.4], [0.1, 0.9]]])
    found = answers.enlarge_argmax(probabilities, (1, 8))
    # At centres -.375 .. 1.375 of the small pixels: .6 - .5 x crosses .5 at x = .2.
    np.testing.assert_array_equal(found[0], [0, 0, 0, 1, 1, 1, 1, 1])
    many = np.random.default_rng(0).random((6, 9, 19))
    np.testing.assert_array_equal(answers.enlarge_argmax(many, (6, 9)), many.argmax(-1))


@pytest.mark.parametrize("size", [(33, 50), (5, 4), (8, 12)])
@pytest.mark.parametrize("sharpness", [0.1, 2.0, 20.0])
def test_no_class_is_overlooked_when_probabilities_are_enlarged(size, sharpness):
    """Classes that cannot win are passed over; all that can are there."""
    rng = np.random.default_rng(1)
    values = np.exp(sharpness * rng.normal(size=(8, 12, 19)))
    values[..., 15:] *= 1e-3  # never win
    values = (values / values.sum(-1, keepdims=True)).astype(np.float32)
    planes = [
        cv2.resize(np.ascontiguousarray(values[..., k]), size[::-1]) for k in range(19)
    ]
    expected = np.stack(planes, -1).argmax(-1)
    np.testing.assert_array_equal(answers.enlarge_argmax(values, size), expected)


def outputs_of(ids, disparity):
    """What a perfect network returns for a map of instance ids."""
    classes = np.where(ids >= 1000, ids // 1000, LABEL_IDS["road"])
    semantic = (classes[..., None] == label_id_table("train_ids")).astype("float32")
    offsets, _ = encode_offsets(ids)
    depth = np.full((*ids.shape, 1), disparity, "float32")
    return {"semantic": semantic, "instance": offsets, "depth": depth}


def test_objects_are_found_and_described():
    ids = np.zeros((40, 60), np.int32)
    ids[5:15, 4:14], ids[20:30, 30:50] = 1000 * CAR, 1000 * CAR + 1
    lens = answers.StereoCamera(focal=1000.0, baseline=0.2)
    answer = answers.make_answer(outputs_of(ids, 5.0), (80, 120), camera=lens)
    assert [thing["class"] for thing in answer.objects] == ["car", "car"]
    first, second = answer.objects
    assert first["number"] == 1 and first["confidence"] == 1
    np.testing.assert_allclose(first["box"], [8, 10, 28, 30], atol=1)
    np.testing.assert_allclose(second["centre"], [79.5, 49.5], atol=0.6)
    assert first["pixels"] == (answer.instances == 1).sum()
    assert first["median_disparity"] == 10.0  # the picture is twice as wide
    assert first["distance_m"] == 20.0  # 1000 * 0.2 / 10
    np.testing.assert_array_equal(answer.classes[answer.instances > 0], CAR)
    coded = answers.encode_instances(answer)
    assert coded.dtype == np.uint16
    numbers = {1000 * CAR, 1000 * CAR + 1, LABEL_IDS["road"]}
    assert set(np.unique(coded)) == numbers
    panel = draw_panel(np.zeros((80, 120, 3), np.uint8), *answer[:3], answer.objects)
    assert panel.dtype == np.uint8 and 960 <= panel.shape[1] <= 1000
    # Frames of a video have one size, whatever is in them.
    picture = np.zeros((80, 120, 3), np.uint8)
    sizes = {
        draw_panel(picture, np.full((80, 120), k, np.uint8), None, None, [], True).shape
        for k in (7, CAR)
    }
    assert len(sizes) == 1


def test_tasks_that_are_missing_are_left_out():
    outputs = outputs_of(np.zeros((8, 8), np.int32), 3.0)
    answer = answers.make_answer({"depth": outputs["depth"]}, (16, 16))
    assert answer.classes is None and answer.instances is None
    np.testing.assert_array_equal(answer.disparity, np.full((16, 16), 6, "float32"))
    files = answers.encode_answer(answer, ["classes", "disparity", "json"])
    assert set(files) == {"disparity", "json"}
    assert json.loads(files["json"]) == {"objects": []}
    panel = draw_panel(np.zeros((16, 16, 3), np.uint8), *answer[:3], [])
    assert panel.shape[1] > 900  # input and depth


def test_a_run_and_its_saved_model_answer_alike(network, street, tmp_path):
    export(network, tmp_path / "model", facts=ModelFacts("train_ids"))
    own = models.serve_network(network, "train_ids", "run")
    exported = models.load_saved_model(tmp_path / "model")
    assert own.image_size == exported.image_size == SIZE
    assert own.label_set == exported.label_set == "train_ids"
    others = [street, np.ascontiguousarray(street[::-1, :40])]
    for a, b in zip(own.predict(others), exported.predict(others), strict=True):
        assert set(a) == set(b) == {"semantic", "instance", "depth"}
        for task in a:
            np.testing.assert_allclose(a[task], b[task], rtol=1e-4, atol=1e-4)


def test_other_models_are_refused(tmp_path):
    digits = build_small_network((8, 8))
    with pytest.raises(UserError, match="is not a model of street scenes"):
        models.serve_network(digits, "train_ids", "runs/digits")
    export(build_network("mtl", "small", SIZE, 5), tmp_path / "five")
    with pytest.raises(UserError, match="does not say what its classes are"):
        models.load_saved_model(tmp_path / "five")
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be served"):
        models.load_saved_model(tmp_path)


# The command.


def call(*arguments):
    """The exit status of the command."""
    try:
        run_command(predict.main, [*map(str, arguments)])
    except SystemExit as end:
        return end.code
    return 0


def test_a_folder_becomes_answers(run, street, tmp_path, capsys):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, picture in {"a.png": street, "b.jpg": street[:, ::2]}.items():
        Image.fromarray(picture).save(folder / name)
    (folder / "c.png").write_bytes(b"hello")
    assert call(run, folder, "--output", output, "--batch-size", 2) == 1
    said = capsys.readouterr()
    assert "Left out: " in said.err and "c.png is not a picture.\n" in said.err
    assert f"The model is {run}." in said.out
    assert f"2 pictures predicted to {output}, " in said.out
    assert "per second; 1 left out." in said.out
    endings = (".json", ".png", "_disparity.png", "_instanceIds.png", "_labelIds.png")
    written = {path.name for path in output.iterdir()}
    assert written == {name + ending for name in "ab" for ending in endings}
    for name, size in {"a": (80, 48), "b": (40, 48)}.items():
        for ending in endings[2:]:
            assert Image.open(output / f"{name}{ending}").size == size
        facts = json.loads((output / f"{name}.json").read_text(encoding="utf-8"))
        assert (facts["width"], facts["height"]) == size and facts["camera"] is None
        ids = np.asarray(Image.open(output / f"{name}_instanceIds.png"))
        classes = np.asarray(Image.open(output / f"{name}_labelIds.png"))
        np.testing.assert_array_equal(np.where(ids >= 1000, ids // 1000, ids), classes)


def test_nothing_is_overwritten_without_a_word(run, street, tmp_path, capsys):
    picture, output = tmp_path / "a.png", tmp_path / "out"
    Image.fromarray(street).save(picture)
    arguments = (run, picture, "--output", output, "--only", "disparity,classes")
    assert call(*arguments) == 0
    before = {path: path.read_bytes() for path in output.iterdir()}
    assert {p.name for p in before} == {"a_labelIds.png", "a_disparity.png"}
    capsys.readouterr()
    assert call(*arguments) == 2
    assert "a_labelIds.png exists; choose another --output" in capsys.readouterr().err
    assert call(*arguments, "--overwrite") == 0
    assert {path: path.read_bytes() for path in output.iterdir()} == before
    assert call(run, picture, "--output", tmp_path, "--overwrite") == 2
    assert "a.png is in" in capsys.readouterr().err
    assert call(run, picture, "--output", picture) == 2
    assert "is not a directory" in capsys.readouterr().err


def test_two_pictures_of_one_stem_are_both_written(run, street, tmp_path, capsys):
    folder, output = tmp_path / "in", tmp_path / "out"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "a.jpg", "b.png", "more/b.png"):
        Image.fromarray(street).save(folder / name)
    arguments = (run, folder, "--output", output, "--only", "json")
    assert call(*arguments) == 0
    assert "Passed over in the given folders: 1 folder." in capsys.readouterr().err
    written = {path.name for path in output.iterdir()}
    assert written == {"a.png.json", "a.jpg.json", "b.json"}
    two = (folder / "b.png", folder / "more" / "b.png")
    assert call(run, *two, "--output", tmp_path / "other") == 2
    assert "would both be written to" in capsys.readouterr().err
    # The answer to one picture has the name of the other's.
    Image.fromarray(street).save(folder / "b_labelIds.png")
    assert call(run, folder, "--output", tmp_path / "other") == 2
    assert "would both be written to" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_answers_are_not_mixed_with_inputs(run, street, tmp_path, capsys):
    Image.fromarray(street).save(tmp_path / "a.jpg")
    assert call(run, tmp_path, "--output", tmp_path) == 2
    assert "where answers would mix with inputs" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize("name", ["onnx/model.onnx", "onnx", "litert/model.tflite"])
def test_other_models_are_not_taken_for_pictures(tmp_path, capsys, name):
    for file in ("onnx/model.onnx", "litert/model.tflite"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_bytes(b"x")
    assert call(tmp_path / name, "a.png") == 2
    assert "is a file of a model; only a run of train.py" in capsys.readouterr().err


def test_the_first_argument_is_the_model_or_a_picture(run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no runs/dmeo; the first argument is the mod"):
        predict.split_inputs(["runs/dmeo", "a.png"])


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("x.png",), "There is no model: neither is x.png"),
        ((), "There is no model"),
        (("RUN",), "There is nothing to predict"),
        (("RUN", "x.png"), "There is no file x.png"),
        (("RUN", "x.png", "--camera", "5"), "is not a camera"),
        (("RUN", "x.png", "--only", "masks"), "'masks' is unknown; choose from"),
        (("RUN", "x.png", "--method-options", "epz=1"), "--method-options: 'optics'"),
        (("RUN", "x.png", "--method-options", "=1"), "'=1' does not set a number"),
        (("RUN", "x.png", "--method-options", "eps=nan"), "does not set a number"),
    ],
)
def test_mistakes_are_explained(
    run, tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    assert call(*(run if word == "RUN" else word for word in arguments)) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said


def test_a_kind_that_the_model_lacks_is_not_promised(street, tmp_path, capsys):
    network = build_network("mtl", "small", SIZE, 19, tasks=("depth",))
    export(network, tmp_path / "model")
    Image.fromarray(street).save(tmp_path / "a.png")
    arguments = (tmp_path / "model", tmp_path / "a.png", "--output", tmp_path / "out")
    assert call(*arguments, "--only", "instances,json") == 2
    said = capsys.readouterr().err
    assert "--only instances needs the task semantic" in said and "(depth)" in said
    assert not (tmp_path / "out").exists()
    assert call(*arguments) == 0  # what there is
    names = {"a.json", "a.png", "a_disparity.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_distances_need_a_camera(run):
    options = parse_options(PredictOptions, ["--camera", "1000,0.2"])
    _, camera_of = predict.open_model(run, options)
    assert camera_of(np.zeros((8, 8, 3))) == answers.StereoCamera(1000.0, 0.2)
    _, camera_of = predict.open_model(run, PredictOptions())
    assert camera_of(np.zeros((1024, 2048, 3))) is None  # a run on rendered scenes


def test_a_video_becomes_a_video(run, tmp_path, capsys):
    moving = [np.roll(render_scene(7, (47, 81))["image"], i, 1) for i in range(5)]
    videos.write_video(tmp_path / "a.mp4", moving, 10.0)
    (tmp_path / "b.mp4").write_bytes(b"hello")
    source = videos.Video(tmp_path / "a.mp4")
    assert source.rate == 10.0 and len([*source]) == 5
    assert next(iter(source)).shape == (48, 82, 3)  # even sizes
    names = (tmp_path / "a.mp4", tmp_path / "b.mp4")
    arguments = (run, *names, "--output", tmp_path / "out", "--batch-size", 2)
    assert call(*arguments) == 1
    assert "b.mp4 is not a video that OpenCV can read" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.mp4"]
    written = videos.Video(tmp_path / "out" / "a.mp4")
    frames = [*written]
    assert len(frames) == 5 and written.rate == 10.0
    with pytest.raises(ValueError, match="must have one size"):
        videos.write_video(tmp_path / "c.mp4", [moving[0], moving[0][:9]], 10.0)
    assert not [*tmp_path.glob("*c.mp4*")]
    assert frames[0].shape[1] > 900 and frames[0].std() > 20
    assert call(*arguments) == 2
    assert "a.mp4 exists" in capsys.readouterr().err
    assert call(run, names[0], "--only", "json", "--output", tmp_path / "x") == 2
    assert "--only has to name picture" in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_file(run, street, tmp_path, monkeypatch, capsys):
    Image.fromarray(street).save(tmp_path / "a.png")
    write_bytes = Path.write_bytes

    def fail(self, content):
        write_bytes(self, content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert call(run, tmp_path / "a.png", "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "cannot be written (No space left on device); make room" in said
    assert not any((tmp_path / "out").iterdir())


def test_a_video_that_is_not_whole_is_not_kept(tmp_path, monkeypatch):
    frames = [np.zeros((48, 80, 3), np.uint8)] * 4
    monkeypatch.setattr(videos, "_count_frames", lambda path: 3)
    with pytest.raises(UserError, match="a.mp4 cannot be written; make room"):
        videos.write_video(tmp_path / "a.mp4", frames, 10.0)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_the_script_starts(run, street, tmp_path):
    Image.fromarray(street).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, ROOT / "predict.py", run, "a.png", "--only", "json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1 picture predicted to predictions, " in done.stdout
    assert [p.name for p in (tmp_path / "predictions").iterdir()] == ["a.json"]
