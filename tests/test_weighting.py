import doctest
import math

import keras
import numpy as np
import pytest
from backends import not_on
from gradients import value_and_gradients
from keras import ops
from layer_checks import check_layer

from mtl_keras import weighting
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


def test_examples_of_the_docstrings():
    result = doctest.testmod(weighting, extraglobs={"keras": keras, "ops": ops})
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("likelihood", FORMULAS)
def test_total_is_the_closed_form(likelihood):
    a, c, _ = FORMULAS[likelihood]
    layer = UncertaintyWeighting({"depth": likelihood}, initial_log_variance=0.7)
    total = layer({"depth": ops.array(3.0)})
    np.testing.assert_allclose(
        float(total), a * math.exp(-0.7) * 3 + c * 0.7, rtol=1e-6
    )


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
    np.testing.assert_allclose(float(total), math.exp(-0.7) * 2 + 0.5 * 0.7, rtol=1e-6)
    by_path = dict(zip([v.name for v in layer.trainable_variables], gradients))
    assert by_path["depth_log_variance"] == 0
    assert by_path["semantic_log_variance"] != 0


def test_tasks_may_be_left_out():
    layer = UncertaintyWeighting({"semantic": "softmax", "depth": "laplace"}, 0.7)
    total = layer({"depth": ops.array(5.0)})
    np.testing.assert_allclose(float(total), math.exp(-0.7) * 5 + 0.7, rtol=1e-6)


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
    with pytest.raises(ValueError, match="at least one task"):
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
            {
                f"{task}_{kind}": ()
                for task in ("semantic", "depth")
                for kind in ("log_variance", "first_total", "first_count", "seen")
            },
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
    np.testing.assert_allclose(float(total), expected, rtol=1e-6)


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
    with pytest.raises(ValueError, match="at least one task"):
        FixedWeighting({})
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"'depth'.*{weight}"):
            FixedWeighting({"depth": weight})
    with pytest.raises(ValueError, match="'semantic'"):
        FixedWeighting({"depth": 1.0})({"semantic": ops.array(1.0)})


def build_pair(tasks, starts=None):
    likelihoods = {"age": "gaussian", "kind": "softmax"}
    return UncertaintyWeighting({task: likelihoods[task] for task in tasks}, starts)


@pytest.mark.parametrize("way", ["weights", "whole model"])
def test_sigmas_are_stored_by_the_name_of_the_task(way, tmp_path):
    def build(tasks, starts=None):
        inputs = {task: keras.Input((), batch_size=1) for task in sorted(tasks)}
        layer = build_pair(tasks, starts)
        totals = keras.layers.Lambda(lambda x: x)(inputs["age"])
        model = keras.Model(inputs, totals)
        model.weighting = layer
        return model

    first = build(("age", "kind"), {"age": -2.0, "kind": 1.0})
    second = build(("kind", "age"))
    if way == "weights":
        second.weighting.set_weights(first.weighting.get_weights())
    else:
        first.save_weights(tmp_path / "model.weights.h5")
        second.load_weights(tmp_path / "model.weights.h5")
    assert second.weighting.sigmas() == {
        "kind": pytest.approx(math.exp(0.5)),
        "age": pytest.approx(math.exp(-1.0)),
    }
    if way != "weights":
        other = UncertaintyWeighting({"age": "gaussian", "size": "laplace"})
        model = keras.Model(first.inputs, first.outputs)
        model.weighting = other
        with pytest.raises(ValueError, match="no 'size_log_variance'.*'?age_"):
            model.load_weights(tmp_path / "model.weights.h5")


@pytest.mark.parametrize("task", ["head/a", "ä b.c", "a_log_variance", 0])
def test_any_name_of_a_task_is_stored(task, tmp_path):
    def build(start):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.weighting = UncertaintyWeighting({task: "laplace", "b": "mtl"}, start)
        return model

    build(0.7).save_weights(tmp_path / "model.weights.h5")
    loaded = build(0.1)
    loaded.load_weights(tmp_path / "model.weights.h5")
    assert loaded.weighting.sigmas()[task] == pytest.approx(math.exp(0.7))


def test_tasks_start_at_the_equilibrium():
    layer = UncertaintyWeighting(
        {**EVERY_LIKELIHOOD, "given": "laplace"}, {"given": 0.3}
    )
    task_losses = {"softmax": 0.3, "gaussian": 5e4, "laplace": 2.0, "mtl": 0.04}
    given = {"given": ops.array(9.0)}
    tensors = {task: ops.array(loss) for task, loss in task_losses.items()} | given
    layer(tensors)
    assert layer.sigmas() == {
        **dict.fromkeys(task_losses, 1.0),
        "given": pytest.approx(math.exp(0.3)),
    }
    for factor in (1.0, 7.0):  # the first call alone
        layer.start({task: factor * loss for task, loss in tensors.items()})
        for task, loss in task_losses.items():
            a, c, _ = FORMULAS[task]
            assert layer.task_weights()[task] == pytest.approx(c / loss, rel=1e-5)
        assert layer.sigmas()["given"] == pytest.approx(math.exp(0.3))


@pytest.mark.parametrize("loss", [0.0, math.nan, math.inf])
def test_a_loss_without_equilibrium_starts_nothing(loss):
    layer = UncertaintyWeighting({"depth": "laplace"})
    layer.start({"depth": ops.array(loss)})
    assert layer.sigmas() == {"depth": 1.0}
    layer.start({"depth": 2.0})
    assert layer.sigmas() == {"depth": pytest.approx(2.0)}


def test_an_absent_task_does_not_start():
    layer = UncertaintyWeighting({"depth": "laplace"})
    layer.observe("depth", ops.array(5.0), 0.0)
    assert layer.sigmas() == {"depth": 1.0}


def test_a_frozen_layer_does_not_start():
    layer = UncertaintyWeighting({"depth": "laplace"})
    layer.trainable = False
    layer.start({"depth": 5.0})
    assert layer.sigmas() == {"depth": 1.0}


def test_every_optimizer_of_keras_keeps_s_within_its_bounds():
    layer = UncertaintyWeighting({"depth": "laplace"}, 0.0, bounds=(-1.0, 0.5))
    for loss, expected in ((100.0, 0.5), (1e-6, -1.0)):
        optimizer = keras.optimizers.SGD(10.0)
        _, (gradient,) = value_and_gradients(
            lambda: layer({"depth": ops.array(loss)}), layer.trainable_variables
        )
        optimizer.apply([ops.array(gradient)], layer.trainable_variables)
        assert layer.sigmas()["depth"] == pytest.approx(math.exp(expected))


@pytest.mark.parametrize("loss", [1e-30, 1e30])
def test_no_loss_leads_out_of_the_bounds(loss):
    layer = UncertaintyWeighting({"depth": "laplace"})
    layer.start({"depth": loss})
    total = layer({"depth": ops.array(loss)})
    assert math.isfinite(float(total))
    weight = layer.task_weights()["depth"]
    assert weight == pytest.approx(math.exp(30 if loss < 1 else -30), rel=1e-5)


def test_what_start_refuses():
    layer = UncertaintyWeighting({"depth": "laplace"})
    with pytest.raises(ValueError, match="task 'depth' is negative"):
        layer.start({"depth": ops.array(-0.5)})
    with pytest.raises(ValueError, match="'width'"):
        layer.start({"width": ops.array(0.5)})
    assert layer.sigmas() == {"depth": 1.0}


@not_on("torch", "it compiles nothing")
def test_start_is_not_compiled():
    layer = UncertaintyWeighting({"depth": "laplace"})

    def start(loss):
        layer.start({"depth": loss})
        return loss

    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(start)
    else:
        import tensorflow as tf

        compiled = tf.function(start, autograph=False)
    with pytest.raises(ValueError, match="outside compiled functions"):
        compiled(ops.array(2.0))


@pytest.mark.parametrize("bounds", [(1, 1), (2, -2), (-100, 0), (0, math.nan)])
def test_what_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="`bounds`"):
        UncertaintyWeighting({"depth": "mtl"}, bounds=bounds)


def test_starts_outside_of_the_bounds_are_refused():
    with pytest.raises(ValueError, match="'depth' must lie within.*40"):
        UncertaintyWeighting({"depth": "mtl"}, 40.0)


@not_on("jax", "it has no float64 unless it is told to")
def test_double_precision_is_kept():
    layer = UncertaintyWeighting({"depth": "laplace"}, 0.0)
    total = layer({"depth": ops.array(1.0 + 1e-12, "float64")})
    assert keras.backend.standardize_dtype(total.dtype) == "float64"
    assert float(total) == 1.0 + 1e-12


def test_a_start_is_found_from_eight_elements_at_least():
    """A single label with a tiny error would send `s` far down."""
    layer = UncertaintyWeighting({"depth": "laplace"})
    for loss, count, expected in (
        (1e-4, 1, 1e-4),
        (3.0, 3, (1e-4 + 9) / 4),
        (9.0, 0, (1e-4 + 9) / 4),  # absent
        (2.0, 4, (1e-4 + 9 + 8) / 8),
        (5.0, 100, (1e-4 + 9 + 8) / 8),  # it has begun
    ):
        layer.observe("depth", ops.array(loss), float(count))
        assert layer.sigmas()["depth"] == pytest.approx(expected, rel=1e-5)
