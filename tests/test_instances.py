import numpy as np
import pytest
from cluster_checks import assert_same_partition, scene

from mtl_keras.instances import (
    cluster_offsets,
    decode_objects,
    encode_offsets,
)
from mtl_keras.instances.offsets import keep_things

# Encoding.


def test_offsets_point_to_the_mean_position():
    ids = np.array([[7, 26000, 26000], [26, 26000, 24001], [0, 24000, 999]])
    offsets, mask = encode_offsets(ids)
    assert offsets.dtype == np.float32 and mask.dtype == bool
    np.testing.assert_array_equal(mask, ids >= 1000)
    np.testing.assert_allclose(offsets[0, 1], [1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(offsets[0, 2], [1 / 3, -2 / 3], rtol=1e-6)
    np.testing.assert_allclose(offsets[1, 1], [-2 / 3, 1 / 3], rtol=1e-6)
    assert not offsets[1, 2].any() and not offsets[2, 1].any()
    assert not offsets[~mask].any()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_offsets_do_not_depend_on_the_integer_type(dtype):
    ids = scene(20)
    for actual, expected in zip(encode_offsets(ids.astype(dtype)), encode_offsets(ids)):
        np.testing.assert_array_equal(actual, expected)


def test_ids_beyond_16_bits():
    ids = scene(20)
    for actual, expected in zip(
        encode_offsets(np.where(ids >= 1000, ids + 2**40, ids)), encode_offsets(ids)
    ):
        np.testing.assert_array_equal(actual, expected)


def test_no_label_in_16_bits_is_no_instance():
    ids = np.full((3, 4), 65535, np.uint16)  # -1
    ids[1, 1:3] = 26001
    offsets, mask = encode_offsets(ids)
    np.testing.assert_array_equal(mask, ids == 26001)
    np.testing.assert_array_equal(offsets[1, 1:3], [(0, 0.5), (0, -0.5)])


def test_no_instance():
    offsets, mask = encode_offsets(np.full((4, 6), 26, np.uint8))
    assert offsets.shape == (4, 6, 2) and not offsets.any() and not mask.any()
    assert not cluster_offsets(offsets, mask).any()


@pytest.mark.parametrize("ids", [np.zeros((2, 2)), np.zeros((2, 2, 1), int)])
def test_encode_rejects_what_are_no_ids(ids):
    with pytest.raises(ValueError, match="integer array of shape"):
        encode_offsets(ids)


def test_keep_things():
    ids = np.array([[7, 24, 33], [29, 30, 0]], np.uint8)
    np.testing.assert_array_equal(keep_things(ids), [[0, 24, 33], [0, 0, 0]])


# Encoding and clustering.


@pytest.mark.parametrize("num_objects", [1, 2, 30])
def test_encode_then_cluster_recovers_the_partition(num_objects):
    ids = scene(num_objects)
    offsets, mask = encode_offsets(ids)
    instances = cluster_offsets(offsets, mask)
    assert instances.dtype == np.int32
    assert_same_partition(instances, np.where(mask, ids, 0), 0, 0)
    assert instances.max() == len(np.unique(ids[mask]))


def test_a_hundred_objects():
    ids = np.repeat(np.repeat(np.arange(26000, 26100).reshape(5, 20), 12, 0), 10, 1)
    offsets, mask = encode_offsets(ids)
    rng = np.random.default_rng(0)
    noisy = offsets + rng.normal(0, 0.3, offsets.shape)
    assert_same_partition(cluster_offsets(noisy, mask), ids, 0)


@pytest.mark.parametrize("method", ["optics", "optics-xi", "hdbscan"])
def test_touching_and_split_objects(method):
    ids = np.zeros((24, 40), int)
    ids[4:20, 2:38] = 26000
    ids[:, 17:23] = 26001  # in front, cuts the first in two
    ids[4:20, 34:] = 26002  # beside the first
    offsets, mask = encode_offsets(ids)
    # The mean of the first must stay clear of the centre of the second.
    offsets[ids == 26000] += [4, 0]
    rng = np.random.default_rng(0)
    noisy = offsets + rng.normal(0, 0.1, offsets.shape)
    instances = cluster_offsets(noisy, mask, method)
    assert_same_partition(instances, ids, 0, 0)


@pytest.mark.parametrize("method", ["optics", "optics-xi", "hdbscan"])
def test_one_object_with_all_votes_on_one_spot(method):
    mask = np.zeros((20, 20), bool)
    mask[3:15, 2:9] = True
    offsets = 10.0 - np.moveaxis(np.indices(mask.shape), 0, -1)
    np.testing.assert_array_equal(cluster_offsets(offsets, mask, method), mask)


@pytest.mark.parametrize("method", ["optics", "optics-xi", "hdbscan"])
def test_objects_too_small_are_noise(method):
    mask = np.zeros((5, 5), bool)
    assert not cluster_offsets(np.zeros((5, 5, 2)), mask, method).any()
    mask[2, :4] = True
    assert not cluster_offsets(np.zeros((5, 5, 2)), mask, method).any()


def test_smallest_cluster():
    ids = np.zeros((8, 8), int)
    ids[:3, :3], ids[5:, 5:7] = 26000, 26001  # 9 and 6 pixels
    offsets, mask = encode_offsets(ids)

    def count(min_samples, min_cluster_size):
        options = dict(min_samples=min_samples, min_cluster_size=min_cluster_size)
        return cluster_offsets(offsets, mask, **options).max()

    assert count(5, 5) == count(5, 6) == count(6, 1) == 2
    assert count(5, 7) == count(5, 9) == count(7, 1) == 1
    assert count(5, 10) == count(10, 1) == 0


def test_stray_votes_are_noise():
    ids = scene(5)
    offsets, mask = encode_offsets(ids)
    stray = np.argwhere(mask)[::50]
    offsets[*stray.T] += 1000 + 10 * np.arange(len(stray))[:, None]
    ids[*stray.T] = 0
    assert_same_partition(
        cluster_offsets(offsets, mask), np.where(ids >= 1000, ids, 0), 0, 0
    )


def test_classes_never_mix():
    classes = np.zeros((10, 12), np.uint8)
    classes[:, 2:6], classes[:, 6:10] = 26, 24
    offsets = np.zeros((10, 12, 2))
    offsets[...] = [5, 6] - np.moveaxis(np.indices(classes.shape), 0, -1)
    instances = cluster_offsets(offsets, classes)
    np.testing.assert_array_equal(instances, (classes == 24) + 2 * (classes == 26))
    np.testing.assert_array_equal(cluster_offsets(offsets, classes > 0), classes > 0)


def test_instances_are_numbered_by_first_pixel():
    ids = np.zeros((12, 30), int)
    ids[2:9, 20:28], ids[3:9, 10:18], ids[4:9, 0:8] = 26001, 26000, 26002
    instances = cluster_offsets(*encode_offsets(ids))
    assert [instances[5, x] for x in (25, 15, 5)] == [1, 2, 3]


# Pixels that vote for no instance.


def cluster_row(votes, classes=1, **options):
    """The instances of a row of pixels, by the columns that they vote for."""
    votes = np.array(votes, float)
    offsets = np.zeros((1, len(votes), 2))
    offsets[0, :, 1] = votes - np.arange(len(votes))
    classes = np.broadcast_to(classes, (1, len(votes)))
    options = {"eps": 1.0, "min_samples": 3, "min_cluster_size": 3, **options}
    return cluster_offsets(offsets, classes, **options)[0].tolist()


# The means are 0.5 and 10: 4 is nearer to the first, 5.25 as near to both.
ROW = [0, 0, 1, 1, 10, 10, 10, 4, 5.25, 6.5, -400]


def test_left_over_pixels_are_noise():
    expected = [1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0]
    assert cluster_row(ROW) == cluster_row(ROW, left_over="noise") == expected


def test_left_over_pixels_go_to_the_nearest_mean():
    expected = [1, 1, 1, 1, 2, 2, 2, 1, 1, 2, 1]
    assert cluster_row(ROW, left_over="nearest") == expected


def test_left_over_pixels_do_not_move_the_mean():
    """With 4.9 the mean of the first would be 0.98, and 5.4 nearer to it."""
    row = [0, 0, 0, 0, 10, 10, 10, 4.9, 5.4]
    assert cluster_row(row, left_over="nearest") == [1, 1, 1, 1, 2, 2, 2, 1, 2]


def test_nearest_is_the_mean_and_not_the_closest_vote():
    """-2.9 is 2.9 from a vote of the first, whose mean is 4, and 5.1 from the second,
    which is all on one spot."""
    row = [0, 1, 2, 3, 4, 5, 6, 7, 8, -8, -8, -8, -2.9]
    assert cluster_row(row, left_over="nearest") == [1] * 9 + [2] * 4


def test_distance_has_two_directions():
    """Votes for (0, 0) and (0, 6); (4, 2) and (4, 4) are left over."""
    votes = np.array([[0, 0]] * 3 + [[0, 6]] * 3 + [[4, 2], [4, 4]], float)
    offsets = np.zeros((1, 8, 2))
    offsets[0] = votes - np.argwhere(np.ones((1, 8)))
    instances = cluster_offsets(
        offsets,
        np.ones((1, 8), bool),
        left_over="nearest",
        eps=1.0,
        min_samples=3,
        min_cluster_size=1,
    )
    assert instances[0].tolist() == [1, 1, 1, 2, 2, 2, 1, 2]


def test_pixels_of_small_clusters_are_left_over():
    row = [0, 0, 0, 0, 10, 10, 10, 7, 7]
    size = {"min_cluster_size": 4}
    assert cluster_row(row, **size) == [1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert cluster_row(row, left_over="nearest", **size) == [1] * 9


def test_left_over_pixels_stay_in_their_class():
    """The 24 that votes for 10 goes to the only 24, at 0; no 33 is found."""
    row = [0, 0, 0, 10, 10, 10, 10, 10, 0]
    classes = [24, 24, 24, 26, 26, 26, 24, 33, 33]
    expected = [1, 1, 1, 2, 2, 2, 1, 0, 0]
    assert cluster_row(row, classes, left_over="nearest") == expected


def test_without_an_instance_there_is_no_nearest():
    assert cluster_row([0, 5, 10], left_over="nearest") == [0, 0, 0]
    assert cluster_row([], left_over="nearest") == []


def test_numbers_follow_the_first_pixel_whatever_is_given_to_an_instance():
    row = [8, 0, 0, 0, 10, 10, 10]
    assert cluster_row(row) == [0, 1, 1, 1, 2, 2, 2]
    assert cluster_row(row, left_over="nearest") == [1, 2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("method", ["optics", "optics-xi", "hdbscan"])
def test_only_what_is_left_over_changes(method):
    offsets, mask = encode_offsets(scene(6, size=(48, 64), largest=(16, 20)))
    rng = np.random.default_rng(0)
    offsets += rng.normal(0, 0.1, offsets.shape)
    stray = np.argwhere(mask)[::20]
    offsets[*stray.T] += rng.uniform(-500, 500, stray.shape)
    noise = cluster_offsets(offsets, mask, method)
    nearest = cluster_offsets(offsets, mask, method, left_over="nearest")
    found = noise > 0
    assert found.any() and (noise[mask] == 0).any()
    assert_same_partition(nearest[found], noise[found])
    assert (nearest[mask] > 0).all() and not nearest[~mask].any()
    assert nearest.max() == noise.max()


def test_objects_take_their_left_over_pixels_along():
    offsets = np.zeros((1, 4, 2))
    offsets[0, :, 1] = np.array([0, 0, 0, 5]) - np.arange(4)
    classes, probability = np.full((1, 4), 26), np.array([[0.9, 0.9, 0.9, 0.5]])
    options = {"eps": 1.0, "min_samples": 3, "min_cluster_size": 3}
    for left_over, confidence in {"noise": 0.9, "nearest": 0.8}.items():
        instances, objects = decode_objects(
            offsets, classes, probability, left_over=left_over, **options
        )
        assert instances.tolist() == [[1, 1, 1, int(left_over == "nearest")]]
        assert objects == [(26, pytest.approx(confidence))]


def test_what_lies_outside_of_the_mask_does_not_count():
    ids = scene(6)
    offsets, mask = encode_offsets(ids)
    poisoned = np.where(mask[..., None], offsets, np.nan)
    np.testing.assert_array_equal(
        cluster_offsets(poisoned, mask), cluster_offsets(offsets, mask)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_offsets(value):
    offsets = np.zeros((4, 4, 2), np.float32)
    offsets[1, 2, 0] = value
    with pytest.raises(ValueError, match="1 pixels with NaN or inf"):
        cluster_offsets(offsets, np.ones((4, 4), bool))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "meanshift"}, "method must be one of"),
        ({"left_over": "near"}, "left_over must be one of"),
        ({"epsilon": 1.0}, "'optics' has the options"),
        ({"method": "hdbscan", "eps": 1.0}, "'hdbscan' has the options"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"eps": np.nan}, "eps must be positive"),
        ({"eps": 2.0, "max_eps": 1.0}, "max_eps at least eps"),
        ({"eps": -1.0}, "eps must be positive"),
        ({"min_samples": 1}, "min_samples must be a whole number of at least 2"),
        (
            {"min_cluster_size": 0},
            "min_cluster_size must be a whole number of at least 1",
        ),
        ({"method": "optics-xi", "xi": 2.0}, "xi in 0..1"),
        ({"method": "optics-xi", "max_eps": np.nan}, "max_eps must be positive"),
        (
            {"method": "optics-xi", "min_samples": 0},
            "min_samples must be a whole number of at least 2",
        ),
        (
            {"method": "hdbscan", "min_cluster_size": 1},
            "must be a whole number of at least 2",
        ),
        (
            {"method": "hdbscan", "min_samples": 0},
            "must be a whole number of at least 1",
        ),
        ({"mask": np.ones((4, 5), bool)}, "must have shape"),
        ({"mask": np.ones((4, 4))}, "bool or an integer class map"),
    ],
)
@pytest.mark.parametrize("filled", [True, False])
def test_wrong_arguments(arguments, message, filled):
    arguments = {"mask": np.full((4, 4), filled), **arguments}
    with pytest.raises(ValueError, match=message):
        cluster_offsets(np.zeros((4, 4, 2)), **arguments)
