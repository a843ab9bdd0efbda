import cv2
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from mtl_keras import cityscapes, streets
from mtl_keras.streets import rasterization, rendering
from mtl_keras.streets.scenes import compose

LABEL_IDS = cityscapes.LABEL_IDS
THING_TABLE = np.array([label.has_instances for label in cityscapes.LABELS])
VOID = ("unlabeled", "ego vehicle", "rectification border", "out of roi", "static")


@pytest.fixture(scope="module")
def scenes():
    return [streets.render_scene((5, index)) for index in range(100)]


def plane_fit(rows, columns, values):
    """Coefficients and residuals of `values` as an affine map of the image."""
    terms = np.stack([rows, columns, np.ones_like(rows)], 1).astype(float)
    solution = np.linalg.lstsq(terms, values, rcond=None)[0]
    return solution, values - terms @ solution


def pixel_distance(scene):
    """Disparity in pixels, NaN where there is none."""
    coded = scene["disparity"].astype(float)
    return np.where(coded > 0, (coded - 1) / 256, np.nan)


def test_same_seed_same_scene():
    first, second = streets.render_scene((1, 2)), streets.render_scene((1, 2))
    for kind, array in first.items():
        np.testing.assert_array_equal(array, second[kind])


def test_splits_and_indices_never_share_a_seed():
    seeds = {streets.scene_seed(3, s, i) for s in streets.SPLITS for i in range(50)}
    assert len(seeds) == 50 * len(streets.SPLITS)
    with pytest.raises(ValueError, match="dev"):
        streets.scene_seed(3, "dev", 0)
    images = [
        streets.render_scene(streets.scene_seed(3, split, index), (32, 64))["image"]
        for split in ("train", "val")
        for index in range(2)
    ]
    assert len({image.tobytes() for image in images}) == 4


def test_the_caller_keeps_its_random_state():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    streets.render_scene(1, (32, 64))
    np.testing.assert_array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize(
    "size", [(64, 128), (128, 256), (256, 512), (96, 200), (90, 77)]
)
def test_shapes_and_dtypes(size):
    scene = streets.render_scene(4, size)
    assert scene["image"].shape == (*size, 3) and scene["image"].dtype == np.uint8
    for kind, dtype in (("semantic", "u1"), ("instance", "u2"), ("disparity", "u2")):
        assert scene[kind].shape == size and scene[kind].dtype == np.dtype(dtype)


def test_the_size_only_samples_the_scene():
    small, large = (streets.render_scene(6, (64 * k, 128 * k)) for k in (1, 4))
    # Centre of a small pixel: between the large pixels 1 and 2 of its four.
    same = small["semantic"] == large["semantic"][2::4, 2::4]
    assert same.mean() > 0.9
    near, far = pixel_distance(small), pixel_distance(large)[2::4, 2::4] / 4
    both = same & np.isfinite(near) & np.isfinite(far)
    assert np.median(np.abs(near - far)[both]) < 0.1


def test_instance_ids_agree_with_the_classes(scenes):
    for scene in scenes:
        semantic = scene["semantic"].astype(int)
        instance = scene["instance"].astype(int)
        assert semantic.max() < len(cityscapes.LABELS)
        numbered = instance >= cityscapes.FIRST_INSTANCE_ID
        np.testing.assert_array_equal(numbered, THING_TABLE[semantic])
        np.testing.assert_array_equal(
            np.where(numbered, instance // cityscapes.FIRST_INSTANCE_ID, instance),
            semantic,
        )


def test_a_pixel_of_the_ground_has_the_disparity_of_its_ray():
    rng = np.random.default_rng(9)
    scene, _ = compose(rng)  # the same draws as render_scene makes
    rendered = streets.render_scene(9)
    view = rasterization.scale_view(scene.view, (128, 256))
    road = rendered["semantic"] == LABEL_IDS["road"]
    row, column = np.nonzero(road & (rendered["disparity"] > 0))
    rays = np.stack([column, row, np.ones_like(row)])
    rays = np.linalg.inv(view.intrinsics @ view.rotation) @ rays  # depth 1 each
    depth = -view.position[1] / rays[1]
    focal = cityscapes.CAMERA.fx * 256 / 2048
    expected = np.round(256 * cityscapes.CAMERA.baseline * focal / depth) + 1
    found = rendered["disparity"][row, column].astype(int)
    # Rounding once in float32; the lower edge of the kerb counts as pavement.
    assert np.abs(found - expected).max() <= 1


def test_road_disparity_is_affine_in_the_image(scenes):
    for scene in scenes[:20]:
        road = (scene["semantic"] == LABEL_IDS["road"]) & (scene["disparity"] > 0)
        row, column = np.nonzero(road)
        _, residual = plane_fit(row, column, pixel_distance(scene)[road])
        assert np.abs(residual).max() < 1.5 / 256


def test_objects_hide_only_what_is_farther(scenes):
    """Something that stands on the road is nearer than the road behind it."""
    standing = [LABEL_IDS[name] for name in ("car", "person", "bus", "truck", "pole")]
    for scene in scenes[:20]:
        disparity = pixel_distance(scene)
        valid = np.isfinite(disparity)
        road = (scene["semantic"] == LABEL_IDS["road"]) & valid
        (by_row, by_column, base), _ = plane_fit(*np.nonzero(road), disparity[road])
        row, column = np.nonzero(np.isin(scene["semantic"], standing) & valid)
        ground = by_row * row + by_column * column + base
        nearer = disparity[row, column] >= ground - 0.05
        assert nearer.mean() > 0.995


def test_upright_thin_objects_have_one_depth(scenes):
    spans = []
    for scene in scenes[:30]:
        disparity = pixel_distance(scene)
        for number in np.unique(scene["instance"]):
            if number // 1000 == LABEL_IDS["person"]:
                values = disparity[scene["instance"] == number]
                values = values[np.isfinite(values)]
                spans.extend([np.ptp(values)] if len(values) else [])
    assert len(spans) > 30 and np.max(spans) < 0.6  # a tilted camera sees a slope


def test_paint_order_puts_what_may_hide_last():
    far_left = (-9, -6, 20, 40)
    person_before_bus, bus = (0.5, 1.0, 9.8, 10.2), (3, 5.5, 5, 17)
    person_behind_bus = (6, 6.5, 9.8, 10.2)
    boxes = np.array([bus, person_before_bus, far_left, person_behind_bus], float)
    order = rasterization.paint_order(boxes)
    assert sorted(order) == [0, 1, 2, 3]
    assert order.index(3) < order.index(0) < order.index(1)


def test_clip_near_keeps_what_lies_before_the_camera():
    square = np.array([[0, 0, -1.5], [4, 0, 2.5], [4, 4, 2.5], [0, 4, -1.5]], float)
    clipped = rasterization.clip_near(square)
    assert len(clipped) == 4 and clipped[:, 2].min() == rasterization.NEAR
    np.testing.assert_allclose(clipped[clipped[:, 2] == rasterization.NEAR][:, 0], 2)
    assert len(rasterization.clip_near(square - [0, 0, 9])) == 0


def test_stereo_finds_nothing_beside_a_near_object():
    disparity = np.full((40, 64), 2.0, np.float32)
    disparity[:, 30:40] = 8.0
    matched = rendering.match_stereo(
        disparity, np.full_like(disparity, -1), np.random.default_rng(0)
    )
    share = matched.mean(axis=0)
    np.testing.assert_array_equal(share[:2], 0)  # outside of the right image
    np.testing.assert_array_equal(share[24:30], 0)  # hidden by the object there
    assert share[2:24].min() > 0.8 and share[30:].min() > 0.8


def test_sky_and_void_have_no_disparity(scenes):
    for scene in scenes:
        names = ("sky", "ego vehicle", "rectification border", "out of roi")
        blind = np.isin(scene["semantic"], [LABEL_IDS[name] for name in names])
        assert not scene["disparity"][blind].any()


def test_share_of_holes(scenes):
    share = [
        (s["disparity"][s["semantic"] != cityscapes.SKY_ID] == 0).mean() for s in scenes
    ]
    assert 0.05 < np.mean(share) < 0.2 and np.max(share) < 0.35


def test_scenes_hold_several_objects_that_hide_one_another(scenes):
    counts, touching = [], 0
    for scene in scenes:
        instance = scene["instance"].astype(int)
        things = np.unique(instance[instance >= cityscapes.FIRST_INSTANCE_ID])
        counts.append(len(things))
        left, right = instance[:, :-1], instance[:, 1:]
        neighbours = (left != right) & (np.minimum(left, right) >= 1000)
        touching += neighbours.any()
    assert np.mean(counts) > 6 and np.min(counts) >= 1
    assert touching > 60


def test_every_class_appears_and_few_dominate(scenes):
    semantic = np.stack([scene["semantic"] for scene in scenes])
    share = np.bincount(semantic.ravel(), minlength=34) / semantic.size
    frequency = {
        label.name: (semantic == label.id).any((1, 2)).mean()
        for label in cityscapes.EVALUATED
    }
    absent = {name for name, value in frequency.items() if value == 0}
    assert absent == {"wall", "fence", "train"}
    assert min(set(frequency.values()) - {0}) >= 0.08, frequency
    common = [LABEL_IDS[name] for name in ("road", "building", "vegetation", "car")]
    assert share[common].sum() > 0.5
    rare = ("rider", "motorcycle", "bicycle", "traffic light")
    assert max(share[LABEL_IDS[name]] for name in rare) < 0.01
    for name in VOID:
        assert share[LABEL_IDS[name]] > 0, name


def test_colour_alone_does_not_tell_the_class(scenes):
    table = cityscapes.class_index_table("train_ids")
    colors = np.stack([scene["image"] for scene in scenes]).reshape(-1, 3)
    classes = table[np.stack([scene["semantic"] for scene in scenes])].ravel()
    half = len(classes) // 2
    rng = np.random.default_rng(0)
    learn = rng.choice(np.flatnonzero(classes[:half] >= 0), 60_000, replace=False)
    judge = (
        rng.choice(np.flatnonzero(classes[half:] >= 0), 60_000, replace=False) + half
    )
    model = RandomForestClassifier(20, min_samples_leaf=20, random_state=0)
    predicted = model.fit(colors[learn], classes[learn]).predict(colors[judge])
    confusion = np.zeros((19, 19))
    np.add.at(confusion, (classes[judge], predicted), 1)
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    occurs = confusion.sum(1) > 0
    assert (hits[occurs] / union[occurs]).mean() < 0.15


def test_tree_has_the_official_names_and_reads_back(tmp_path):
    sizes = {"train": 2, "val": 1, "test": 1}
    streets.write_cityscapes_tree(tmp_path, sizes, (32, 64), seed=8, progress=False)
    files = [path for path in tmp_path.rglob("*.png")]
    assert len(files) == 3 * 4 + 1
    assert (
        tmp_path / "gtFine/val/streets/streets_000000_000019_gtFine_labelIds.png"
    ).exists()
    dtypes = {"image": "u1", "semantic": "u1", "instance": "u2", "disparity": "u2"}
    for index in range(2):
        scene = streets.render_scene(streets.scene_seed(8, "train", index), (32, 64))
        for kind, array in scene.items():
            frame_id = f"streets_{index:06d}_000019"
            path = cityscapes.frame_path(tmp_path, "train", frame_id, kind)
            stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert stored.dtype == np.dtype(dtypes[kind])
            stored = stored[..., ::-1] if kind == "image" else stored
            np.testing.assert_array_equal(stored, array)
