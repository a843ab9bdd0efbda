import shutil

import cv2
import numpy as np
import pytest
from conftest import TREE_IMAGE_SIZE, TREE_SEED
from PIL import Image

from mtl_keras import cityscapes, frames, streets
from mtl_keras.errors import UserError
from mtl_keras.frames import list_frames, read_frame, resize_frame

FRAME = "streets_000001_000019"


def path_of(tree, kind, split="train", frame_id=FRAME):
    return cityscapes.frame_path(tree, split, frame_id, kind)


def read(tree, frame_id=FRAME, size=TREE_IMAGE_SIZE, kinds=frames.LABEL_KINDS):
    listed = list_frames(tree, "train", kinds)
    return read_frame(next(f for f in listed if f.frame_id == frame_id), size)


def test_frames_are_listed_in_order_with_their_files(street_tree):
    listed = list_frames(street_tree, "train", ("semantic", "disparity"))
    ids = [f"streets_{index:06d}_000019" for index in range(4)]
    assert [files.frame_id for files in listed] == ids
    for files in listed:
        assert list(files.paths) == ["image", "semantic", "disparity"]
        assert all(path.is_file() for path in files.paths.values())
    assert list_frames(street_tree, "validation", ()) == []


def test_test_frames_may_lack_labels(street_tree):
    (files,) = list_frames(street_tree, "test", frames.LABEL_KINDS)
    assert list(files.paths) == ["image"]


def test_cities_of_other_names_are_found(own_tree):
    for kind in cityscapes.FILES:
        old = path_of(own_tree, kind)
        new = cityscapes.frame_path(own_tree, "train", FRAME, kind, city="bonn")
        new.parent.mkdir(parents=True, exist_ok=True)
        old.rename(new)
    listed = list_frames(own_tree, "train", frames.LABEL_KINDS)
    assert FRAME in [files.frame_id for files in listed] and len(listed) == 4


def test_a_frame_is_read_as_it_was_rendered(street_tree):
    frame, source_size = read(street_tree)
    scene = streets.render_scene(
        streets.scene_seed(TREE_SEED, "train", 1), TREE_IMAGE_SIZE
    )
    assert source_size == TREE_IMAGE_SIZE and frame.keys() == scene.keys()
    for kind, array in frame.items():
        assert array.dtype == scene[kind].dtype
        np.testing.assert_array_equal(array, scene[kind])


def test_missing_partner_is_named(own_tree):
    path = path_of(own_tree, "instance")
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is missing.*--tasks"):
        list_frames(own_tree, "train", frames.LABEL_KINDS)
    for other in ("streets_000002_000019", "streets_000003_000019"):
        path_of(own_tree, "disparity", frame_id=other).unlink()
    with pytest.raises(UserError, match=f"{path.name} and 2 more files are missing"):
        list_frames(own_tree, "train", frames.LABEL_KINDS)
    assert len(list_frames(own_tree, "train", ("semantic",))) == 4


def test_what_is_no_tree(tmp_path):
    with pytest.raises(UserError, match=f"no directory {tmp_path / 'nowhere'}"):
        list_frames(tmp_path / "nowhere", "train", ())
    with pytest.raises(UserError, match="not a Cityscapes tree.*leftImg8bit"):
        list_frames(tmp_path, "train", ())


def test_has_files(own_tree):
    assert frames.has_files(own_tree, "semantic")
    shutil.rmtree(own_tree / "gtFine" / "train")
    assert frames.has_files(own_tree, "semantic")  # those of val
    shutil.rmtree(own_tree / "gtFine" / "val")
    assert not frames.has_files(own_tree, "semantic")


@pytest.mark.parametrize("kind", cityscapes.FILES)
def test_truncated_file_is_named(own_tree, kind):
    path = path_of(own_tree, kind)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{path.name} cannot be read.*copy it again"):
        read(own_tree)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=f"{path.name} cannot be read"):
        read(own_tree)


def in_mode(path, mode):
    array = np.asarray(Image.open(path))
    if mode == "I;16":
        Image.fromarray(np.asarray(array, np.uint16)).save(path)
    else:
        Image.fromarray(np.asarray(array, np.uint8)).convert(mode).save(path)


@pytest.mark.parametrize(
    "kind, mode, wanted",
    [
        ("image", "RGBA", "8-bit RGB"),
        ("image", "L", "8-bit RGB"),
        ("image", "P", "8-bit RGB"),
        ("semantic", "I;16", "8-bit grey"),
        ("semantic", "P", "8-bit grey"),
        ("semantic", "RGB", "8-bit grey"),
        ("instance", "L", "16-bit grey"),
        ("disparity", "L", "16-bit grey"),
    ],
)
def test_wrong_mode_is_named(own_tree, kind, mode, wanted):
    path = path_of(own_tree, kind)
    in_mode(path, mode)
    with pytest.raises(UserError, match=f"{path.name} must be {wanted}.*{mode}"):
        read(own_tree)


@pytest.mark.parametrize("kind", frames.LABEL_KINDS)
def test_size_mismatch_is_named(own_tree, kind):
    path = path_of(own_tree, kind)
    array = np.asarray(Image.open(path))
    Image.fromarray(array[:30, :60]).save(path)
    with pytest.raises(UserError, match=f"{path.name} is 30x60.*Img8bit.png is 32x64"):
        read(own_tree)


def test_resizing_invents_no_id(street_tree):
    for size in ((64, 128), (20, 36), (17, 90)):
        whole, _ = read(street_tree)
        frame, source_size = read(street_tree, size=size)
        assert source_size == TREE_IMAGE_SIZE
        assert frame["image"].shape == (*size, 3)
        for kind in frames.LABEL_KINDS:
            assert frame[kind].shape == size and frame[kind].dtype == whole[kind].dtype
            assert np.isin(frame[kind], whole[kind]).all(), kind


def test_labels_stay_in_step_with_one_another(street_tree):
    frame, _ = read(street_tree, size=(20, 36))
    things = frame["instance"] >= cityscapes.FIRST_INSTANCE_ID
    np.testing.assert_array_equal(
        frame["instance"][things] // 1000, frame["semantic"][things]
    )


def test_image_shrinks_by_averaging():
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0], image[1, 1] = 100, 60
    small = resize_frame({"image": image}, (2, 2))["image"]
    np.testing.assert_array_equal(small[0, 0], (100 + 60) / 4)
    np.testing.assert_array_equal(small[1, 1], 0)


def test_png_round_trip():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3)).astype("uint8")
    ids = rng.integers(0, 2**16, (5, 7)).astype("uint16")
    for array in (image, ids):
        coded = np.frombuffer(frames.encode_png(array), np.uint8)
        decoded = cv2.imdecode(coded, cv2.IMREAD_UNCHANGED)
        decoded = decoded[..., ::-1] if array.ndim == 3 else decoded
        np.testing.assert_array_equal(decoded, array)
