import subprocess
import sys

import cv2
import keras
import numpy as np
import pytest

from mtl_keras import export
from mtl_keras.cityscapes import LABEL_SETS
from mtl_keras.model import build_network

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
    export.export_saved_model(network, path)
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


def test_export_replaces_what_was_there(tmp_path):
    image = keras.Input((4, 6, 3))
    network = keras.Model(image, {"depth": keras.layers.Conv2D(1, 1)(image)})
    path = tmp_path / "saved_model"
    for folder in (path, tmp_path / "saved_model.partial"):
        folder.mkdir()
        (folder / "old.txt").write_text("old")
    export.export_saved_model(network, path)
    assert not (path / "old.txt").exists() and (path / "saved_model.pb").exists()
    assert not (tmp_path / "saved_model.partial").exists()


@pytest.mark.parametrize("tasks", [("depth",), ("semantic", "instance")])
def test_serving_model_has_the_tasks_of_the_network(tasks, images):
    network = build_network(
        backbone="small", image_size=SIZE, num_classes=19, tasks=tasks
    )
    model = export.build_serving_model(network)
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
    export.write_predictions(tmp_path / "maps", ["a", "b"], predictions, label_set)
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
            assert ids[0, 0] == 33
        np.testing.assert_allclose(
            (coded[1:] - 1.0) / 256, predictions["depth"][i, 1:, :, 0], atol=1 / 512
        )


def test_only_predicted_maps_are_written(tmp_path):
    depth = np.ones((1, 2, 2, 1), "float32")
    export.write_predictions(tmp_path, ["a"], {"depth": depth}, "train")
    assert [path.name for path in tmp_path.iterdir()] == ["a_disparity.png"]
