import doctest
import math

import keras
import numpy as np
import pytest
from gradients import value_and_gradients
from keras import ops
from layer_checks import check_layer

from mtl_keras import (
    DynamicWeightAverage,
    GeometricMean,
    LogSum,
    MultiTaskTrainer,
    RandomWeighting,
    SoftOptimalWeighting,
    UncertaintyWeighting,
    weightings,
)

TASKS = ["semantic", "depth"]
ARGUMENTS = {
    DynamicWeightAverage: {"tasks": TASKS, "steps_per_epoch": 2},
    RandomWeighting: {"tasks": TASKS, "seed": 3},
    GeometricMean: {"tasks": TASKS},
    LogSum: {"tasks": TASKS},
    SoftOptimalWeighting: {"tasks": TASKS, "temperature": 0.5},
}
every_weighting = pytest.mark.parametrize("weighting_class", ARGUMENTS)


def as_losses(semantic, depth):
    return {"semantic": ops.array(semantic), "depth": ops.array(depth)}


def test_examples_of_the_docstrings():
    result = doctest.testmod(weightings, extraglobs={"keras": keras, "ops": ops})
    assert result.attempted > 0 and result.failed == 0


@every_weighting
def test_is_a_proper_layer(weighting_class, tmp_path):
    check_layer(
        weighting_class,
        ARGUMENTS[weighting_class],
        {"semantic": (), "depth": ()},
        expected_output_shape=(),
        expected_dtype="float32",
        tmp_path=tmp_path,
    )


@every_weighting
def test_reported_weights_are_the_gradient_by_the_losses(weighting_class):
    layer = weighting_class(**ARGUMENTS[weighting_class])
    values = [keras.Variable(2.0), keras.Variable(0.5)]
    layer.update(as_losses(2.0, 0.5))
    _, gradients = value_and_gradients(
        lambda: layer(dict(zip(TASKS, map(ops.convert_to_tensor, values)))), values
    )
    weights = layer.task_weights()
    np.testing.assert_allclose([*weights.values()], gradients, rtol=1e-5)
    assert {k: float(v) for k, v in layer.logs().items()} == {
        f"{task}/weight": pytest.approx(weight) for task, weight in weights.items()
    }
    assert layer.sigmas() == {}


@every_weighting
def test_an_absent_task_adds_nothing(weighting_class):
    layer = weighting_class(**ARGUMENTS[weighting_class])
    values = [keras.Variable(2.0), keras.Variable(0.0)]
    present = {"semantic": 5.0, "depth": 0.0}
    layer.update(as_losses(2.0, 0.0), present)
    total, gradients = value_and_gradients(
        lambda: layer(
            dict(zip(TASKS, map(ops.convert_to_tensor, values))), present=present
        ),
        values,
    )
    expected = {
        DynamicWeightAverage: 2.0,
        RandomWeighting: 2 * layer.task_weights()["semantic"],
        GeometricMean: 2.0,
        LogSum: math.log(2.0),
        SoftOptimalWeighting: 2.0,
    }[weighting_class]
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert gradients[0] > 0 and gradients[1] == 0
    nothing = layer(as_losses(0.0, 0.0), present={"semantic": 0.0, "depth": 0.0})
    assert float(nothing) == 0


@every_weighting
def test_tiny_and_huge_losses_stay_finite(weighting_class):
    layer = weighting_class(**ARGUMENTS[weighting_class])
    values = [keras.Variable(0.0), keras.Variable(1e30)]
    for _ in range(6):
        layer.update(as_losses(0.0, 1e30))
    total, gradients = value_and_gradients(
        lambda: layer(dict(zip(TASKS, map(ops.convert_to_tensor, values)))), values
    )
    assert np.isfinite(total) and np.isfinite(gradients).all()


@every_weighting
def test_unknown_and_missing_tasks_are_refused(weighting_class):
    arguments = ARGUMENTS[weighting_class]
    with pytest.raises(ValueError, match="names 'normals'"):
        weighting_class(**arguments)({"normals": ops.array(1.0)})
    with pytest.raises(ValueError, match="at least one"):
        weighting_class(**{**arguments, "tasks": []})


def test_dynamic_weight_average_is_equation_7():
    layer = DynamicWeightAverage(TASKS, steps_per_epoch=2)
    epochs = [[(4.0, 1.0), (2.0, 1.0)], [(1.0, 1.0), (2.0, 0.6)]]
    for losses in epochs[0] + epochs[1]:
        layer.update(as_losses(*losses))
        assert layer.task_weights() == {"semantic": 1.0, "depth": 1.0}
    layer.update(as_losses(9.0, 9.0))
    powers = np.exp([(1.5 / 3.0) / 2, (0.8 / 1.0) / 2])
    np.testing.assert_allclose(
        [*layer.task_weights().values()], 2 * powers / powers.sum(), rtol=1e-6
    )
    total = layer(as_losses(3.0, 5.0))
    expected = 2 * (powers * [3.0, 5.0]).sum() / powers.sum()
    assert float(total) == pytest.approx(expected, rel=1e-6)


def test_dynamic_weight_average_leaves_absent_batches_out_of_its_means():
    layer = DynamicWeightAverage(TASKS, steps_per_epoch=2)
    both, one = {"semantic": 1, "depth": 1}, {"semantic": 1, "depth": 0}
    for depth, present in ((4.0, both), (0.0, one), (0.0, one), (0.0, one)):
        layer.update(as_losses(2.0, depth), present)
    assert float(layer.last_means["depth"].numpy()) == 4.0
    assert float(layer.earlier_means["depth"].numpy()) == 0.0
    assert float(layer.earlier_means["semantic"].numpy()) == 2.0


def test_random_weights_are_a_softmax_of_normal_numbers():
    layer = RandomWeighting(TASKS, seed=1)
    draws = []
    for _ in range(400):
        layer.update(as_losses(1.0, 1.0))
        first, second = layer.task_weights().values()
        assert first + second == pytest.approx(1, abs=1e-6)
        draws.append(math.log(first / second))  # a difference of two normal numbers
    assert np.mean(draws) == pytest.approx(0, abs=0.25)
    assert np.std(draws) == pytest.approx(math.sqrt(2), abs=0.2)


def test_soft_optimal_weights_are_a_softmax_of_inverse_losses():
    layer = SoftOptimalWeighting(TASKS, temperature=2.0)
    powers = np.exp([1 / 0.5 / 2, 1 / 4.0 / 2])
    expected = (powers * [0.5, 4.0]).sum() / powers.sum()
    assert float(layer(as_losses(0.5, 4.0))) == pytest.approx(expected, rel=1e-6)


def make_trainer(weighting):
    keras.utils.set_random_seed(0)
    x = keras.Input((3,))
    outputs = {task: keras.layers.Dense(1, name=task)(x) for task in TASKS}
    losses = dict.fromkeys(TASKS, "mse")
    trainer = MultiTaskTrainer(keras.Model(x, outputs), losses, weighting)
    trainer.compile(keras.optimizers.SGD(0.01))
    return trainer


def make_batches():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype("float32")
    return x, {task: x[:, :1] * (i + 1) + 1 for i, task in enumerate(TASKS)}


@every_weighting
def test_a_training_that_is_resumed_takes_the_same_steps(weighting_class, tmp_path):
    x, y = make_batches()
    fit = {"batch_size": 8, "shuffle": False, "verbose": 0}
    trainer = make_trainer(weighting_class(**ARGUMENTS[weighting_class]))
    trainer.fit(x[:24], {k: v[:24] for k, v in y.items()}, **fit)
    trainer.save_weights(tmp_path / "half.weights.h5")
    rest = x[24:], {k: v[24:] for k, v in y.items()}
    logs = trainer.fit(*rest, **fit).history
    assert {f"{task}/weight" for task in TASKS} <= set(logs)
    other = make_trainer(weighting_class(**ARGUMENTS[weighting_class]))
    other.load_weights(tmp_path / "half.weights.h5")
    assert other.fit(*rest, **fit).history == logs
    for one, two in zip(trainer.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(one, two)


@every_weighting
def test_evaluation_moves_nothing(weighting_class):
    x, y = make_batches()
    trainer = make_trainer(weighting_class(**ARGUMENTS[weighting_class]))
    trainer.fit(x, y, verbose=0)
    before = [np.array(v) for v in map(ops.convert_to_numpy, trainer.variables)]
    first = trainer.evaluate(x, y, batch_size=8, verbose=0)
    assert trainer.evaluate(x, y, batch_size=20, verbose=0) == pytest.approx(first)
    weights = trainer.weighting.variables
    ids = {id(v): i for i, v in enumerate(trainer.variables)}
    for variable in weights:
        np.testing.assert_array_equal(
            ops.convert_to_numpy(variable), before[ids[id(variable)]]
        )


def test_a_negative_loss_is_refused_by_name():
    trainer = make_trainer(LogSum(TASKS))
    x = keras.Input((3,))
    outputs = {task: keras.layers.Dense(1, name=task)(x) for task in TASKS}
    losses = {"semantic": "mse", "depth": lambda y, p: -1.0 - ops.mean(p**2, -1)}
    trainer = MultiTaskTrainer(keras.Model(x, outputs), losses, LogSum(TASKS))
    trainer.compile("sgd")
    with pytest.raises(ValueError, match="'depth' is negative, which `LogSum` cannot"):
        trainer.fit(*make_batches(), verbose=0)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_priorities_multiply_the_whole_term(nonnegative):
    plain, layer = (
        UncertaintyWeighting(
            {"semantic": "softmax", "depth": "mtl"},
            0.3,
            priorities=priorities,
            nonnegative=nonnegative,
        )
        for priorities in (None, {"semantic": 3.0})
    )
    regularizer = math.log1p(math.exp(0.3)) if nonnegative else 0.3
    term = math.exp(-0.3) * 2.0 + 0.5 * regularizer
    other = 0.5 * math.exp(-0.3) * 5.0 + regularizer
    losses = as_losses(2.0, 5.0)
    assert float(plain(losses)) == pytest.approx(term + other, rel=1e-6)
    assert float(layer(losses)) == pytest.approx(3 * term + other, rel=1e-6)
    assert layer.task_weights()["semantic"] == pytest.approx(3 * math.exp(-0.3))


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_start_is_the_equilibrium(nonnegative):
    likelihoods = {"semantic": "softmax", "depth": "mtl"}
    layer = UncertaintyWeighting(
        likelihoods, priorities={"depth": 3.0}, nonnegative=nonnegative
    )
    losses = as_losses(0.02, 7.0)
    layer.start(losses)
    _, gradients = value_and_gradients(lambda: layer(losses), layer.trainable_variables)
    np.testing.assert_allclose(gradients, 0, atol=1e-5)
    if not nonnegative:  # shares of the gradient: priority times c
        shares = {
            task: w * float(losses[task]) for task, w in layer.task_weights().items()
        }
        assert shares == {
            "semantic": pytest.approx(0.5, rel=1e-5),
            "depth": pytest.approx(3.0, rel=1e-5),
        }
    else:  # x = (k + sqrt(k^2 + 4k)) / 2 with k = a L / c
        k = 0.5 * 7.0
        x = (k + math.sqrt(k * k + 4 * k)) / 2
        assert layer.task_weights()["depth"] == pytest.approx(3 * 0.5 / x, rel=1e-5)
        assert float(layer(as_losses(0.0, 0.0))) >= 0


def test_wrong_priorities_are_refused():
    for priorities, message in (
        ({"normals": 1.0}, "names 'normals'"),
        ({"depth": 0.0}, "priority of task 'depth'"),
    ):
        with pytest.raises(ValueError, match=message):
            UncertaintyWeighting({"depth": "laplace"}, priorities=priorities)
