"""What `data show` counts, warns of and draws."""

import numpy as np
import pytest
from PIL import Image

from mtl_keras import cityscapes
from mtl_keras.commands import show
from mtl_keras.data import frames, pipelines
from mtl_keras.data.spreading import take_evenly
from mtl_keras.experiments.options import TrainOptions
from mtl_keras.figures.contact_sheet import choose_arrows, number_objects
from mtl_keras.instances.offsets import encode_offsets

FRAME = "streets_000001_000019"


@pytest.fixture
def clean_tree(own_tree):
    """A tree whose splits have cities of their own."""
    for folder in ("leftImg8bit", "gtFine", "disparity"):
        for split in ("train", "val", "test"):
            city = own_tree / folder / split / "streets"
            if city.exists():
                city.rename(city.with_name(split))
    return own_tree


def path_of(tree, kind, split="train"):
    return cityscapes.frame_path(tree, split, FRAME, kind, split)


def change(path, function):
    array = np.asarray(Image.open(path)).copy()
    Image.fromarray(function(array).astype(array.dtype)).save(path)


def all_of(tree, ending, split="train"):
    return sorted((tree / "gtFine" / split).rglob(f"*{ending}"))


def look(tree, **options):
    return show.inspect(TrainOptions(data=str(tree), **options), 0)


def said(remarks):
    return [(remark.count, remark.sentence) for remark in remarks]


def test_nothing_is_said_of_a_clean_tree(clean_tree):
    for path in [*clean_tree.rglob("*.png")]:
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    findings = look(clean_tree)
    assert said(findings.refused) == said(findings.doubtful) == []
    totals = {split: tally.total for split, tally in findings.tallies.items()}
    assert totals == {"train": 4, "val": 2, "test": 1}


@pytest.mark.parametrize("label_set", ["train_ids", "categories"])
def test_counts_are_those_of_the_files_and_of_training(clean_tree, label_set):
    tally = look(clean_tree, label_set=label_set).tallies["train"]
    labels, objects, valid = [], 0, dict.fromkeys(pipelines.ENCODERS, 0)
    for files in frames.list_frames(clean_tree, "train", frames.LABEL_KINDS):
        frame, size = frames.read_frame(files, (32, 64))
        labels.append(frame["semantic"])
        objects += len(np.unique(frame["instance"][frame["instance"] >= 1000]))
        record = {kind: array[..., None] for kind, array in frame.items()}
        record["source_width"] = size[1]
        for task, encode in pipelines.ENCODERS.items():
            valid[task] += int(np.sum(encode(record, label_set, "zero")[1]))
    for label in cityscapes.LABELS:
        is_label = np.array(labels) == label.id
        assert tally.class_pixels[label.id] == is_label.sum()
        assert tally.class_frames[label.id] == is_label.any((1, 2)).sum()
    assert tally.objects.sum() == objects > 0
    assert tally.valid == {task: (n, 4 * 32 * 64) for task, n in valid.items()}
    assert tally.sizes == {(32, 64): 4}


def first(value):
    def put(array):
        array[0, 0] = value
        return array

    return put


@pytest.mark.parametrize(
    "kind, function, part",
    [
        ("semantic", first(255), "holds 255"),
        ("instance", first(65535), "holds 65535"),
    ],
)
def test_refused_ids_are_counted(clean_tree, kind, function, part):
    change(path_of(clean_tree, kind), function)
    change(path_of(clean_tree, kind, "val"), function)
    findings = look(clean_tree)
    ((count, sentence),) = said(findings.refused)
    assert count == 2 and part in sentence
    assert sentence.startswith(str(path_of(clean_tree, kind)))
    assert findings.doubtful == []


def test_all_refused_files_of_a_frame_are_named(clean_tree):
    image, disparity = (path_of(clean_tree, k) for k in ("image", "disparity"))
    Image.open(image).quantize(16).save(image)
    array = np.asarray(Image.open(disparity))
    Image.fromarray((array // 256).astype(np.uint8)).save(disparity)
    findings = look(clean_tree)
    (_, of_image), (_, of_disparity) = said(findings.refused)
    assert f"{image} must be 8-bit RGB" in of_image
    assert f"{disparity} must be 16-bit grey" in of_disparity
    assert findings.doubtful == []


def test_missing_files_are_refused(clean_tree):
    path_of(clean_tree, "semantic").unlink()
    ((count, sentence),) = said(look(clean_tree).refused)
    assert count == 0 and f"{path_of(clean_tree, 'semantic')} is missing" in sentence


@pytest.mark.parametrize(
    "kind, function, part",
    [
        ("semantic", np.zeros_like, "no pixel of a class"),
        ("disparity", np.zeros_like, "no valid disparity"),
        ("disparity", lambda array: array // 256, "with 8 bits"),
        ("disparity", lambda array: array // 256 * 257, "with 8 bits"),
        ("instance", lambda array: np.full_like(array, 33001), "contradict"),
    ],
)
def test_doubtful_frames_are_named(clean_tree, kind, function, part):
    change(path_of(clean_tree, kind), function)
    if part == "no pixel of a class":
        change(path_of(clean_tree, "instance"), np.zeros_like)
    findings = look(clean_tree)
    ((count, sentence),) = said(findings.doubtful)
    assert count == 1 and part in sentence
    assert sentence.startswith(str(path_of(clean_tree, kind)))
    assert findings.refused == []


def test_train_ids_without_a_255_are_recognised(clean_tree):
    table = np.zeros(256, np.uint8)
    for label in cityscapes.EVALUATED:
        table[label.id] = label.train_id
    for path in all_of(clean_tree, "_labelIds.png"):
        change(path, lambda array: np.minimum(table[array], 18))
    sentences = said(look(clean_tree, tasks=("semantic",)).doubtful)
    assert [count for count, text in sentences if "like train ids" in text] == [4]


def test_splits_without_instances_are_named(clean_tree):
    paths = all_of(clean_tree, "_instanceIds.png")

    def ungroup(array):
        return np.where(array >= 1000, array // 1000, array)

    for path in paths[:-1]:  # as of a city without any
        change(path, ungroup)
    assert look(clean_tree).doubtful == []
    change(paths[-1], ungroup)
    ((count, sentence),) = said(look(clean_tree).doubtful)
    assert count == 4 and "no object to learn from" in sentence


def test_dummy_labels_of_the_test_split_are_not_doubted(clean_tree):
    (image,) = (clean_tree / "leftImg8bit/test").rglob("*.png")
    frame_id = image.name.removesuffix("_leftImg8bit.png")
    for kind, dtype in (("semantic", np.uint8), ("instance", np.uint16)):
        path = cityscapes.frame_path(clean_tree, "test", frame_id, kind, "test")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 64), 3, dtype)).save(path)
    findings = look(clean_tree)
    assert said(findings.refused) == said(findings.doubtful) == []


def test_a_city_in_two_splits_is_named(own_tree):
    sentences = said(look(own_tree).doubtful)
    assert [(n, "city that another split has" in text) for n, text in sentences] == [
        (3, True)  # two frames of val, one of test
    ]


def test_arrows_point_to_centres():
    ids = np.zeros((24, 40), np.uint16)
    ids[2:13, 3:20], ids[5:9, 25:27], ids[20, 30] = 26001, 24001, 24002
    offsets, mask = encode_offsets(ids)
    objects = number_objects(offsets, mask)
    assert objects.max() == 3 and ((objects > 0) == mask).all()
    starts, ends = choose_arrows(offsets, objects, 5)
    seen = set()
    for start, end in zip(starts, ends):
        own = ids[tuple(start)]
        np.testing.assert_allclose(end, np.argwhere(ids == own).mean(0), atol=1e-4)
        seen.add(int(own))
    assert seen == {26001, 24001, 24002}


def test_frames_are_taken_evenly():
    assert take_evenly(range(10), 4) == [0, 3, 5, 8]
    assert take_evenly(range(3), 0) == take_evenly(range(3), 9) == [0, 1, 2]


def test_the_sheet_is_drawn_and_refusals_end_with_1(clean_tree, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    command = [str(clean_tree), "--image-size", "32x64", "--shown", "3"]
    command += ["--data-dir", str(tmp_path / "data"), "--output", str(sheet)]
    show.main(command)
    out = capsys.readouterr().out
    assert "| train | 4 | 4 | 32x64 |" in out and "Warnings" not in out
    assert Image.open(sheet).format == "PNG"
    sheet.unlink()
    change(path_of(clean_tree, "semantic"), first(255))
    with pytest.raises(SystemExit) as ended:
        show.main(command)
    assert ended.value.code == 1 and not sheet.exists()
    assert "- 1 file: " in capsys.readouterr().out


def test_bad_frames_may_be_left_out(clean_tree, tmp_path, capsys):
    path_of(clean_tree, "image").write_bytes(b"no picture")
    sheet = tmp_path / "sheet.png"
    arguments = [str(clean_tree), "--image-size", "32x64", "--shown", "2"]
    arguments += ["--output", str(sheet), "--data-dir", str(tmp_path / "data")]
    with pytest.raises(SystemExit) as ended:
        show.main(arguments)
    assert ended.value.code == 1 and not sheet.exists()
    capsys.readouterr()
    show.main([*arguments, "--skip-bad"])
    shown = capsys.readouterr()
    assert "Refused by training" in shown.out and "are left out" in shown.err
    assert Image.open(sheet).width > 0
