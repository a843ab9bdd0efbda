"""The archives of Cityscapes as they were downloaded, beside folders or alone."""

import io
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from conftest import TREE_IMAGE_SIZE

from mtl_keras.data import examples, frames, records, sources
from mtl_keras.data.pipelines import load_ids
from mtl_keras.errors import UserError

NAMES = {
    "leftImg8bit": "leftImg8bit_trainvaltest.zip",
    "gtFine": "gtFine_trainvaltest.zip",
    "disparity": "disparity_trainvaltest.zip",
}


def pack(tree, archive, folders, top=""):
    """Packs folders of a tree as the official archives are packed, with what a Mac
    adds."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("README", "about the data")
        for folder in folders:
            for path in sorted((tree / folder).rglob("*.png")):
                name = path.relative_to(tree).as_posix()
                file.write(path, top + name)
                place, _, leaf = name.rpartition("/")
                file.writestr(f"__MACOSX/{place}/._{leaf}", b"\0\5\x16\7")
    return archive


@pytest.fixture
def packed(street_tree, tmp_path):
    """A folder that holds the three archives and nothing else."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name, archive in NAMES.items():
        pack(street_tree, folder / archive, [name])
    return folder


def frames_of(data, split="train"):
    listed = frames.list_frames(data, split, frames.LABEL_KINDS)
    return {
        files.frame_id: frames.read_frame(files, TREE_IMAGE_SIZE) for files in listed
    }


def assert_alike(found, expected):
    assert list(found) == list(expected) and len(found) > 0
    for frame_id, (frame, size) in expected.items():
        assert found[frame_id][1] == size
        assert list(found[frame_id][0]) == list(frame)
        for kind, array in frame.items():
            np.testing.assert_array_equal(found[frame_id][0][kind], array)


@pytest.mark.parametrize("split", ["train", "val"])
def test_archives_are_read_in_place(packed, street_tree, split):
    before = sorted(packed.iterdir())
    assert_alike(frames_of(packed, split), frames_of(street_tree, split))
    assert sorted(packed.iterdir()) == before
    (image,) = frames.list_frames(packed, "test", frames.LABEL_KINDS)
    assert list(image.paths) == ["image"]


def test_folders_and_archives_mix(packed, street_tree, tmp_path):
    expected = frames_of(street_tree)
    shutil.copytree(street_tree / "gtFine", packed / "gtFine")
    (packed / NAMES["gtFine"]).unlink()
    assert_alike(frames_of(packed), expected)
    alone = pack(street_tree, tmp_path / "all.ZIP", NAMES, top="Cityscapes/")
    assert_alike(frames_of(alone), expected)
    (packed / NAMES["leftImg8bit"]).rename(tmp_path / "images.zip")
    several = f"{packed},{tmp_path / 'images.zip'}"
    assert_alike(frames_of(several), expected)


def test_what_is_unpacked_wins(packed, street_tree):
    shutil.copytree(street_tree / "leftImg8bit", packed / "leftImg8bit")
    (files, *_) = frames.list_frames(packed, "train", ("semantic",))
    assert isinstance(files.paths["semantic"], sources.Member)
    assert files.paths["image"].is_file()
    assert len(frames.list_frames(packed, "train", ())) == 4


def test_records_of_archives(packed, street_tree, tmp_path):
    tasks = ("semantic", "instance", "depth")
    builder = records.prepare_cityscapes(
        packed, TREE_IMAGE_SIZE, tasks, tmp_path / "data"
    )
    expected = records.prepare_cityscapes(
        street_tree, TREE_IMAGE_SIZE, tasks, tmp_path / "data"
    )
    assert load_ids(builder, "val") == load_ids(expected, "val")
    again = records.prepare_cityscapes(
        packed, TREE_IMAGE_SIZE, tasks, tmp_path / "data"
    )
    assert again.data_path == builder.data_path != expected.data_path
    (packed / NAMES["disparity"]).unlink()
    pack(street_tree, packed / NAMES["disparity"], ["disparity"], top="other/")
    changed = records.prepare_cityscapes(
        packed, TREE_IMAGE_SIZE, tasks, tmp_path / "data"
    )
    assert changed.data_path != builder.data_path  # its members have other names


def test_workers_open_archives_themselves(packed):
    (files, *_) = frames.list_frames(packed, "train", frames.LABEL_KINDS)
    job = (files, TREE_IMAGE_SIZE, frames.LABEL_KINDS)
    example, _ = examples.read_example(pickle.loads(pickle.dumps(job)))
    assert example["image"][:4] == b"\x89PNG"


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_archive_is_named(packed, name):
    (packed / NAMES[name]).unlink()
    with pytest.raises(UserError, match=f"put {NAMES[name]}"):
        frames.list_frames(packed, "train", frames.LABEL_KINDS)


def add(archive, name, content=b"x"):
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)


def lead_out(archive):
    add(archive, "../../etc/passwd")


def lead_to_the_root(archive):
    add(archive, "/etc/passwd")


def lead_to_another_drive(archive):
    add(archive, "C:\\windows\\x")


def inflate(archive):
    add(archive, "gtFine/train/a/a_1_2_gtFine_labelIds.png", bytes(2**22))


def encrypt(archive):
    """Sets the bit that says so, in the directory of the archive."""
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)


def compress_otherwise(archive):
    """Says Deflate64, which Windows uses for large files, in the directory."""
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\1\2") + 10] = 9
    archive.write_bytes(content)


def cut(archive):
    archive.write_bytes(archive.read_bytes()[:-200])


def replace(archive):
    archive.write_text("<html>please log in</html>")


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lead_out, "'../../etc/passwd', which leads out of it"),
        (lead_to_the_root, "'/etc/passwd', which leads out of it"),
        (lead_to_another_drive, "which leads out of it"),
        (inflate, "claims 4 MiB of"),
        (encrypt, "is encrypted"),
        (compress_otherwise, "compressed by a method that Python does not know"),
        (cut, "is not a whole zip archive.*download it again"),
        (replace, "is not a whole zip archive.*download it again"),
    ],
)
def test_archives_that_are_not_as_downloaded_are_refused(packed, damage, sentence):
    damage(packed / NAMES["gtFine"])
    with pytest.raises(UserError, match=f"{NAMES['gtFine']}.*{sentence}"):
        frames.list_frames(packed, "train", ("semantic",))


def test_a_damaged_member_is_named(packed):
    archive = packed / NAMES["gtFine"]
    (files, *_) = frames.list_frames(packed, "train", ("semantic",))
    member = files.paths["semantic"]
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo(member.path)
    content = bytearray(archive.read_bytes())
    start = info.header_offset + 30 + len(info.filename)
    content[start + info.compress_size // 2] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(UserError, match=f"{member.name} is damaged.*download"):
        frames.read_frame(files, TREE_IMAGE_SIZE)


def test_other_archives_in_the_folder_are_left_alone(packed, street_tree):
    (packed / "backup.zip").write_bytes(b"not mine")
    (packed / "._gtFine.zip").write_bytes(b"of a Mac")
    assert_alike(frames_of(packed), frames_of(street_tree))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no directory or archive .*nowhere"):
        sources.find_sources(f"{tmp_path},{tmp_path / 'nowhere'}")
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    (tmp_path / "empty.zip").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="has no folder leftImg8bit; put leftImg8bit_"):
        frames.list_frames(tmp_path / "empty.zip", "train", ())


def test_what_holds_nothing_of_cityscapes_is_refused_among_others(own_tree, tmp_path):
    other = tmp_path / "arrays"
    (other / "train" / "image").mkdir(parents=True)
    with pytest.raises(UserError, match="arrays holds none of the folders"):
        sources.find_sources(f"{own_tree},{other}")
    assert sources.find_sources(str(other)) == (other,)


def test_two_frames_of_one_name_are_refused_unless_alike(own_tree, tmp_path):
    copy = shutil.copytree(own_tree, tmp_path / "copy")
    expected = frames_of(own_tree)
    assert_alike(frames_of(f"{own_tree},{copy}"), expected)
    for folder in ("gtFine", "leftImg8bit"):
        path = sorted((copy / folder / "train").rglob("*.png"))[0]
        content = path.read_bytes()
        path.write_bytes(content + b"\0")
        with pytest.raises(UserError, match="are not the same; leave one of them"):
            frames_of(f"{own_tree},{copy}")
        path.write_bytes(content)
    assert_alike(frames_of(f"{own_tree},{copy}"), expected)
