"""MTAN's arrays of Cityscapes as a data set: written, checked, read, trained on."""

import csv
import json
import shutil

import keras
import numpy as np
import pytest
from conftest import TREE_IMAGE_SIZE, TREE_SIZES

from mtl_keras import cityscapes, metrics
from mtl_keras.__main__ import COMMANDS
from mtl_keras.commands import data as data_command
from mtl_keras.commands import evaluate, train, write_mtan
from mtl_keras.data import arrays, pipelines, records
from mtl_keras.errors import UserError
from mtl_keras.experiments import setup
from mtl_keras.experiments.options import EvaluateOptions, TrainOptions
from mtl_keras.experiments.problems import open_problem
from mtl_keras.experiments.schedules import build_schedule
from mtl_keras.figures.panel import list_classes

TASKS = ("semantic", "depth")
KINDS = {"image": "image", "semantic": "label_7", "disparity": "depth"}
SIZE = "{}x{}".format(*TREE_IMAGE_SIZE)


@pytest.fixture(scope="module")
def written(street_tree, tmp_path_factory):
    """`street_tree` as arrays; to be read only."""
    directory = tmp_path_factory.mktemp("arrays") / "mtan"
    write_mtan.main([str(street_tree), str(directory), "--image-size", SIZE])
    return directory


@pytest.fixture
def own(written, tmp_path):
    """A copy of `written` that a test may damage."""
    return shutil.copytree(written, tmp_path / "own")


def prepare(root, tmp_path, tasks=TASKS, label_set="categories", **options):
    return records.prepare(
        str(root), TREE_IMAGE_SIZE, tasks, tmp_path / "data", label_set, **options
    )


def batch_of(builder, label_set="categories", split="train", tasks=TASKS):
    (batch,) = pipelines.make_dataset(builder, split, tasks, label_set, 9)
    return batch


def change(path, function):
    np.save(path, function(np.load(path)))


def test_the_folder_is_what_others_read(written):
    shapes = {"image": (32, 64, 3), "depth": (32, 64, 1)}
    for split in ("train", "val"):
        for name in ("image", "depth", "label_7", "label_19"):
            files = sorted((written / split / name).iterdir())
            assert [f.name for f in files] == [
                f"{n}.npy" for n in range(TREE_SIZES[split])
            ]
            array = np.load(files[0])
            assert array.shape == shapes.get(name, (32, 64))
            if name.startswith("label"):
                assert array.min() == -1 and array.max() < int(name[6:])
            else:
                assert array.dtype == np.float32 and 0 <= array.min() < array.max() <= 1
    with open(written / "frames.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[:2] == [
        ["split", "number", "frame"],
        ["train", "0", "streets_000000_000019"],
    ]
    assert len(rows) == 1 + TREE_SIZES["train"] + TREE_SIZES["val"]
    assert sorted(path.name for path in written.parent.iterdir()) == ["mtan"]


@pytest.mark.parametrize("label_set", ["categories", "train_ids"])
def test_arrays_hold_the_frames_of_their_source(
    written, street_tree, tmp_path, label_set
):
    found = prepare(written, tmp_path, label_set=label_set)
    expected = prepare(street_tree, tmp_path, label_set=label_set, sky="masked")
    image, targets, masks = batch_of(found, label_set)
    same_image, same_targets, same_masks = batch_of(expected, label_set)
    np.testing.assert_array_equal(image, same_image)
    np.testing.assert_array_equal(masks["semantic"], same_masks["semantic"])
    valid = np.asarray(masks["semantic"]) > 0
    np.testing.assert_array_equal(
        np.asarray(targets["semantic"])[valid],
        np.asarray(same_targets["semantic"])[valid],
    )
    np.testing.assert_array_equal(masks["depth"], same_masks["depth"])
    # Beyond 255.99 pixels of 2048 the code of Cityscapes ends, at 8 pixels of 64.
    depth = np.minimum(same_targets["depth"], 65534 / 256 / 32)
    np.testing.assert_allclose(targets["depth"], depth, atol=1e-5)
    assert pipelines.load_ids(found, "train") == ["0000", "0001", "0002", "0003"]
    record = next(iter(found.as_dataset("train").as_numpy_iterator()))
    assert record["source_width"] == 2048


def test_the_sky_is_masked_where_the_source_masks_it(written, street_tree, tmp_path):
    tree = prepare(street_tree, tmp_path)
    _, targets, masks = batch_of(tree)
    sky = np.asarray(targets["semantic"] == 4) & (np.asarray(masks["semantic"]) > 0)
    assert sky.any() and np.asarray(masks["depth"])[sky].all()
    for builder in (prepare(written, tmp_path), prepare(street_tree, tmp_path)):
        masked = builder.builder_config.sky == "masked"
        assert masked == (builder.name == "mtan_arrays")
    again = prepare(street_tree, tmp_path, sky="masked")
    assert again.data_path == tree.data_path  # the records are the same
    _, _, masks = batch_of(again)
    assert not np.asarray(masks["depth"])[sky].any()


def test_every_label_of_a_category_counts():
    index = cityscapes.class_index_table("categories")
    names = [label.name for label in cityscapes.CATEGORIES]
    expected = ["flat", "construction", "object", "nature", "sky", "human", "vehicle"]
    assert names == expected
    for label in cityscapes.LABELS:
        name = names[index[label.id]] if index[label.id] >= 0 else "void"
        assert name == label.category
    classes = index[cityscapes.label_id_table("categories")]
    np.testing.assert_array_equal(classes, np.arange(7))


def test_parking_and_caravans_count_in_a_tree():
    record = {"semantic": np.array([[[9], [29], [4], [24]]], np.uint8)}
    _, targets, masks = pipelines.encode_record(
        {**record, "image": None}, ("semantic",), "categories"
    )
    assert [int(targets["semantic"][0, i]) for i in (0, 1, 3)] == [0, 6, 5]
    np.testing.assert_array_equal(masks["semantic"], [[1, 1, 0, 1]])


def test_libmtls_folder_and_any_type_do(own, written, tmp_path):
    expected = arrays.read_arrays(arrays.list_arrays(written, "train", KINDS)[1])
    for split in arrays.SPLITS:
        (own / split / "label_7").rename(own / split / "label")
        for path in (own / split).glob("*/*.npy"):
            (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
            kinds = {"label": np.float32, "depth": np.float64, "image": np.float64}
            change(path, lambda a: a.astype(kinds.get(path.parent.name, np.int64)))
            if path.parent.name == "depth":
                change(path, lambda a: a[..., 0])
    kinds = {**KINDS, "semantic": arrays.find_label_folder(own, "categories")}
    assert kinds["semantic"] == "label"
    found = arrays.read_arrays(arrays.list_arrays(own, "train", kinds)[1])
    for kind, array in expected.items():
        np.testing.assert_array_equal(found[kind], array)
        assert found[kind].dtype == array.dtype


def test_label_folders_are_chosen_by_the_label_set(own):
    assert arrays.find_label_folder(own, "categories") == "label_7"
    assert arrays.find_label_folder(own, "train_ids") == "label_19"
    with pytest.raises(UserError, match="label_ids: .*--label-set categories or train"):
        arrays.find_label_folder(own, "label_ids")
    for split in arrays.SPLITS:
        shutil.rmtree(own / split / "label_7")
    assert arrays.find_label_folder(own, "categories") == "label_19"
    for split in arrays.SPLITS:
        (own / split / "label_19").rename(own / split / "label")
    with pytest.raises(UserError, match="That takes label_19. Choose --label-set cat"):
        arrays.find_label_folder(own, "train_ids")
    for split in arrays.SPLITS:
        shutil.rmtree(own / split / "label")
    with pytest.raises(UserError, match="has no labels: there is no train/label_7"):
        arrays.find_label_folder(own, "categories")


def test_merged_classes_are_the_categories(own):
    frame = arrays.list_arrays(own, "train", KINDS)[0]
    merged = arrays.list_arrays(own, "train", {**KINDS, "semantic": "label_19"})[0]
    table = cityscapes.class_index_table("categories")
    exact, found = (
        table[arrays.read_arrays(files)["semantic"]] for files in (frame, merged)
    )
    known = np.load(merged.paths["semantic"]) >= 0
    np.testing.assert_array_equal(found[known], exact[known])
    assert (found[~known] == -1).all()


@pytest.mark.parametrize("name", ["image/2", "label_7/0", "depth/3", "depth/0"])
def test_the_first_missing_file_is_named(own, name):
    (own / f"train/{name}.npy").unlink()
    with pytest.raises(UserError, match=f"train/{name}.npy is missing.* up to 3"):
        arrays.list_arrays(own, "train", KINDS)


def test_a_missing_folder_is_named(own):
    shutil.rmtree(own / "val/depth")
    with pytest.raises(UserError, match="val/depth/0.npy and 1 more files are missing"):
        arrays.list_arrays(own, "val", KINDS)


def set_first(value):
    def function(array):
        array = array.astype(np.float64)
        array[0, 0] = value
        return array

    return function


FAULTS = [
    ("image", set_first(np.nan), "not finite"),
    ("image", set_first(255), "holds 255; colours must be in 0..1"),
    ("image", lambda a: a[..., 0], r"shape \(H, W, 3\), but has \(32, 64\)"),
    ("image", lambda a: a[:16], "is 32x64, but its image .* is 16x64"),
    ("image", lambda a: a > 0, "must hold numbers, but is of type bool"),
    ("depth", set_first(np.inf), "not finite"),
    ("depth", set_first(-1), "holds -1; disparity as raw value / 65535"),
    ("depth", set_first(126), "holds 126; disparity"),
    ("depth", lambda a: np.repeat(a, 2, -1), r"shape \(H, W\), but has \(32, 64, 2\)"),
    ("label_7", set_first(7), "holds 7, which is not a class; those are 0 to 6"),
    ("label_7", set_first(255), "holds 255, which is not a class"),
    ("label_7", set_first(0.5), "holds 0.5, which is not a class"),
]


@pytest.mark.parametrize("folder, fault, message", FAULTS)
def test_wrong_arrays_are_named(own, folder, fault, message):
    path = own / "train" / folder / "1.npy"
    change(path, fault)
    files = arrays.list_arrays(own, "train", KINDS)
    arrays.read_arrays(files[0])
    with pytest.raises(UserError, match=message) as raised:
        arrays.read_arrays(files[1])
    assert "1.npy" in str(raised.value)


def test_damaged_files_are_named(own, tmp_path):
    path = own / "train/depth/2.npy"
    content = path.read_bytes()
    files = arrays.list_arrays(own, "train", KINDS)[2]
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{}], object), allow_pickle=True)
    for bad in (b"", content[:-5], b"<html>", content[:50], pickled.read_bytes()):
        path.write_bytes(bad)
        with pytest.raises(UserError, match="depth/2.npy cannot be read as an array"):
            arrays.read_arrays(files)
    with open(path, "wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(UserError, match="depth/2.npy is an archive"):
        arrays.read_arrays(files)


def test_wrong_folders_are_refused(written, own, tmp_path, capsys):
    with pytest.raises(UserError, match="do not tell objects apart"):
        prepare(written, tmp_path, ("semantic", "instance"))
    prepare(own, tmp_path)  # which is said once
    assert "has 4 train frames and 2 val frames; MTAN's" in capsys.readouterr().err
    for path in own.glob("*/*/*.npy"):
        path.unlink()
    with pytest.raises(UserError, match="holds no arrays"):
        prepare(own, tmp_path)
    assert not arrays.is_array_folder("") and not arrays.is_array_folder("x" * 999)


def test_changed_files_make_new_records(own, tmp_path):
    first = prepare(own, tmp_path).data_path
    assert prepare(own, tmp_path).data_path == first
    change(own / "val/image/0.npy", lambda a: np.zeros_like(a, np.float64))
    assert prepare(own, tmp_path).data_path != first


def test_raw_errors_are_those_of_the_protocol():
    """As MTAN's utils.py defines them, from the values of the files."""
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 32258, (2, 4, 8)).astype(np.float64)
    raw[0, 0, :3] = (0, 1, 2)
    predicted = raw + rng.normal(0, 500, raw.shape)
    true, guess = raw / 65535, predicted / 65535
    error = np.abs(true - guess)[raw > 0]
    pixels = [((r - 1) / 256 * 8 / 2048)[..., None] for r in (raw, predicted)]
    for name, expected in (
        ("absolute", error.mean()),
        ("relative", (error / true[raw > 0]).mean()),
    ):
        function = getattr(metrics, f"raw_{name}_error")
        metric = keras.metrics.MeanMetricWrapper(function)
        metric.update_state(*pixels, raw > 0)
        assert float(metric.result()) == pytest.approx(expected, rel=1e-4)


def test_metrics_follow_the_mask_of_the_sky(written):
    def names(**options):
        problem = open_problem(TrainOptions(tasks=("depth",), **options))
        return [metric.name for metric in problem.make_metrics()["depth"]]

    assert names() == names(data="TREE") == ["mean_abs", "rms"]
    expected = ["mean_abs", "rms", "abs_err", "rel_err"]
    assert names(sky="masked") == names(data=str(written)) == expected


def test_the_learning_rate_is_halved():
    rate = build_schedule("halved", 0.5, 10)
    assert [float(rate(step)) for step in (0, 4, 6, 9)] == [0.5, 0.5, 0.25, 0.25]


def test_what_categories_are_not_for(written):
    options = TrainOptions(label_set="categories")
    with pytest.raises(UserError, match="leave out the task instance"):
        setup.check_options(options)
    trained = TrainOptions(tasks=TASKS, label_set="categories")
    asked = EvaluateOptions(run="run", submission="submission")
    with pytest.raises(UserError, match="classes of the benchmark"):
        setup.check_evaluation(asked, trained)
    trained = TrainOptions(tasks=TASKS, data=str(written))
    with pytest.raises(UserError, match="names of the frames"):
        setup.check_evaluation(asked, trained)


def test_legends_name_the_categories():
    classes = np.array([[7, 7, 26]], np.uint8)
    assert [name for name, _ in list_classes(classes)] == ["road", "car"]
    named = [name for name, _ in list_classes(classes, "categories")]
    assert named == ["flat", "vehicle"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "Name a source"),
        ("streets", "Name a source"),
        ("{written} out", "is such a folder already"),
        ("streets {written}", "exists; name another folder"),
        ("nowhere out", "no directory or archive nowhere"),
        ("{tree} out --frames 3", "--frames asks for 3 frames, but the split val"),
    ],
)
def test_nothing_is_written_after_a_mistake(
    written, street_tree, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    arguments = arguments.format(written=written, tree=street_tree)
    with pytest.raises(UserError, match=message):
        data_command.main(["write-mtan", *arguments.split()])
    assert not [*tmp_path.iterdir()]


def test_what_is_cut_off_leaves_nothing(street_tree, tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(arrays, "write_arrays", fail)
    with pytest.raises(KeyboardInterrupt):
        write_mtan.main([str(street_tree), str(tmp_path / "out")])
    assert not [*tmp_path.iterdir()]


def test_frames_are_taken_evenly(street_tree, tmp_path):
    arguments = ["--frames", "2", "--image-size", SIZE]
    write_mtan.main([str(street_tree), str(tmp_path / "out"), *arguments])
    names = (tmp_path / "out/frames.csv").read_text(encoding="utf-8").split()
    assert names[1:3] == [f"train,{n},streets_00000{2 * n}_000019" for n in (0, 1)]
    assert "data" in COMMANDS


def test_train_and_evaluate(tmp_path, monkeypatch, capsys):
    """From rendered streets to the columns of the protocol."""
    monkeypatch.chdir(tmp_path)
    write_mtan.main(["streets", "mtan", "--frames", "4", "--image-size", SIZE])
    shared = f"--recipe mtan/all --no-pretrained --image-size {SIZE}"
    settings = f"{shared} --backbone small --batch-size 2 --epochs 1"
    train.main(f"{settings} --data mtan --output run".split())
    evaluate.main(["run", "--predictions"])
    table = capsys.readouterr().out
    for header in ("mIoU %", "depth Abs Err, raw/65535", "depth Rel Err, ratio"):
        assert f"| {header} |" in table
    assert "| vehicle |" in table and "| road |" not in table
    assert (tmp_path / "run/predictions/val/0003_labelIds.png").exists()
    scores = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    pixels, raw = (scores["metrics"][f"depth/{k}"] for k in ("mean_abs", "abs_err"))
    assert raw == pytest.approx(pixels * 256 * 2048 / 64 / 65535, rel=1e-4)
    assert np.shape(scores["confusion"]) == (7, 8)
