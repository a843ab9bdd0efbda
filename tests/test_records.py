import os
import shutil
import subprocess
import sys
import threading
import time

import filelock
import numpy as np
import pytest
import tensorflow as tf
from conftest import TREE_IMAGE_SIZE, TREE_SEED, TREE_SIZES
from PIL import Image
from test_workers import kill_process

from mtl_keras import cityscapes, workers
from mtl_keras.data import examples, frames, making, pipelines, records
from mtl_keras.errors import UserError

ALL = ("semantic", "instance", "depth")


def list_records(builder, split):
    return list(builder.as_dataset(split, shuffle_files=False).as_numpy_iterator())


def prepare(tree, data_dir, image_size=TREE_IMAGE_SIZE, tasks=ALL, **options):
    return records.prepare_cityscapes(tree, image_size, tasks, data_dir, **options)


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
    original = examples.read_example

    def counting(job):
        read.append(job[0].frame_id)
        return original(job)

    monkeypatch.setattr(examples, "read_example", counting)
    return read


def path_of(tree, kind, index=1, split="train"):
    return cityscapes.frame_path(tree, split, f"streets_{index:06d}_000019", kind)


def test_a_tree_holds_the_records_of_the_rendered_streets(street_tree, tmp_path):
    sizes = {split: TREE_SIZES[split] for split in ("train", "val")}
    rendered = records.prepare_streets(TREE_IMAGE_SIZE, sizes, TREE_SEED, tmp_path)
    read = prepare(street_tree, tmp_path)
    for split, size in sizes.items():
        assert read.info.splits[split].num_examples == size
        assert_same_records(list_records(read, split), list_records(rendered, split))
    first = list_records(read, "train")[0]
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
    together = records.prepare_streets((32, 64), sizes, 1, tmp_path)
    alone = records.prepare_streets((32, 64), {"train": 3}, 1, tmp_path)
    assert_same_records(
        list_records(together, "train")[:3], list_records(alone, "train")
    )


SCRIPT = """
import os, sys
from mtl_keras.data import making, records
builder = records.prepare_streets((32, 64), {"train": 33}, 1, "records")
print("frames:", builder.info.splits["train"].num_examples)
"""


def test_a_script_needs_no_main_guard(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    completed = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.count("frames: 33") == 1


def test_the_lock_is_let_go_of_when_a_worker_dies(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(workers, "count_cores", lambda: 2)
        patch.setattr(examples, "render_example", kill_process)
        with pytest.raises(UserError, match="worker process ended"):
            records.prepare_streets((32, 64), {"train": 40}, 1, tmp_path)
    assert not [*tmp_path.glob("streets/*/*")]
    builder = records.prepare_streets((32, 64), {"train": 2}, 1, tmp_path)
    assert builder.info.splits["train"].num_examples == 2


def test_waiting_for_another_process_is_told(tmp_path, capsys):
    is_held = threading.Event()

    def hold():
        with filelock.FileLock(tmp_path / "lock"):
            is_held.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold)
    other.start()
    is_held.wait()
    records.prepare_streets((32, 64), {"train": 1}, 1, tmp_path)
    other.join()
    assert f"Waiting for the process that holds {tmp_path}" in capsys.readouterr().err


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a bit": lambda directory, records: flip_a_bit(records),
    "cut": lambda directory, records: os.truncate(records, 500),
    "longer": lambda directory, records: records.write_bytes(
        records.read_bytes() + bytes(9)
    ),
    "no records": lambda directory, records: records.unlink(),
    "empty info": lambda directory, records: os.truncate(
        directory / "dataset_info.json", 0
    ),
    "cut info": lambda directory, records: os.truncate(
        directory / "dataset_info.json", 99
    ),
    "no info": lambda directory, records: (directory / "dataset_info.json").unlink(),
    "nothing": lambda directory, records: [p.unlink() for p in directory.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_records_are_made_again(tmp_path, capsys, damage):
    def make():
        return records.prepare_streets((32, 64), {"train": 2, "val": 1}, 1, tmp_path)

    builder = make()
    whole = list_records(builder, "train")
    directory = tmp_path / "streets" / builder.builder_config.name / "1.0.0"
    (path,) = directory.glob("*train.tfrecord*")
    capsys.readouterr()
    damage(directory, path)
    assert_same_records(list_records(make(), "train"), whole)
    assert f"Note: {directory}" in capsys.readouterr().err
    make()
    assert "Note" not in capsys.readouterr().err


def test_large_records_are_not_read_through(tmp_path, capsys, monkeypatch):
    def make():
        return records.prepare_streets((32, 64), {"train": 2}, 1, tmp_path)

    monkeypatch.setattr(making, "CHECKED_BYTES", 0)
    (path,) = make().data_path.glob("*train.tfrecord*")
    capsys.readouterr()
    flip_a_bit(path)
    make()
    assert "Note" not in capsys.readouterr().err
    os.truncate(path, os.path.getsize(path) - 1)
    make()
    assert "damaged records of train" in capsys.readouterr().err


def test_what_a_killed_process_left_is_removed(tmp_path):
    builder = records.prepare_streets((32, 64), {"train": 1}, 1, tmp_path)
    directory = tmp_path / "streets" / builder.builder_config.name
    shutil.rmtree(directory / "1.0.0")
    (directory / "incomplete.ABC123_1.0.0").mkdir()
    records.prepare_streets((32, 64), {"train": 1}, 1, tmp_path)
    assert [path.name for path in directory.iterdir()] == ["1.0.0"]


def make_file(path):
    path.write_text("")


def make_dangling_link(path):
    path.symlink_to("/nowhere/disk")


@pytest.mark.parametrize(
    "make, reason",
    [
        (make_file, "it is not a directory"),
        (make_dangling_link, "a link to /nowhere/disk, which does not exist"),
    ],
)
def test_no_place_for_the_records(street_tree, tmp_path, make, reason):
    data_dir = tmp_path / "data"
    make(data_dir)
    with pytest.raises(UserError, match=f"kept in {data_dir} \\(.*{reason}"):
        prepare(street_tree, data_dir)
    with pytest.raises(UserError, match=f"kept in {data_dir} \\(.*{reason}"):
        records.prepare_streets((32, 64), {"train": 1}, 1, data_dir)
    with pytest.raises(UserError, match="no directory"):  # that comes first
        prepare(tmp_path / "nowhere", data_dir)


def test_records_in_a_place_that_may_not_be_written(tmp_path, monkeypatch):
    def refuse(lock, **options):
        raise PermissionError(13, "Permission denied", lock.lock_file)

    sizes = {"train": 1}
    records.prepare_streets((32, 64), sizes, 1, tmp_path)
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    records.prepare_streets((32, 64), sizes, 1, tmp_path)  # nothing to be written
    with pytest.raises(UserError, match=f"kept in {tmp_path} .Permission denied"):
        records.prepare_streets((32, 64), sizes, 2, tmp_path)


def test_records_of_another_version_are_not_reused(
    street_tree, tmp_path, count_reads, monkeypatch
):
    prepare(street_tree, tmp_path)
    monkeypatch.setattr(frames, "VERSION", frames.VERSION + 1)
    prepare(street_tree, tmp_path)
    assert len(count_reads) == 2 * sum(TREE_SIZES.values())


def test_hidden_files_are_passed_over(own_tree, tmp_path):
    for path in [*own_tree.rglob("*.png")]:
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(78))
    builder = prepare(own_tree, tmp_path)
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert sizes == TREE_SIZES


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
        "import sys; from mtl_keras.data.records import prepare_cityscapes as prepare;"
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
    assert sum("Making the records" in text for text in texts) == 1


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
        pipelines.make_dataset(own, "val", (task,), "train_ids", 2),
        pipelines.make_dataset(shared, "val", (task,), "train_ids", 2),
        strict=True,
    ):
        tf.nest.map_structure(np.testing.assert_array_equal, expected, batch)


def test_records_are_made_again_when_a_file_changes(own_tree, tmp_path, count_reads):
    before = list_records(prepare(own_tree, tmp_path), "train")
    path = path_of(own_tree, "semantic")
    changed = np.asarray(Image.open(path)).copy()
    changed[0, 0] = 33 if changed[0, 0] != 33 else 7
    Image.fromarray(changed).save(path)
    after = list_records(prepare(own_tree, tmp_path), "train")
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
    first = list_records(builder, "train")[0]
    assert first["image"].shape == (40, 40, 3) and first["source_width"] == 64
    original = list_records(prepare(own_tree, tmp_path), "train")[0]
    for kind in ("semantic", "instance", "disparity"):
        assert np.isin(first[kind], original[kind]).all(), kind


def test_same_shape_needs_no_notice(street_tree, tmp_path, capsys):
    prepare(street_tree, tmp_path, (64, 128))
    assert "Note" not in capsys.readouterr().err


def test_unlabelled_test_frames_have_blank_labels(street_tree, tmp_path):
    (record,) = list_records(prepare(street_tree, tmp_path), "test")
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
    assert [*prepare(own_tree, tmp_path).info.splits] == ["train", "test"]
    with pytest.raises(UserError, match=f"{own_tree}.*split 'val'.*train, test"):
        prepare(own_tree, tmp_path, splits=("val",))
    with pytest.raises(UserError, match="rendered streets.*split 'demo'.*val, test"):
        records.prepare("", (32, 64), ALL, tmp_path, splits=("demo",))


def test_only_the_splits_that_are_asked_for_are_made(
    street_tree, tmp_path, count_reads
):
    builder = prepare(street_tree, tmp_path, splits=("val",))
    assert [*builder.info.splits] == ["val"]
    assert len(count_reads) == TREE_SIZES["val"]
    prepare(street_tree, tmp_path, splits=("val",))
    assert len(count_reads) == TREE_SIZES["val"]


def make_coarse(tree):
    """Turns the training frames of a tree into frames with coarse labels."""
    for folder in ("leftImg8bit", "disparity", "gtFine"):
        new = tree / folder.replace("gtFine", "gtCoarse") / "train_extra"
        new.parent.mkdir(exist_ok=True)
        (tree / folder / "train").rename(new)
        for path in [*new.rglob("*_gtFine_*")]:
            path.rename(path.with_name(path.name.replace("gtFine", "gtCoarse")))


def test_frames_with_coarse_labels(own_tree, street_tree, tmp_path, monkeypatch):
    make_coarse(own_tree)
    assert [*prepare(own_tree, tmp_path).info.splits] == ["val", "test"]
    extra = prepare(own_tree, tmp_path, splits=("train_extra",))
    fine = prepare(street_tree, tmp_path, splits=("train",))
    assert_same_records(list_records(extra, "train_extra"), list_records(fine, "train"))
    shutil.copytree(street_tree, own_tree, dirs_exist_ok=True)
    both = prepare(own_tree, tmp_path, splits=("train", "train_extra"))
    assert both.info.splits["train+train_extra"].num_examples == 2 * TREE_SIZES["train"]
    batches = pipelines.make_dataset(
        both, "train+train_extra", ("depth",), "train_ids", 8
    )
    assert len(next(iter(batches))[0]) == 8
    for budget in (pipelines.CACHE_BYTES, 0):
        monkeypatch.setattr(pipelines, "CACHE_BYTES", budget)
        batches = pipelines.make_training_dataset(
            both, ("depth",), "train_ids", 8, split="train+train_extra"
        )
        assert len(next(iter(batches))[0]) == 8
    (own_tree / "gtCoarse").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="put gtCoarse.zip beside"):
        prepare(own_tree, tmp_path, splits=("train_extra",))
    (own_tree / "disparity" / "train_extra").rename(tmp_path / "other")
    with pytest.raises(UserError, match="put disparity_trainextra.zip beside"):
        prepare(own_tree, tmp_path, tasks=("depth",), splits=("train_extra",))


def test_bad_frames_are_left_out_and_listed(own_tree, tmp_path, capsys):
    whole = list_records(prepare(own_tree, tmp_path, splits=("train",)), "train")
    path_of(own_tree, "image", 1).write_bytes(b"no picture")
    path_of(own_tree, "disparity", 2).unlink()
    with pytest.raises(UserError, match="streets_000002.*disparity.png is missing"):
        prepare(own_tree, tmp_path, splits=("train",))
    capsys.readouterr()
    for _ in range(2):  # made, and found again
        builder = prepare(own_tree, tmp_path, splits=("train",), skip_bad=True)
        assert_same_records(list_records(builder, "train"), [whole[0], whole[3]])
        note = capsys.readouterr().err
        assert f"2 frames of {own_tree} are left out" in note
        assert "000001_000019_leftImg8bit.png cannot be read as an image" in note
        assert "000002_000019_disparity.png is missing." in note
    with pytest.raises(UserError, match="is missing"):  # never by surprise
        prepare(own_tree, tmp_path, splits=("train",))


def test_records_of_whole_data_serve_where_bad_frames_may_be_left_out(
    street_tree, tmp_path, count_reads, capsys
):
    prepare(street_tree, tmp_path)
    before = len(count_reads)
    prepare(street_tree, tmp_path, skip_bad=True)
    assert len(count_reads) == before
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["damaged", "missing"])
def test_data_of_bad_frames_alone_are_refused(own_tree, tmp_path, fault):
    for index in range(TREE_SIZES["val"]):
        path = path_of(own_tree, "semantic", index, "val")
        path.write_bytes(b"?") if fault == "damaged" else path.unlink()
    with pytest.raises(UserError, match="000000_000019_gtFine_labelIds.png"):
        prepare(own_tree, tmp_path / "data", splits=("val",), skip_bad=True)
    assert built(tmp_path / "data") == []


def built(data_dir):
    """The directories of records, complete or not."""
    folder = data_dir / "cityscapes_frames"
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
    assert len(list_records(prepare(own_tree, data_dir), "train")) == 4


def test_a_killed_attempt_is_made_again(street_tree, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(examples, "read_example", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(street_tree, tmp_path)
    assert len(list_records(prepare(street_tree, tmp_path), "train")) == 4


def test_streets_depend_on_the_seed(tmp_path):
    first, other = (
        list_records(
            records.prepare_streets((32, 64), {"train": 1}, seed, tmp_path), "train"
        )
        for seed in (0, 1)
    )
    assert (first[0]["image"] != other[0]["image"]).any()
