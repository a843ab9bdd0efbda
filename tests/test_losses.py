import doctest
import math

import keras
import numpy as np
import pytest
from gradients import value_and_gradients
from keras import ops

from mtl_keras import losses
from mtl_keras.losses import L1Norm, MaskedLoss, get_loss, sum_loss


def test_examples_of_the_docstrings():
    result = doctest.testmod(losses, extraglobs={"keras": keras, "ops": ops})
    assert result.attempted > 0 and result.failed == 0


def test_masked_loss_is_the_mean_over_the_mask():
    target = np.zeros((1, 2, 2, 1), "float32")
    prediction = np.array([1, 2, 4, 8], "float32").reshape(target.shape)
    loss = MaskedLoss(keras.losses.MeanAbsoluteError())
    mask = np.array([1, 0, 1, 0], "float32").reshape(1, 2, 2)
    assert float(loss(target, prediction, mask)) == pytest.approx((1 + 4) / 2)
    weights = np.array([1, 0, 0, 3], "float32").reshape(1, 2, 2)
    assert float(loss(target, prediction, weights)) == pytest.approx((1 + 3 * 8) / 4)
    assert float(loss(target, prediction)) == pytest.approx((1 + 2 + 4 + 8) / 4)


def test_masked_loss_averages_over_channels_too():
    target = np.zeros((1, 2, 2, 2), "float32")
    prediction = np.arange(8, dtype="float32").reshape(target.shape)
    mask = np.array([0, 1, 0, 1], "float32").reshape(1, 2, 2)
    loss = MaskedLoss(keras.losses.MeanAbsoluteError())
    assert float(loss(target, prediction, mask)) == pytest.approx((2 + 3 + 6 + 7) / 4)


def test_masked_cross_entropy():
    target = np.array([1, 0, 255, 0], "int32").reshape(1, 2, 2)
    logits = np.zeros((1, 2, 2, 3), "float32")
    logits[0, 0, 0] = (0, math.log(2), 0)
    mask = np.array([1, 1, 0, 0], "float32").reshape(1, 2, 2)
    loss = MaskedLoss(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    expected = (math.log(4 / 2) + math.log(3)) / 2
    assert float(loss(target, logits, mask)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "loss, target",
    [
        (keras.losses.MeanAbsoluteError(), np.zeros((1, 2, 2, 3), "float32")),
        (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            np.zeros((1, 2, 2), "int32"),
        ),
    ],
)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_masked_pixels_change_neither_value_nor_gradient(loss, target, poison):
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(1, 2, 2, 3)).astype("float32")
    mask = np.array([1, 0, 1, 0], "float32").reshape(1, 2, 2)
    poisoned = np.where(mask[..., None] > 0, clean, np.float32(poison))
    if target.dtype == np.float32:
        dirty_target = np.where(mask[..., None] > 0, target, np.float32(np.nan))
    else:
        dirty_target = np.where(mask > 0, target, 255)
    masked = MaskedLoss(loss)
    results = []
    for truth, prediction in ((target, clean), (dirty_target, poisoned)):
        variable = keras.Variable(prediction)
        results.append(
            value_and_gradients(lambda: masked(truth, variable, mask), [variable])
        )
    (value, (gradient,)), (dirty_value, (dirty_gradient,)) = results
    assert value > 0
    np.testing.assert_array_equal(value, dirty_value)
    np.testing.assert_array_equal(gradient, dirty_gradient)
    assert np.abs(gradient[mask > 0]).min() > 0
    np.testing.assert_array_equal(gradient[mask == 0], 0)


def test_empty_mask_gives_zero():
    masked = MaskedLoss(keras.losses.MeanAbsoluteError())
    prediction = keras.Variable(np.full((1, 2, 2, 1), np.nan, "float32"))
    target, mask = np.zeros((1, 2, 2, 1), "float32"), np.zeros((1, 2, 2), "float32")
    value, (gradient,) = value_and_gradients(
        lambda: masked(target, prediction, mask), [prediction]
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_masked_loss_round_trip():
    loss = MaskedLoss(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True), name="classes"
    )
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert isinstance(restored, MaskedLoss) and restored.name == "classes"
    assert restored.get_config() == loss.get_config()
    logits = np.zeros((1, 2, 4), "float32")
    value = restored(np.array([[1, 2]]), logits, np.array([[1.0, 0.0]]))
    assert float(value) == pytest.approx(math.log(4))


def test_l1_norm_sums_the_components():
    target = np.zeros((1, 2, 2), "float32")
    prediction = np.array([[[1, -3], [0, 2]]], "float32")
    values = L1Norm(reduction=None)(target, prediction)
    np.testing.assert_array_equal(ops.convert_to_numpy(values), [[4, 2]])


DTYPES = ("float32", "float16", "bool", "uint8", "int64")
RNG = np.random.default_rng(0)
VALID = np.array([1, 1, 0, 1, 0, 1, 1, 0])


def mean_of(loss, *args):
    total, count, _ = sum_loss(get_loss(loss, "the task"), *args)
    return float(total) / float(count)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask_shape", [(8,), (8, 1)])
@pytest.mark.parametrize("prediction_shape", [(8,), (8, 1)])
@pytest.mark.parametrize("target_shape", [(8,), (8, 1)])
@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        keras.losses.MeanSquaredError(),
        keras.losses.MeanSquaredError(reduction=None),
        keras.losses.mean_squared_error,
        lambda y_true, y_pred: ops.square(y_true - y_pred),
        lambda y_true, y_pred, sample_weight: weighted_mse(
            y_true, y_pred, sample_weight, by_weight=True
        ),
        lambda y_true, y_pred, sample_weight: weighted_mse(
            y_true, y_pred, sample_weight, by_weight=False
        ),
    ],
)
def test_samples_of_any_shape(loss, target_shape, prediction_shape, mask_shape, dtype):
    target = RNG.normal(size=8).astype("float32")
    prediction = RNG.normal(size=8).astype("float32")
    expected = np.square(target - prediction)[VALID > 0].mean()
    target[VALID == 0] = np.nan
    found = mean_of(
        loss,
        target.reshape(target_shape),
        ops.array(np.where(VALID > 0, prediction, np.nan).reshape(prediction_shape)),
        VALID.astype(dtype).reshape(mask_shape),
    )
    assert found == pytest.approx(expected, rel=1e-5)


def weighted_mse(y_true, y_pred, sample_weight, by_weight):
    """A loss of somebody's own, which divides by the weights or by the samples."""
    errors = ops.square(ops.reshape(y_true, (-1,)) - ops.reshape(y_pred, (-1,)))
    weights = ops.reshape(ops.cast(sample_weight, "float32"), (-1,))
    divisor = ops.sum(weights) if by_weight else ops.cast(ops.size(errors), "float32")
    return ops.sum(weights * errors) / divisor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 1), (2,), (2, 1)])
def test_maps_with_masks_of_pixels_or_images(shape, dtype):
    labels = RNG.integers(0, 3, (2, 3, 4))
    logits = RNG.normal(size=(2, 3, 4, 3)).astype("float32")
    by_pixel = len(shape) > 2
    mask = RNG.integers(0, 2, shape) if by_pixel else np.array([0, 1]).reshape(shape)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    values = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    kept = mask.reshape((2, 3, 4) if by_pixel else (2, 1, 1)) * np.ones((2, 3, 4))
    expected = (values * kept).sum() / kept.sum()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for target in (labels, labels[..., None]):
        found = mean_of(loss, target, ops.array(logits), mask.astype(dtype))
        assert found == pytest.approx(expected, rel=1e-5)


def test_weights_are_weights():
    target, prediction = np.zeros((3, 1), "float32"), np.array([[1.0], [2], [3]])
    weights = np.array([0.5, 0.0, 2.0])
    found = mean_of("mae", target, ops.array(prediction, "float32"), weights)
    assert found == pytest.approx((0.5 * 1 + 2 * 3) / 2.5)


def test_nan_and_negative_weights_count_nothing():
    target, prediction = np.zeros((3, 1), "float32"), np.array([[1.0], [2], [3]])
    weights = np.array([1.0, np.nan, -2.0], "float32")
    assert mean_of("mae", target, ops.array(prediction, "float32"), weights) == 1.0


def test_a_half_precision_mask_is_counted_exactly():
    target = np.zeros((70000, 1), "float32")  # float16 ends at 65504
    prediction = ops.ones((70000, 1))
    total, count, _ = sum_loss(
        get_loss("mae", "it"), target, prediction, np.ones(70000, "float16")
    )
    assert float(count) == 70000 and float(total) == 70000


@pytest.mark.parametrize(
    "shape",
    [(), (3,), (2, 2), (2, 3), (2, 4, 3), (2, 3, 4, 3), (2, 3, 4, 1, 1), (2, 1, 1)],
)
def test_masks_of_other_shapes_are_refused(shape):
    labels, logits = np.zeros((2, 3, 4)), ops.zeros((2, 3, 4, 3))
    loss = get_loss("sparse_categorical_crossentropy", "it")
    with pytest.raises(ValueError, match=r"mask of the task .*\(2, 3, 4\).*Received"):
        sum_loss(loss, labels, logits, np.ones(shape))


def test_a_mask_of_components_is_refused():
    with pytest.raises(ValueError, match=r"one per sample.*Received: shape \(8, 3\)"):
        mean_of("mse", np.zeros((8, 3)), ops.zeros((8, 3)), np.ones((8, 3)))


@pytest.mark.parametrize("wrap", [lambda loss: loss, MaskedLoss])
def test_what_a_loss_ignores_does_not_count(wrap):
    labels = np.array([1, -1, 0, -1])
    logits = np.zeros((4, 3), "float32")
    logits[1] = 100, 0, 0  # where it is ignored
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    total, count, _ = sum_loss(get_loss(wrap(loss), "it"), labels, ops.array(logits))
    assert float(count) == 2
    assert float(total) == pytest.approx(2 * math.log(3))
    mask = np.array([1, 1, 0, 0], "float32")
    loss = get_loss(wrap(loss), "it")
    total, count, _ = sum_loss(loss, labels, ops.array(logits), mask)
    assert float(count) == 1
    assert float(total) == pytest.approx(math.log(3))


def test_losses_per_sample_take_masks_per_sample_only():
    def dice(y_true, y_pred):  # one value per image
        return ops.mean(ops.abs(y_true - y_pred), axis=(1, 2, 3))

    target = np.zeros((2, 3, 4, 1), "float32")
    prediction = np.ones((2, 3, 4, 1), "float32")
    prediction[1] = 5
    found = mean_of(dice, target, ops.array(prediction), np.array([0, 1]))
    assert found == 5
    assert mean_of(dice, target, ops.array(prediction)) == 3
    with pytest.raises(ValueError, match="one value per sample.*sample_weight"):
        mean_of(dice, target, ops.array(prediction), np.ones((2, 3, 4)))


def test_losses_per_batch_take_no_mask():
    def rms(y_true, y_pred):
        return ops.sqrt(ops.mean(ops.square(y_true - y_pred)))

    target, prediction = np.zeros((4, 1), "float32"), ops.ones((4, 1)) * 3
    assert mean_of(rms, target, prediction) == pytest.approx(3)
    for loss in (rms, keras.losses.Dice()):
        with pytest.raises(ValueError, match="one value per batch"):
            mean_of(loss, target, prediction, np.ones(4))


def test_weighted_losses_must_be_scalars():
    def vector(y_true, y_pred, sample_weight=None):
        return ops.abs(y_true - y_pred)

    with pytest.raises(ValueError, match=r"the task must be a scalar.*\(4, 1\)"):
        mean_of(vector, np.zeros((4, 1), "float32"), ops.ones((4, 1)))


@pytest.mark.parametrize("by_weight", [False, True])
def test_weighted_losses_of_nothing_are_nothing(by_weight):
    def loss(y_true, y_pred, sample_weight):
        return weighted_mse(y_true, y_pred, sample_weight, by_weight)

    prediction = keras.Variable(np.full((4, 1), np.nan, "float32"))
    target = np.full((4, 1), np.nan, "float32")
    value, (gradient,) = value_and_gradients(
        lambda: sum_loss(loss, target, prediction, np.zeros(4))[0], [prediction]
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    "loss, message",
    [
        ("no such loss", "must be a Keras loss.*'no such loss'"),
        (3, "must be a Keras loss.*3"),
        (None, "must be a Keras loss.*None"),
        (keras.losses.MeanSquaredError(reduction="sum"), "reduction 'sum'"),
    ],
)
def test_what_is_no_loss(loss, message):
    with pytest.raises(ValueError, match=f"The loss of task 'age' .*{message}"):
        get_loss(loss, "task 'age'")


def test_masked_loss_leaves_the_users_loss_alone():
    loss = keras.losses.MeanSquaredError()
    MaskedLoss(loss)(np.zeros((2, 1)), ops.ones((2, 1)), np.ones(2))
    assert loss.reduction == "sum_over_batch_size"
    ones, weights = ops.ones((4, 1)), np.array([1.0, 1, 0, 0])
    assert float(loss(np.zeros((4, 1)), ones, weights)) == 0.5


def test_valid_elements_are_counted_apart_from_their_weights():
    target, prediction = np.zeros((4, 1), "float32"), ops.ones((4, 1))

    def own(y_true, y_pred, sample_weight):
        return weighted_mse(y_true, y_pred, sample_weight, by_weight=True)

    for loss in ("mse", own):
        weights = np.array([1e-3, 0, 5, -1], "float32")
        total, weight, count = sum_loss(
            get_loss(loss, "it"), target, prediction, weights
        )
        assert float(count) == 2
        assert float(weight) == pytest.approx(5.001)
        assert float(total) == pytest.approx(5.001)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.MeanSquaredError(dtype="float16"),
        lambda t, p, sample_weight: ops.cast(
            weighted_mse(t, p, sample_weight, True), "float16"
        ),
    ],
)
def test_sums_do_not_overflow_half_precision(loss):
    target, prediction = np.zeros((200000, 1), "float16"), ops.ones((200000, 1))
    total, weight, _ = sum_loss(
        get_loss(loss, "it"), target, prediction, np.ones(200000)
    )
    assert float(total) == float(weight) == 200000


@pytest.mark.parametrize(
    "target, prediction",
    [((4, 3), (4, 1)), ((4, 1), (4, 2)), ((2,), (2, 2)), ((4, 2, 1), (4, 2))],
)
@pytest.mark.parametrize("loss", ["mae", keras.losses.Huber(), L1Norm()])
def test_targets_that_would_be_stretched_are_refused(loss, target, prediction):
    loss = get_loss(loss, "it")
    with pytest.raises(ValueError, match="targets of the task must have the shape"):
        sum_loss(loss, np.zeros(target, "float32"), ops.zeros(prediction))


def test_losses_of_ones_own_may_stretch_targets():
    def pinball(y_true, y_pred):  # three quantiles of one target
        error = y_true - y_pred
        levels = ops.array([0.1, 0.5, 0.9])
        return ops.mean(ops.maximum(levels * error, (levels - 1) * error), axis=-1)

    found = mean_of(pinball, np.ones((4, 1), "float32"), ops.zeros((4, 3)))
    assert found == pytest.approx(0.5)


def test_losses_that_compare_samples_take_no_mask():
    loss = get_loss(keras.losses.Circle(), "it")
    labels, vectors = np.array([0, 1, 0, 1]), ops.array(np.eye(4, dtype="float32"))
    sum_loss(loss, labels, vectors)
    with pytest.raises(ValueError, match="compares the samples.*none can be masked"):
        sum_loss(loss, labels, vectors, np.array([1, 1, 0, 0]))


def test_channels_are_in_the_last_axis():
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, axis=1)
    maps = np.zeros((2, 4, 4, 4), "float32")
    with pytest.raises(ValueError, match="channels on axis 1.*last one"):
        sum_loss(loss, maps, ops.array(maps), np.ones((2, 4, 4)))


def test_class_indices_for_losses_that_take_them():
    loss = keras.losses.CategoricalGeneralizedCrossEntropy()
    total, _, count = sum_loss(loss, np.array([0, 2]), ops.full((2, 3), 1 / 3))
    assert float(count) == 2 and np.isfinite(float(total))
