import json
import pathlib
import shutil
import subprocess
import sys

import cv2
import keras
import numpy as np
import pytest

from mtl_keras.cityscapes import LABEL_SETS
from mtl_keras.errors import UserError
from mtl_keras.model import build_network
from mtl_keras.serving import build_serving_model, export
from mtl_keras.serving.export_directory import MANIFEST
from mtl_keras.serving.predictions import write_predictions

SIZE = (32, 64)

# Runs where neither the package nor Keras can be imported.
SERVE = """
import sys
sys.modules.update({"mtl_keras": None, "keras": None})
import numpy as np, tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
images = np.load(sys.argv[2])
outputs = {}
for name, endpoint in {
    "serve": served.serve,
    "default": lambda x: served.signatures["serving_default"](image=tf.constant(x)),
}.items():
    for count in (1, 3):
        for task, value in endpoint(images[:count]).items():
            outputs[f"{name}/{count}/{task}"] = value.numpy()
np.savez(sys.argv[3], **outputs)
print("\\n".join(variable.name for variable in served.variables))
"""


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return build_network(backbone="small", image_size=SIZE, num_classes=19)


@pytest.fixture(scope="module")
def images():
    images = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3))
    return images.astype("uint8")


def test_served_network_is_the_live_one(network, images, tmp_path):
    path = tmp_path / "saved_model"
    export(network, path)
    assert [child.name for child in tmp_path.iterdir()] == ["saved_model"]
    np.save(tmp_path / "images.npy", images)
    completed = subprocess.run(
        [sys.executable, "-c", SERVE, path, "images.npy", "outputs.npz"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr
    names = completed.stdout.splitlines()
    assert len(names) >= len(network.trainable_variables)
    assert not any("log_variance" in name for name in names)

    expected = {task: np.array(value) for task, value in network(images).items()}
    exponentials = np.exp(expected["semantic"])
    expected["semantic"] = exponentials / exponentials.sum(-1, keepdims=True)
    served = np.load(tmp_path / "outputs.npz")
    assert len(served.files) == 2 * 2 * 3
    for name in served.files:
        _, count, task = name.split("/")
        np.testing.assert_allclose(
            served[name], expected[task][: int(count)], 1e-4, 1e-4, err_msg=name
        )


@pytest.fixture(scope="module")
def tiny():
    image = keras.Input((4, 6, 3))
    return keras.Model(image, {"depth": keras.layers.Conv2D(1, 1)(image)})


def contents(directory):
    return {
        path.relative_to(directory): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


def test_export_replaces_an_export(tiny, tmp_path):
    path = tmp_path / "deep" / "saved_model"
    export(tiny, path)
    (path / "saved_model.pb").write_text("an older one")
    export(tiny, path)
    assert len((path / "saved_model.pb").read_bytes()) > 1000
    assert [child.name for child in path.parent.iterdir()] == ["saved_model"]
    listed = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    files = [p for p in contents(path) if (path / p).is_file()]
    assert sorted(listed) == sorted(map(str, files))


def test_export_fills_an_empty_directory(tiny, tmp_path):
    export(tiny, tmp_path)
    assert (tmp_path / "saved_model.pb").exists()


def make_versions(path):
    for name in ("1", "2", "10"):
        (path / name).mkdir(parents=True)
        (path / name / "saved_model.pb").write_text("served now")


def make_foreign_model(path):
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_text("of another program")


def make_notes(path):
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def make_damaged_export(path):
    make_foreign_model(path)
    (path / MANIFEST).write_text("{")


def make_link(path):
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


def make_dangling_link(path):
    path.symlink_to("nowhere")


def make_file(path):
    path.write_text("mine")


@pytest.mark.parametrize(
    "make, message",
    [
        (make_versions, "holds versions of a model.*export to .*saved_model/11"),
        (make_foreign_model, "is not an export of this package"),
        (make_notes, "is not an export of this package"),
        (make_damaged_export, "is not an export of this package"),
        (make_link, "is a link"),
        (make_dangling_link, "is a link"),
        (make_file, "is a file"),
    ],
)
def test_export_deletes_nothing_else(tiny, tmp_path, make, message):
    path = tmp_path / "saved_model"
    make(path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        export(tiny, path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "assets.extra/warmup", "variables/mine"])
def test_export_deletes_no_file_that_was_added(tiny, tmp_path, name):
    path = tmp_path / "saved_model"
    export(tiny, path)
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"also holds {name}"):
        export(tiny, path)
    assert contents(tmp_path) == before


def test_neighbours_of_an_export_are_left_alone(tiny, tmp_path):
    for name in ("saved_model.partial", "saved_model.old", "new", "old"):
        make_notes(tmp_path / name)
    before = contents(tmp_path)
    export(tiny, tmp_path / "saved_model")
    assert before.items() <= contents(tmp_path).items()
    shutil.rmtree(tmp_path / "saved_model")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left")])
def test_nothing_is_left_of_a_failed_export(tiny, tmp_path, monkeypatch, error):
    path = tmp_path / "saved_model"
    export(tiny, path)
    before = contents(tmp_path)

    def fail(self, target, **_):
        (pathlib.Path(target) / "variables").mkdir(parents=True)
        raise error

    monkeypatch.setattr(type(keras.export.ExportArchive()), "write_out", fail)
    with pytest.raises((KeyboardInterrupt, UserError)) as raised:
        export(tiny, path)
    assert contents(tmp_path) == before
    if error is not KeyboardInterrupt:
        assert "cannot be written (No space left)" in str(raised.value)


def test_the_earlier_export_comes_back_if_the_new_one_cannot_be_placed(
    tiny, tmp_path, monkeypatch
):
    path = tmp_path / "saved_model"
    export(tiny, path)
    before = contents(tmp_path)
    rename = type(path).rename

    def fail(self, target):
        if self.name == "new":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(type(path), "rename", fail)
    with pytest.raises(UserError, match="Permission denied"):
        export(tiny, path)
    assert contents(tmp_path) == before


def test_export_below_a_file(tiny, tmp_path):
    make_file(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        export(tiny, tmp_path / "file" / "saved_model")


@pytest.mark.parametrize("tasks", [("depth",), ("semantic", "instance")])
def test_serving_model_has_the_tasks_of_the_network(tasks, images):
    network = build_network(
        backbone="small", image_size=SIZE, num_classes=19, tasks=tasks
    )
    model = build_serving_model(network)
    outputs = model(images)
    assert set(outputs) == set(tasks)
    if "semantic" in tasks:
        np.testing.assert_allclose(np.sum(outputs["semantic"], -1), 1, rtol=1e-5)


@pytest.mark.parametrize("label_set", LABEL_SETS)
def test_predictions_are_written(label_set, tmp_path):
    num_classes = len(LABEL_SETS[label_set])
    rng = np.random.default_rng(0)
    predictions = {
        "semantic": rng.random((2, 4, 6, num_classes)).astype("float32"),
        "instance": rng.normal(size=(2, 4, 6, 2)).astype("float32"),
        "depth": rng.uniform(0, 9, (2, 4, 6, 1)).astype("float32"),
    }
    predictions["depth"][0, 0, :2, 0] = (-3.0, 1e6)
    predictions["semantic"][0, 0, 0, -1] = 2.0
    write_predictions(tmp_path / "maps", ["a", "b"], predictions, label_set)
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        f"{frame}_{ending}"
        for frame in "ab"
        for ending in ("disparity.png", "labelIds.png", "offsets.npy")
    ]
    labels = LABEL_SETS[label_set]
    for i, frame in enumerate("ab"):
        path = str(tmp_path / "maps" / frame)
        ids = cv2.imread(path + "_labelIds.png", cv2.IMREAD_UNCHANGED)
        assert ids.dtype == np.uint8
        expected = [
            [labels[c].id for c in row] for row in predictions["semantic"][i].argmax(-1)
        ]
        np.testing.assert_array_equal(ids, expected)
        offsets = np.load(path + "_offsets.npy")
        np.testing.assert_array_equal(offsets, predictions["instance"][i])
        coded = cv2.imread(path + "_disparity.png", cv2.IMREAD_UNCHANGED)
        assert coded.dtype == np.uint16
        if frame == "a":
            assert coded[0, 0] == 1 and coded[0, 1] == 2**16 - 1
            assert ids[0, 0] == (26 if label_set == "categories" else 33)
        np.testing.assert_allclose(
            (coded[1:] - 1.0) / 256, predictions["depth"][i, 1:, :, 0], atol=1 / 512
        )


def test_only_predicted_maps_are_written(tmp_path):
    depth = np.ones((1, 2, 2, 1), "float32")
    write_predictions(tmp_path, ["a"], {"depth": depth}, "train_ids")
    assert [path.name for path in tmp_path.iterdir()] == ["a_disparity.png"]
