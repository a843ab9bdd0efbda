import numpy as np
import pytest
from PIL import Image

from mtl_keras.data.batches import Batch
from mtl_keras.experiments.callbacks import ProgressReport
from mtl_keras.figures import curves, maps, markdown, painters
from mtl_keras.instances import encode_offsets

ALL = ("semantic", "instance", "depth")


def make_history(tasks, learned=True, epochs=3):
    rng = np.random.default_rng(0)
    rows = []
    for epoch in range(epochs):
        row = {"epoch": float(epoch), "loss": -0.5, "val_loss": 0.3}
        for task in tasks:
            row[f"{task}/loss"], row[f"val_{task}/loss"] = rng.uniform(0.1, 9, 2)
            if learned:
                row[f"{task}/sigma"], row[f"{task}/weight"] = rng.uniform(0.1, 9, 2)
        rows.append(row)
    return rows


def assert_picture(path):
    """It can be opened, is of some size, and is not of one colour."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert min(pixels.shape[:2]) > 100
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_format_table():
    table = markdown.format_table(
        [["a", 1.23456, 3], ["b", None, 123456.0]], ["", "x", "y"]
    )
    assert table.splitlines() == [
        "|  | x | y |",
        "| --- | ---: | ---: |",
        "| a | 1.235 | 3 |",
        "| b |  | 1.235e+05 |",
    ]


def test_format_metrics():
    metrics = {"semantic/miou": 0.25, "depth/rms": 3.0, "depth/mean_abs": 2.0}
    constants = {"semantic/miou": 0.05, "depth/rms": 6.0, "depth/mean_abs": 5.0}
    table = markdown.format_metrics(metrics, constants, {"road": 0.5, "train": None})
    lines = table.splitlines()
    assert lines[0] == "|  | mIoU % | depth mean abs px | depth RMS px |"
    assert lines[2] == "| network | 25 | 2 | 3 |"
    assert lines[3] == "| constant predictor | 5 | 5 | 6 |"
    assert lines[5] == "| class | IoU % |"
    assert lines[7:] == ["| road | 50 |", "| train | absent |"]


def test_format_metrics_without_the_semantic_task():
    table = markdown.format_metrics({"depth/rms": 3.0}, {"depth/rms": 6.0}, {})
    assert len(table.splitlines()) == 4 and "class" not in table


@pytest.mark.parametrize("tasks", [ALL[:1], ALL[1:], ALL])
def test_plots_of_the_history(tasks, tmp_path):
    history = make_history(tasks)
    curves.plot_losses(history, tasks, tmp_path / "losses.png")
    assert_picture(tmp_path / "losses.png")
    assert curves.plot_weights(history, tasks, tmp_path / "weights.png")
    assert_picture(tmp_path / "weights.png")


def test_fixed_weights_are_not_drawn(tmp_path):
    history = make_history(ALL, learned=False)
    assert not curves.plot_weights(history, ALL, tmp_path / "weights.png")
    assert not curves.plot_weights([], ALL, tmp_path / "weights.png")
    assert list(tmp_path.iterdir()) == []


def make_batch(tasks, batch=3, valid=True, size=(16, 32)):
    rng = np.random.default_rng(0)
    shape = (batch, *size)
    truth = {
        "semantic": rng.integers(0, 19, shape).astype("int32"),
        "instance": rng.normal(size=(*shape, 2)).astype("float32"),
        "depth": rng.uniform(0, 9, (*shape, 1)).astype("float32"),
    }
    predictions = {
        "semantic": rng.random((*shape, 19)).astype("float32"),
        "instance": rng.normal(size=(*shape, 2)).astype("float32"),
        "depth": rng.uniform(-1, 9, (*shape, 1)).astype("float32"),
    }
    masks = {
        task: ((rng.random(shape) < 0.8) & valid).astype("float32") for task in tasks
    }
    images = rng.integers(0, 256, (*shape, 3)).astype("uint8")
    targets = {task: truth[task] for task in tasks}
    predictions = {task: predictions[task] for task in tasks}
    return Batch([""] * batch, images, targets, masks), predictions


@pytest.mark.parametrize("tasks", [ALL[:1], ALL[1:], ALL])
@pytest.mark.parametrize("with_truth", [True, False])
def test_gallery(tasks, with_truth, tmp_path):
    gallery = maps.MapGallery(tmp_path / "val.png", 3, "train_ids")
    gallery.update(*make_batch(tasks, valid=with_truth))
    assert gallery.result() == {} and gallery.has_truth == with_truth
    assert_picture(tmp_path / "val.png")


def test_gallery_spreads_over_the_split():
    gallery = maps.MapGallery("unused.png", 11, "train_ids", num_shown=3)
    batch, predictions = make_batch(("depth",), batch=11)

    def cut(values, start):
        return {task: value[start : start + 4] for task, value in values.items()}

    for start in (0, 4, 8):
        part = Batch(
            batch.ids[start : start + 4],
            batch.images[start : start + 4],
            cut(batch.targets, start),
            cut(batch.masks, start),
        )
        gallery.update(part, cut(predictions, start))
    shown = [row.image for row in gallery.rows]
    assert len(shown) == 3
    for image, number in zip(shown, (0, 5, 10)):
        np.testing.assert_array_equal(image, batch.images[number])


def paint_white(values):
    return np.full((*values.shape[:2], 3), 255)


def test_votes_are_shown_where_things_are_predicted():
    batch, predictions = make_batch(ALL, batch=1)
    road, car, sky = 0, 13, 10  # train ids
    logits = np.zeros_like(predictions["semantic"])
    logits[..., road], logits[:, :4, :6, car], logits[:, -3:, :, sky] = 1, 2, 2
    row = maps.Row.of(batch, {**predictions, "semantic": logits}, 0)
    shown = maps.paint_prediction(row, "instance", "train_ids", paint_white)
    expected = np.full((*logits.shape[1:3], 3), maps.GREY)
    expected[:4, :6] = 255
    np.testing.assert_array_equal(shown, expected)
    shown = maps.paint_prediction(row, "depth", "train_ids", paint_white)
    expected[:], expected[-3:] = 255, (70, 130, 180)
    np.testing.assert_array_equal(shown, expected)
    alone = maps.Row.of(batch, {"instance": predictions["instance"]}, 0)
    shown = maps.paint_prediction(alone, "instance", "train_ids", paint_white)
    assert (shown == 255).all()


def test_the_sky_of_the_truth_is_painted_too():
    batch, predictions = make_batch(ALL, batch=1)
    batch.targets["semantic"][:] = 0
    batch.targets["semantic"][:, :5] = 10  # sky
    batch.targets["semantic"][:, 9] = 255  # masked, of no class
    batch.masks["semantic"][:] = 1
    batch.masks["semantic"][:, 3:5] = batch.masks["semantic"][:, 9] = 0
    batch.masks["depth"][:] = 1
    row = maps.Row.of(batch, predictions, 0)
    shown = maps.paint_truth(row, "depth", "train_ids", paint_white)
    expected = np.full(shown.shape, 255)
    expected[:3] = (70, 130, 180)
    np.testing.assert_array_equal(shown, expected)


def test_the_gallery_shows_found_objects_in_the_colour_of_the_true_ones():
    ids = np.full((24, 64), 7)
    ids[4:20, 5:25], ids[4:20, 35:55] = 26000, 26001
    offsets, mask = encode_offsets(ids)
    logits = np.zeros((*ids.shape, 19), "float32")
    logits[..., 0] = 1
    logits[4:20, 5:25, 13] = 2  # only the left car is predicted, and a wrong one
    logits[:3, 30:50, 13] = 2
    votes = offsets.copy()
    votes[:3, 30:50] = (1, 40) - np.moveaxis(np.mgrid[:3, 30:50], 0, -1)
    row = maps.Row(
        np.full((*ids.shape, 3), 100, np.uint8),
        {"semantic": np.where(ids > 999, 13, 0), "instance": offsets},
        {"semantic": np.ones(ids.shape), "instance": mask},
        {"semantic": logits, "instance": votes},
    )
    shown = maps.paint_objects(row, "train_ids")
    truth, prediction = shown["truth"], shown["prediction"]
    np.testing.assert_array_equal(truth[12, 15], prediction[12, 15])
    assert not np.array_equal(truth[12, 15], truth[12, 45])
    np.testing.assert_array_equal(prediction[12, 45], prediction[23, 0])  # no object
    assert np.ptp(prediction[1, 40]) == 0 and prediction[1, 40, 0] > 150  # white


def test_colors_of_offsets():
    offsets = np.array([[0, 0], [0, 5], [0, -5], [0, 99]], "float32")
    still, right, left, far = painters.color_offsets(offsets, 5.0)
    np.testing.assert_array_equal(still, (255, 255, 255))
    np.testing.assert_array_equal(right, (255, 0, 0))
    np.testing.assert_array_equal(left, (0, 255, 255))
    np.testing.assert_array_equal(far, right)


def test_colors_of_depth_grow_brighter():
    values = np.array([-1.0, 0.0, 3.0, 6.0, 60.0])[:, None]
    colors = painters.color_depth(values, 6.0)
    assert colors.dtype == np.uint8 and colors.shape == (5, 3)
    brightness = colors.astype(int).sum(-1)
    assert brightness[0] == brightness[1] < brightness[2] < brightness[3]
    assert brightness[3] == brightness[4]


def test_progress_names_epoch_loss_and_scores(capsys):
    progress = ProgressReport(epochs=2, steps_per_epoch=2)
    progress.set_params({"steps": 2, "epochs": 2})
    logs = {
        "loss": 1.23456,
        "val_semantic/miou": 0.251,
        "val_semantic/pixel_accuracy": 0.77,
        "val_depth/mean_abs": 3.4567,
        "val_depth/rms": 7.8,
    }
    progress.on_epoch_begin(1)
    progress.on_train_batch_end(0)
    progress.on_train_batch_end(1)
    progress.on_epoch_end(1, logs)
    assert progress.bar.n == 4  # two of them from before the restart
    progress.on_train_end()
    written = capsys.readouterr()
    written = written.out + written.err
    assert "epoch 2/2: loss 1.235, val mIoU % 25.1, depth mean abs px 3.46" in written


def test_weights_without_noise_levels_are_drawn(tmp_path):
    history = [{"epoch": i, "depth/weight": 1.0 + i} for i in range(2)]
    path = tmp_path / "weights.png"
    assert curves.plot_weights(history, ["depth"], path) and path.exists()
    assert not curves.plot_weights([{"epoch": 0}], ["depth"], path)
