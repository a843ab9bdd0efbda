import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import TREE_IMAGE_SIZE, TREE_SEED, TREE_SIZES
from PIL import Image

from mtl_keras import cityscapes, data, datasets
from mtl_keras.errors import UserError

ALL = ("semantic", "instance", "depth")


def records(builder, split):
    return list(builder.as_dataset(split, shuffle_files=False).as_numpy_iterator())


def prepare(tree, data_dir, image_size=TREE_IMAGE_SIZE, tasks=ALL):
    return datasets.prepare_cityscapes(tree, image_size, tasks, data_dir)


def assert_same_records(first, second):
    assert len(first) == len(second) > 0
    for one, two in zip(first, second):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


@pytest.fixture
def count_reads(monkeypatch):
    """The ids of the frames that were read from now on."""
    read = []
    original = datasets._read_example

    def counting(job):
        read.append(job[0].frame_id)
        return original(job)

    monkeypatch.setattr(datasets, "_read_example", counting)
    return read


def path_of(tree, kind, index=1, split="train"):
    return cityscapes.frame_path(tree, split, f"streets_{index:06d}_000019", kind)


def test_a_tree_holds_the_records_of_the_rendered_streets(street_tree, tmp_path):
    sizes = {split: TREE_SIZES[split] for split in ("train", "val")}
    rendered = datasets.prepare_streets(TREE_IMAGE_SIZE, sizes, TREE_SEED, tmp_path)
    read = prepare(street_tree, tmp_path)
    for split, size in sizes.items():
        assert read.info.splits[split].num_examples == size
        assert_same_records(records(read, split), records(rendered, split))
    first = records(read, "train")[0]
    assert first["id"] == b"streets_000000_000019"
    assert first["source_width"] == 64
    shapes = {name: array.shape for name, array in first.items() if np.ndim(array)}
    assert shapes == {
        "image": (32, 64, 3),
        "semantic": (32, 64, 1),
        "instance": (32, 64, 1),
        "disparity": (32, 64, 1),
    }
    assert {n: first[n].dtype.name for n in ("semantic", "instance", "disparity")} == {
        "semantic": "uint8",
        "instance": "uint16",
        "disparity": "uint16",
    }


def test_many_frames_are_made_by_worker_processes(tmp_path):
    sizes = {"train": 33}  # enough to be worth it
    together = datasets.prepare_streets((32, 64), sizes, 1, tmp_path)
    alone = datasets.prepare_streets((32, 64), {"train": 3}, 1, tmp_path)
    assert_same_records(records(together, "train")[:3], records(alone, "train"))


def test_records_are_reused(street_tree, tmp_path, count_reads):
    prepare(street_tree, tmp_path)
    assert len(count_reads) == sum(TREE_SIZES.values())
    prepare(street_tree, tmp_path)
    assert len(count_reads) == sum(TREE_SIZES.values())


def test_records_are_made_again_for_another_size_or_task(
    street_tree, tmp_path, count_reads
):
    names = {
        prepare(street_tree, tmp_path, size, tasks).builder_config.name
        for size, tasks in (
            ((32, 64), ("instance",)),
            ((32, 64), ALL),
            ((32, 32), ALL),
        )
    }
    assert len(names) == 3
    assert len(count_reads) == 3 * sum(TREE_SIZES.values())


def test_records_of_two_tasks_serve_for_one(street_tree, tmp_path, count_reads):
    prepare(street_tree, tmp_path, tasks=("semantic", "depth"))
    del count_reads[:]
    prepare(street_tree, tmp_path, tasks=("semantic",))
    assert not count_reads


def test_two_processes_make_the_records_once(street_tree, tmp_path):
    """As two trainings that are started at the same time do."""
    script = (
        "import sys; from mtl_keras.datasets import prepare_cityscapes as prepare;"
        "builder = prepare(sys.argv[1], (32, 64), ['depth'], sys.argv[2]);"
        "print(builder.info.splits['train'].num_examples)"
    )
    command = [sys.executable, "-c", script, str(street_tree), str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    texts = [process.communicate()[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [text.split()[-1] for text in texts] == [str(TREE_SIZES["train"])] * 2
    assert sum("Generating" in text or "Downloading" in text for text in texts) == 1


@pytest.mark.parametrize("task", ALL)
def test_records_of_all_tasks_serve_for_one(street_tree, tmp_path, count_reads, task):
    """The same targets, and no file is read twice."""
    own = prepare(street_tree, tmp_path / "own", tasks=(task,))
    prepare(street_tree, tmp_path / "all")
    del count_reads[:]
    shared = prepare(street_tree, tmp_path / "all", tasks=(task,))
    assert not count_reads
    assert set(own.info.features) < set(shared.info.features)
    for expected, batch in zip(
        data.make_dataset(own, "val", (task,), "train", 2),
        data.make_dataset(shared, "val", (task,), "train", 2),
        strict=True,
    ):
        tf.nest.map_structure(np.testing.assert_array_equal, expected, batch)


def test_records_are_made_again_when_a_file_changes(own_tree, tmp_path, count_reads):
    before = records(prepare(own_tree, tmp_path), "train")
    path = path_of(own_tree, "semantic")
    changed = np.asarray(Image.open(path)).copy()
    changed[0, 0] = 33 if changed[0, 0] != 33 else 7
    Image.fromarray(changed).save(path)
    after = records(prepare(own_tree, tmp_path), "train")
    assert len(count_reads) == 2 * sum(TREE_SIZES.values())
    assert_same_records(before[:1] + before[2:], after[:1] + after[2:])
    assert after[1]["semantic"][0, 0, 0] == changed[0, 0]
    assert before[1]["semantic"][0, 0, 0] != changed[0, 0]


def test_a_touched_file_counts_as_changed(own_tree, tmp_path, count_reads):
    prepare(own_tree, tmp_path)
    os.utime(path_of(own_tree, "disparity"), (1, 1))
    prepare(own_tree, tmp_path)
    assert len(count_reads) == 2 * sum(TREE_SIZES.values())


def test_only_the_files_of_the_tasks_have_to_exist(own_tree, tmp_path, capsys):
    shutil.rmtree(own_tree / "disparity")
    builder = prepare(own_tree, tmp_path, tasks=("semantic", "instance"))
    assert "disparity" not in builder.info.features
    with pytest.raises(UserError, match="disparity.png and 3 more files are missing"):
        prepare(own_tree, tmp_path)
    shutil.rmtree(own_tree / "gtFine")
    with pytest.raises(UserError, match="labelIds.png and 7 more files are missing"):
        prepare(own_tree, tmp_path, tasks=("semantic", "depth"))
    assert "sky" not in capsys.readouterr().err


def test_depth_uses_the_labels_for_the_sky_if_there_are_any(own_tree, tmp_path, capsys):
    builder = prepare(own_tree, tmp_path, tasks=("depth",))
    assert "semantic" in builder.info.features and "instance" not in (
        builder.info.features
    )
    assert "sky" not in capsys.readouterr().err
    shutil.rmtree(own_tree / "gtFine")
    builder = prepare(own_tree, tmp_path, tasks=("depth",))
    assert "semantic" not in builder.info.features
    assert capsys.readouterr().err.count("the sky is masked") == 1


def test_other_shapes_are_stretched_with_one_notice(own_tree, tmp_path, capsys):
    builder = prepare(own_tree, tmp_path, (40, 40))
    errors = capsys.readouterr().err
    notice = "streets_000000_000019 is 32x64; frames of another shape than 40x40"
    assert errors.count("Note:") == errors.count(notice) == 1
    first = records(builder, "train")[0]
    assert first["image"].shape == (40, 40, 3) and first["source_width"] == 64
    original = records(prepare(own_tree, tmp_path), "train")[0]
    for kind in ("semantic", "instance", "disparity"):
        assert np.isin(first[kind], original[kind]).all(), kind


def test_same_shape_needs_no_notice(street_tree, tmp_path, capsys):
    prepare(street_tree, tmp_path, (64, 128))
    assert "Note" not in capsys.readouterr().err


def test_unlabelled_test_frames_have_blank_labels(street_tree, tmp_path):
    (record,) = records(prepare(street_tree, tmp_path), "test")
    assert record["image"].any()
    for kind in ("semantic", "instance", "disparity"):
        assert not record[kind].any()


def test_trees_without_a_frame(own_tree, tmp_path):
    with pytest.raises(UserError, match="no directory"):
        prepare(tmp_path / "nowhere", tmp_path)
    empty = tmp_path / "empty"
    (empty / "leftImg8bit" / "train" / "bonn").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{empty} holds no frame.*train, val, test"):
        prepare(empty, tmp_path)
    (empty / "leftImg8bit").rename(empty / "images")
    with pytest.raises(UserError, match="not a Cityscapes tree"):
        prepare(empty, tmp_path)


def test_a_split_without_frames_is_named(own_tree, tmp_path):
    shutil.rmtree(own_tree / "leftImg8bit" / "val")
    builder = prepare(own_tree, tmp_path)
    datasets.check_split(builder, "train")
    with pytest.raises(UserError, match=f"{own_tree}.*split 'val'.*train, test"):
        datasets.check_split(builder, "val")


def built(data_dir):
    """The directories of records, complete or not."""
    folder = data_dir / "cityscapes_mtl"
    return [path for path in folder.rglob("*") if path.is_file()]


def test_nothing_is_left_of_a_failed_attempt(own_tree, tmp_path):
    path = path_of(own_tree, "instance", index=3)
    content = path.read_bytes()
    stat = path.stat()
    path.write_bytes(content[:50])
    data_dir = tmp_path / "data"
    with pytest.raises(UserError, match=f"{path.name} cannot be read"):
        prepare(own_tree, data_dir)
    assert built(data_dir) == []
    with pytest.raises(UserError, match=f"{path.name} cannot be read"):
        prepare(own_tree, data_dir)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(records(prepare(own_tree, data_dir), "train")) == 4


def test_a_killed_attempt_is_made_again(street_tree, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_read_example", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(street_tree, tmp_path)
    assert len(records(prepare(street_tree, tmp_path), "train")) == 4


def test_streets_depend_on_the_seed(tmp_path):
    first, other = (
        records(
            datasets.prepare_streets((32, 64), {"train": 1}, seed, tmp_path), "train"
        )
        for seed in (0, 1)
    )
    assert (first[0]["image"] != other[0]["image"]).any()
