import doctest
import math

import keras
import numpy as np
import pytest
from gradients import value_and_gradients
from keras import ops
from layer_checks import check_layer

from mtl_keras import losses
from mtl_keras.losses import MaskedLoss
from mtl_keras.weighting import FixedWeighting, UncertaintyWeighting

# Likelihood: a and c of `a * exp(-s) * L + c * s`, and sigma at s = ln 4.
FORMULAS = {
    "softmax": (1.0, 0.5, 2.0),
    "gaussian": (0.5, 0.5, 2.0),
    "laplace": (1.0, 1.0, 4.0),
    "mtl": (0.5, 1.0, 2.0),
}
EVERY_LIKELIHOOD = {name: name for name in FORMULAS}


def settle(layer, task_losses, steps=80):
    """Minimizes the total over the log variances alone, the losses being fixed."""
    optimizer = keras.optimizers.SGD(0.5)
    task_losses = {task: ops.array(loss) for task, loss in task_losses.items()}
    for _ in range(steps):
        _, gradients = value_and_gradients(
            lambda: layer(task_losses), layer.trainable_variables
        )
        gradients = [ops.convert_to_tensor(gradient) for gradient in gradients]
        optimizer.apply(gradients, layer.trainable_variables)
    return {task: float(s.numpy()) for task, s in layer.log_variances.items()}


@pytest.mark.parametrize("module", [losses])
def test_examples_of_the_docstrings(module):
    names = {"keras": keras, "ops": ops}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("likelihood", FORMULAS)
def test_total_is_the_closed_form(likelihood):
    a, c, _ = FORMULAS[likelihood]
    layer = UncertaintyWeighting({"depth": likelihood}, initial_log_variance=0.7)
    total = layer({"depth": ops.array(3.0)})
    np.testing.assert_allclose(total, a * math.exp(-0.7) * 3 + c * 0.7, rtol=1e-6)


@pytest.mark.parametrize("likelihood", FORMULAS)
def test_reported_sigma_and_weight(likelihood):
    a, _, sigma = FORMULAS[likelihood]
    layer = UncertaintyWeighting({"depth": likelihood}, math.log(4.0))
    assert layer.sigmas() == {"depth": pytest.approx(sigma)}
    assert layer.task_weights() == {"depth": pytest.approx(a / 4)}
    logs = {name: float(value) for name, value in layer.logs().items()}
    assert logs == {
        "depth/sigma": pytest.approx(sigma),
        "depth/weight": pytest.approx(a / 4),
    }


def test_total_may_be_negative():
    layer = UncertaintyWeighting({"depth": "laplace"}, initial_log_variance=-4.0)
    assert float(layer({"depth": ops.array(0.01)})) < 0


def test_fixed_losses_drive_s_to_the_analytic_minimum():
    task_losses = {"softmax": 0.3, "gaussian": 5.0, "laplace": 2.0, "mtl": 0.04}
    layer = UncertaintyWeighting(EVERY_LIKELIHOOD)
    settled = settle(layer, task_losses)
    for task, loss in task_losses.items():
        a, c, _ = FORMULAS[task]
        assert settled[task] == pytest.approx(math.log(a * loss / c), abs=1e-4)
        assert layer.task_weights()[task] == pytest.approx(c / loss, rel=1e-4)


def test_scaling_a_loss_shifts_s_and_keeps_the_weighted_gradient():
    once, scaled = (UncertaintyWeighting(EVERY_LIKELIHOOD) for _ in range(2))
    factor = 7.0
    before = settle(once, dict.fromkeys(FORMULAS, 1.3))
    after = settle(scaled, dict.fromkeys(FORMULAS, factor * 1.3))
    for task in FORMULAS:
        assert after[task] - before[task] == pytest.approx(math.log(factor), abs=1e-4)
        # The gradient of k * L is k times that of L.
        assert factor * scaled.task_weights()[task] == pytest.approx(
            once.task_weights()[task], rel=1e-4
        )


@pytest.mark.parametrize("likelihood", FORMULAS)
def test_gradient_vanishes_at_the_minimum_only(likelihood):
    a, c, _ = FORMULAS[likelihood]
    minimum = math.log(a * 2.5 / c)
    gradients = []
    for start in (minimum - 0.5, minimum, minimum + 0.5):
        layer = UncertaintyWeighting({"depth": likelihood}, start)
        _, (gradient,) = value_and_gradients(
            lambda: layer({"depth": ops.array(2.5)}), layer.trainable_variables
        )
        gradients.append(float(gradient))
    assert gradients[0] < -0.1 and gradients[2] > 0.1
    assert gradients[1] == pytest.approx(0, abs=1e-6)


def test_absent_task_adds_neither_loss_nor_regularizer():
    layer = UncertaintyWeighting({"semantic": "softmax", "depth": "laplace"}, 0.7)
    both = {"semantic": ops.array(2.0), "depth": ops.array(5.0)}
    total, gradients = value_and_gradients(
        lambda: layer(both, present={"semantic": 1.0, "depth": 0.0}),
        layer.trainable_variables,
    )
    np.testing.assert_allclose(total, math.exp(-0.7) * 2 + 0.5 * 0.7, rtol=1e-6)
    by_path = dict(zip([v.name for v in layer.trainable_variables], gradients))
    assert by_path["depth_log_variance"] == 0
    assert by_path["semantic_log_variance"] != 0


def test_tasks_may_be_left_out():
    layer = UncertaintyWeighting({"semantic": "softmax", "depth": "laplace"}, 0.7)
    total = layer({"depth": ops.array(5.0)})
    np.testing.assert_allclose(total, math.exp(-0.7) * 5 + 0.7, rtol=1e-6)


def test_initial_values_by_task():
    layer = UncertaintyWeighting(
        {"semantic": "softmax", "instance": "mtl", "depth": "laplace"},
        {"semantic": -1.0, "depth": 2.0},
    )
    starts = {task: float(s.numpy()) for task, s in layer.log_variances.items()}
    assert starts == {"semantic": -1.0, "instance": 0.0, "depth": 2.0}


def test_the_weights_exist_before_the_first_batch():
    layer = UncertaintyWeighting({"semantic": "softmax", "depth": "laplace"})
    assert len(layer.trainable_variables) == 2


def test_what_uncertainty_weighting_refuses():
    with pytest.raises(ValueError, match="no task"):
        UncertaintyWeighting({})
    with pytest.raises(ValueError, match="'poisson' for task 'depth'.*laplace"):
        UncertaintyWeighting({"depth": "poisson"})
    with pytest.raises(ValueError, match="initial_log_variance.*'semantic'"):
        UncertaintyWeighting({"depth": "mtl"}, {"semantic": 0.0})
    layer = UncertaintyWeighting({"depth": "mtl"})
    with pytest.raises(ValueError, match="losses.*'instance'.*'depth'"):
        layer({"instance": ops.array(1.0)})


@pytest.mark.parametrize(
    "layer_class, init_kwargs, weights",
    [
        (
            UncertaintyWeighting,
            {
                "likelihoods": {"semantic": "softmax", "depth": "mtl"},
                "initial_log_variance": {"depth": 1.5},
            },
            {"semantic_log_variance": (), "depth_log_variance": ()},
        ),
        (FixedWeighting, {"weights": {"semantic": 0.5, "depth": 2.0}}, {}),
    ],
)
def test_weighting_is_a_well_behaved_layer(layer_class, init_kwargs, weights, tmp_path):
    check_layer(
        layer_class,
        init_kwargs,
        input_shape={"semantic": (), "depth": ()},
        expected_weights=weights,
        expected_output_shape=(),
        expected_dtype="float32",
        tmp_path=tmp_path,
    )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("given", [False, True])
def test_arithmetic_stays_float32_under_mixed_policies(policy, given, set_policy):
    set_policy(policy)
    layer = UncertaintyWeighting(
        {"depth": "laplace"}, 0.7001, **({"dtype": policy} if given else {})
    )
    total = layer({"depth": ops.array(3.0001)})
    assert keras.backend.standardize_dtype(total.dtype) == "float32"
    expected = math.exp(-0.7001) * 3.0001 + 0.7001
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_fixed_weighting():
    layer = FixedWeighting({"semantic": 0.5, "depth": 3.0})
    total = layer({"semantic": ops.array(4.0), "depth": ops.array(1.5)})
    assert float(total) == pytest.approx(0.5 * 4.0 + 3.0 * 1.5)
    assert layer.task_weights() == {"semantic": 0.5, "depth": 3.0}
    assert layer.sigmas() == {} and layer.trainable_variables == []


def test_weight_zero_switches_a_task_off_even_at_nan():
    layer = FixedWeighting({"semantic": 0.5, "depth": 0})
    total = layer({"semantic": ops.array(4.0), "depth": ops.array(float("nan"))})
    assert float(total) == 2.0


def test_what_fixed_weighting_refuses():
    with pytest.raises(ValueError, match="no task"):
        FixedWeighting({})
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"'depth'.*{weight}"):
            FixedWeighting({"depth": weight})
    with pytest.raises(ValueError, match="'semantic'"):
        FixedWeighting({"depth": 1.0})({"semantic": ops.array(1.0)})


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
