import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
from conftest import TREE_IMAGE_SIZE, TREE_SEED
from PIL import Image

from mtl_keras import cityscapes, streets
from mtl_keras.data import frames
from mtl_keras.data.frames import list_frames, read_frame, resize_frame
from mtl_keras.errors import UserError
from mtl_keras.png import encode_png

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
    with pytest.raises(UserError, match=f"{path.name} is missing.*leave out the task"):
        list_frames(own_tree, "train", frames.LABEL_KINDS)
    for other in ("streets_000002_000019", "streets_000003_000019"):
        path_of(own_tree, "disparity", frame_id=other).unlink()
    with pytest.raises(UserError, match=f"{path.name} and 2 more files are missing"):
        list_frames(own_tree, "train", frames.LABEL_KINDS)
    assert len(list_frames(own_tree, "train", ("semantic",))) == 4


def test_hidden_files_are_no_frames(own_tree):
    """A Mac leaves `._NAME` beside NAME in archives and on foreign disks."""
    for path in [*own_tree.rglob("*.png")]:
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7" + bytes(78))
    trash = path_of(own_tree, "image").parent.with_name(".Trash")
    shutil.copytree(path_of(own_tree, "image").parent, trash)
    listed = list_frames(own_tree, "train", frames.LABEL_KINDS)
    assert [files.frame_id for files in listed] == [
        f"streets_{index:06d}_000019" for index in range(4)
    ]
    for split in ("train", "val"):
        for path in (own_tree / "gtFine" / split).rglob("[!.]*_labelIds.png"):
            path.unlink()
    assert not frames.has_files(own_tree, "semantic")


def test_frames_of_one_name_are_named(own_tree):
    city = path_of(own_tree, "image").parent
    shutil.copytree(city, city.with_name("bonn"))
    with pytest.raises(
        UserError, match="streets/streets_000000.*bonn/.*have the same name"
    ):
        list_frames(own_tree, "train", ())


def test_links_to_nowhere_are_missing_files(own_tree):
    path = path_of(own_tree, "image")
    path.unlink()
    path.symlink_to("nowhere.png")
    with pytest.raises(UserError, match=f"{path.name} is missing"):
        list_frames(own_tree, "train", ())


def test_what_may_not_be_read_is_named(own_tree, monkeypatch):
    path = path_of(own_tree, "semantic")

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        read(own_tree)


@pytest.mark.parametrize("kind", ["image", "semantic"])
def test_cities_that_may_not_be_read_are_not_passed_over(own_tree, monkeypatch, kind):
    city = path_of(own_tree, kind).parent

    def guard(name):
        original = getattr(type(city), name)

        def guarded(self):
            if city in (self, self.parent):
                raise PermissionError(13, "Permission denied", str(self))
            return original(self)

        monkeypatch.setattr(type(city), name, guarded)

    guard("iterdir"), guard("is_file")
    with pytest.raises(UserError, match=f"{city}.* cannot be read .Permission denied"):
        list_frames(own_tree, "train", ("semantic",))


def test_what_is_no_tree(tmp_path):
    with pytest.raises(
        UserError, match=f"no directory or archive {tmp_path / 'nowhere'}"
    ):
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


def png_of(array, bits, colour, *chunks):
    """A PNG file, byte by byte: as other programs may write it."""

    def chunk(name, data):
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    height, width = array.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in array)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *chunks)
        + (chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    )


def test_label_ids_in_four_bits_are_not_scaled(own_tree):
    """Pillow would make 17 (pole) of 1 (ego vehicle)."""
    path = path_of(own_tree, "semantic")
    nibbles = np.tile(np.array([0, 0, 0, 1], np.uint8), (32, 64))
    array = nibbles.reshape(32, 256)
    content = bytearray(png_of(array, 4, 0))
    content[16:20] = struct.pack(">I", 64)  # width in pixels, not in bits
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    assert np.asarray(Image.open(path)).max() == 17
    with pytest.raises(UserError, match=f"{path.name} must be 8-bit.*has 4 bits"):
        read(own_tree)


def test_images_of_16_bits_are_not_cut(own_tree):
    path = path_of(own_tree, "image")
    array = np.asarray(Image.open(path)).astype(np.uint16) * 100
    assert cv2.imwrite(str(path), array)
    with pytest.raises(UserError, match=f"{path.name} must be 8-bit.*has 16 bits"):
        read(own_tree)


@pytest.mark.parametrize(
    "kind, format", [("semantic", "JPEG"), ("instance", "TIFF"), ("disparity", "TIFF")]
)
def test_labels_are_png_files(own_tree, kind, format):
    path = path_of(own_tree, kind)
    Image.open(path).save(path, format=format)
    with pytest.raises(UserError, match=f"{path.name} must be a PNG.*holds {format}"):
        read(own_tree)


def test_ids_of_32_bits_are_not_wrapped(own_tree):
    path = path_of(own_tree, "instance")
    ids = np.asarray(Image.open(path)).astype(np.int32) + 2**16
    Image.fromarray(ids).save(path, format="TIFF")
    with pytest.raises(UserError, match=path.name):
        read(own_tree)


def test_an_image_that_viewers_turn_is_named(own_tree):
    path = path_of(own_tree, "image")
    image = Image.open(path)
    exif = Image.Exif()
    for orientation, is_upright in ((1, True), (3, False), (6, False)):
        exif[0x0112] = orientation
        image.save(path, exif=exif)
        if is_upright:
            read(own_tree)
        else:
            with pytest.raises(UserError, match=f"{path.name} has an EXIF orientation"):
                read(own_tree)


def test_moving_pictures_are_named(own_tree):
    path = path_of(own_tree, "image")
    image = Image.open(path).copy()
    image.save(path, save_all=True, append_images=[image.rotate(180)])
    with pytest.raises(UserError, match=f"{path.name} must be one picture.*holds 2"):
        read(own_tree)


def test_more_pixels_than_pillow_takes(own_tree):
    path = path_of(own_tree, "image")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 20000, 10000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name} claims.*200000000 pixels"):
        read(own_tree)


@pytest.mark.parametrize("kind", cityscapes.FILES)
def test_no_changed_bit_goes_unseen(own_tree, kind):
    """Decoding alone passes over some checksums."""
    path = path_of(own_tree, kind)
    whole, _ = read(own_tree)
    content = path.read_bytes()
    last = len(content) - 12  # what follows is the mark of the end
    for position in range(0, last, max(last // 150, 1)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=path.name):
            read(own_tree)
    path.write_bytes(content)
    np.testing.assert_array_equal(read(own_tree)[0][kind], whole[kind])


def put(path, value):
    """Writes a value into the first pixel of a file of ids."""
    array = np.asarray(Image.open(path)).copy()
    array[0, 0] = value
    Image.fromarray(array).save(path)


@pytest.mark.parametrize("value", [34, 128, 254, 255])
def test_values_that_are_no_label_id(own_tree, value):
    path = path_of(own_tree, "semantic")
    put(path, value)
    with pytest.raises(UserError, match=f"{path.name} holds {value}, .*write 0"):
        read(own_tree)


def test_train_ids_are_recognised(own_tree):
    path = path_of(own_tree, "semantic")
    table = np.full(256, 255, np.uint8)
    for label in cityscapes.LABELS:
        table[label.id] = label.train_id
    Image.fromarray(table[np.asarray(Image.open(path))]).save(path)
    with pytest.raises(UserError, match=f"{path.name} holds 255, .*like train ids"):
        read(own_tree)


@pytest.mark.parametrize(
    "value",
    [
        65535,  # -1 in 16 bits
        34000,  # an object of no label
        6657,  # 26 * 256 + 1, as KITTI writes the first car
        11000,  # a single building
        255,
        999,
    ],
)
def test_values_that_are_no_instance_id(own_tree, value):
    path = path_of(own_tree, "instance")
    put(path, value)
    sentence = f"{path.name} holds {value}, which is not an inst"
    with pytest.raises(UserError, match=sentence):
        read(own_tree)


@pytest.mark.parametrize(
    "kind, values",
    [
        ("semantic", (0, 1, 2, 3, 33)),  # void and the dummies of the test split
        ("instance", (0, 3, 33, 24000, 29001, 30000, 33999)),
        ("disparity", (0, 1, 255, 65535)),
    ],
)
def test_official_values_are_read_as_they_are(own_tree, kind, values):
    path = path_of(own_tree, kind)
    for value in values:
        put(path, value)
        assert read(own_tree)[0][kind][0, 0] == value


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


@pytest.mark.parametrize(
    "source, target, nearest",
    [
        (9, 3, [1, 4, 7]),  # the one in the middle
        (5, 2, [1, 3]),  # centres at 1.25 and 3.75
        (16, 2, [3, 12]),  # centres on the edges of pixels: below, above
        (6, 3, [0, 3, 4]),
        (2, 4, [0, 0, 1, 1]),
        (4, 6, [0, 1, 1, 2, 2, 3]),  # centres at 1/3, 1, 5/3, ...
        (3, 3, [0, 1, 2]),
    ],
)
def test_labels_are_those_of_the_nearest_pixel(source, target, nearest):
    column = np.arange(source, dtype=np.uint16)
    frame = {
        "image": np.zeros((source, 8, 3), np.uint8),
        "instance": np.repeat(column[:, None], 8, axis=1),
    }
    for transpose in (False, True):
        if transpose:
            frame = {kind: array.swapaxes(0, 1) for kind, array in frame.items()}
        size = (8, target) if transpose else (target, 8)
        resized = resize_frame(frame, size)["instance"]
        assert resized.dtype == np.uint16
        resized = resized[0] if transpose else resized[:, 0]
        np.testing.assert_array_equal(resized, nearest)


# Source pixels per pixel. At even factors no pixel is in the middle.
FACTORS = (8, 2, 3, 2.5, 4 / 3, 2 / 3, 0.5)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("mirrored", [False, True])
def test_labels_lie_where_their_image_does(factor, axis, mirrored):
    target = 96
    source = round(target * factor)
    shifts = {"semantic": [], "disparity": []}
    for edge in range(source // 3, source // 3 + 32):
        bright = np.zeros((source, 16), bool)
        bright[edge:] = True
        bright = bright[::-1] if mirrored else bright
        bright = bright.T if axis else bright
        frame = {
            "image": np.repeat(bright[..., None], 3, axis=2).astype(np.uint8) * 255,
            "semantic": bright.astype(np.uint8) * 26,
            "disparity": bright.astype(np.uint16) * 513,
        }
        size = (16, target) if axis else (target, 16)
        resized = resize_frame(frame, size)
        image_area = resized["image"].mean() / 255 * target
        for kind, found in shifts.items():
            label_area = (resized[kind] > 0).mean() * target
            assert abs(label_area - image_area) < 0.51 * max(1, 1 / factor)
            found.append(label_area - image_area)
    for found in shifts.values():
        assert abs(np.mean(found)) < 0.05


@pytest.mark.parametrize("size", [(4, 8), (16, 32), (10, 20), (48, 96)])
def test_mirroring_and_resizing_commute(street_tree, size):
    frame, _ = read(street_tree)
    mirrored = {kind: array[:, ::-1].copy() for kind, array in frame.items()}
    before, after = resize_frame(mirrored, size), resize_frame(frame, size)
    for kind in frames.LABEL_KINDS:
        np.testing.assert_array_equal(before[kind], after[kind][:, ::-1])
    difference = before["image"].astype(int) - after["image"][:, ::-1]
    assert np.abs(difference).max() <= 1  # rounding


def test_image_shrinks_by_averaging():
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0], image[1, 1] = 100, 60
    small = resize_frame({"image": image}, (2, 2))["image"]
    np.testing.assert_array_equal(small[0, 0], (100 + 60) / 4)
    np.testing.assert_array_equal(small[1, 1], 0)


def test_image_may_shrink_along_one_axis_and_grow_along_the_other():
    image = np.zeros((4, 2, 3), np.uint8)
    image[0, 0], image[3, 1] = 80, 40
    resized = resize_frame({"image": image}, (2, 4))["image"][..., 0]
    # Averaged over two rows, then at 1/4, 3/4, 5/4 of the way between the columns.
    np.testing.assert_array_equal(resized, [[40, 30, 10, 0], [0, 5, 15, 20]])


def test_png_round_trip():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3)).astype("uint8")
    ids = rng.integers(0, 2**16, (5, 7)).astype("uint16")
    for array in (image, ids):
        coded = np.frombuffer(encode_png(array), np.uint8)
        decoded = cv2.imdecode(coded, cv2.IMREAD_UNCHANGED)
        decoded = decoded[..., ::-1] if array.ndim == 3 else decoded
        np.testing.assert_array_equal(decoded, array)


def test_endings_in_capitals(own_tree):
    expected = list_frames(own_tree, "train", frames.LABEL_KINDS)
    for path in [*own_tree.rglob("*000001*.png")]:
        path.rename(path.with_suffix(".PNG"))
    found = list_frames(own_tree, "train", frames.LABEL_KINDS)
    assert [f.frame_id for f in found] == [f.frame_id for f in expected]
    assert {path.suffix for path in found[1].paths.values()} == {".PNG"}
    frame, _ = read(own_tree)
    assert set(frame) == {"image", *frames.LABEL_KINDS}
