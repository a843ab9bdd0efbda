"""The steps of the log variances are the optimizer's own, at their own rate."""

import json
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from backends import only_on
from keras import ops

from mtl_keras import optimizers
from mtl_keras.training import MultiTaskTrainer
from mtl_keras.weighting import UncertaintyWeighting

FACTOR = 8.0
STARTS = {"height": 2.0, "weight": -1.0}
LIKELIHOODS = {"height": "gaussian", "weight": "laplace"}
A_AND_C = {"height": (0.5, 0.5), "weight": (1.0, 1.0)}


def build_network(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, activation="tanh")(inputs)
    return keras.Model(
        inputs, {task: keras.layers.Dense(1, name=task)(x) for task in LIKELIHOODS}
    )


def build_trainer(optimizer, starts=STARTS, factor=FACTOR, **compile_options):
    trainer = MultiTaskTrainer(
        build_network(),
        {"height": "mse", "weight": "mae"},
        UncertaintyWeighting(LIKELIHOODS, starts),
        sigma_learning_rate_factor=factor,
    )
    trainer.compile(optimizer, **compile_options)
    return trainer


def make_data(size=16):
    x = np.random.default_rng(1).normal(size=(size, 3)).astype("float32")
    return x, {"height": 3 * x[:, :1] + 1, "weight": x[:, 1:2]}


def log_variances(trainer):
    return {
        task: float(ops.convert_to_numpy(s))
        for task, s in trainer.weighting.log_variances.items()
    }


def train(trainer, steps, masks=None):
    """The losses that each step saw and the log variances that it left."""
    x, targets = make_data()
    losses, values = [], []
    for step in range(steps):
        mask = masks(step) if masks else None
        logs = trainer.train_on_batch(x, targets, mask, return_dict=True)
        losses.append({task: logs[f"{task}/loss"] for task in LIKELIHOODS})
        values.append(log_variances(trainer))
    return losses, values


def follow(optimizer, losses, starts=STARTS):
    """The log variances that an optimizer of Keras makes of these losses."""
    variables = {task: keras.Variable(start) for task, start in starts.items()}
    values = []
    for step in losses:
        gradients = []
        for task, s in variables.items():
            a, c = A_AND_C[task]
            gradient = c - a * math.exp(-float(ops.convert_to_numpy(s))) * step[task]
            gradients.append(ops.array(gradient, "float32"))
        optimizer.apply(gradients, list(variables.values()))
        values.append(
            {task: float(ops.convert_to_numpy(s)) for task, s in variables.items()}
        )
    return values


def assert_follows(found, expected):
    for task in STARTS:
        np.testing.assert_allclose(
            [values[task] for values in found],
            [values[task] for values in expected],
            rtol=1e-4,
            atol=2e-5,
            err_msg=task,
        )


def build(name, rate, **options):
    if name == "fused Adam":
        return optimizers.FusedAdam(rate, **options)
    return getattr(keras.optimizers, name)(rate, **options)


@pytest.mark.parametrize(
    "name, options",
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("RMSprop", {"momentum": 0.5, "centered": True}),
        ("Adam", {}),
        ("Adam", {"amsgrad": True}),
        ("fused Adam", {}),
        ("AdamW", {"weight_decay": 0.0}),
        ("Adadelta", {}),
        ("Adafactor", {}),
        ("Adagrad", {}),
        ("Adamax", {}),
        ("Nadam", {}),
        ("Lion", {}),
        ("Lamb", {}),
        ("Muon", {"adam_weight_decay": None}),
        ("SGD", {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 4}),
        ("Adam", {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 4}),
        ("SGD", {"gradient_accumulation_steps": 3}),
        ("Adam", {"gradient_accumulation_steps": 3, "clipnorm": 0.3}),
        ("SGD", {"clipnorm": 0.1}),
        ("SGD", {"clipvalue": 0.1}),
        ("SGD", {"global_clipnorm": 0.2}),
        ("SGD", {"loss_scale_factor": 1024.0}),
    ],
)
def test_steps_are_those_of_the_optimizer_at_its_own_rate(name, options):
    trainer = build_trainer(build(name, 0.01, **options))
    losses, found = train(trainer, 9)
    options = {k: v for k, v in options.items() if k != "loss_scale_factor"}
    expected = follow(build(name, 0.01 * FACTOR, **options), losses)
    assert_follows(found, expected)
    assert abs(found[-1]["height"] - STARTS["height"]) > 1e-6


def test_every_optimizer_of_keras_is_accounted_for():
    named = {n for n in dir(keras.optimizers) if isinstance(n, str) and n[0].isupper()}
    tested = {"SGD", "RMSprop", "Adam", "AdamW", "Adadelta", "Adafactor", "Adagrad"}
    tested |= {"Adamax", "Nadam", "Lion", "Lamb", "Muon", "LossScaleOptimizer"}
    refused = {"Ftrl", "ScheduleFreeAdamW", "MultiOptimizer"}
    assert named - tested - refused == {"Optimizer", "OptimizerMap"}


@pytest.mark.parametrize("name", ["Ftrl", "ScheduleFreeAdamW"])
def test_optimizers_that_undo_a_start_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} cannot train .* `sigma_optimizer`"):
        build_trainer(build(name, 0.01))
    trainer = build_trainer(
        build(name, 0.01), sigma_optimizer=keras.optimizers.SGD(0.05)
    )
    losses, found = train(trainer, 5)
    assert_follows(found, follow(keras.optimizers.SGD(0.05), losses))


def test_what_else_is_refused():
    multi = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(keras.optimizers.SGD())
    )
    with pytest.raises(ValueError, match="must not be a MultiOptimizer"):
        build_trainer(multi)

    class Own(keras.optimizers.SGD):
        def __init__(self, rate):
            super().__init__(rate)

    with pytest.raises(ValueError, match="Own cannot be copied.*`sigma_optimizer`"):
        build_trainer(Own(0.1))
    assert build_trainer(Own(0.1), sigma_optimizer="adam").optimizer is not None


def test_the_rate_follows_schedules_and_assignments():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.02, 2, 0.5)
    losses, found = train(build_trainer(keras.optimizers.SGD(schedule)), 6)
    faster = keras.optimizers.schedules.ExponentialDecay(0.02 * FACTOR, 2, 0.5)
    assert_follows(found, follow(keras.optimizers.SGD(faster), losses))

    trainer = build_trainer(keras.optimizers.SGD(0.01))
    losses, found = train(trainer, 2)
    trainer.optimizer.learning_rate = 0.05
    assert float(ops.convert_to_numpy(trainer.optimizer.learning_rate)) == (
        pytest.approx(0.05)
    )
    more, later = train(trainer, 2)
    expected = follow(keras.optimizers.SGD(0.05 * FACTOR), more, found[-1])
    assert_follows(later, expected)


def test_callbacks_of_the_learning_rate_reach_both():
    trainer = build_trainer(keras.optimizers.SGD(0.01))
    x, targets = make_data()
    rates = []
    trainer.fit(
        x,
        targets,
        epochs=3,
        verbose=0,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: rates.append(logs["learning_rate"])
            ),
        ],
    )
    np.testing.assert_allclose(rates, [0.1, 0.05, 0.1 / 3], rtol=1e-6)
    rate = trainer.optimizer.sigma_optimizer.learning_rate
    assert float(ops.convert_to_numpy(rate)) == pytest.approx(FACTOR * 0.1 / 3)


def test_the_gradient_of_a_sigma_does_not_cut_the_networks():
    """Under `global_clipnorm` the step of the network has the length rate * norm,
    however steep the log variances are."""
    lengths = {}
    for start in (0.0, -9.0):  # the gradient of s is about e^9 times the loss there
        starts = dict.fromkeys(STARTS, start)
        optimizer = keras.optimizers.SGD(0.01, global_clipnorm=1e-3)
        trainer = build_trainer(optimizer, starts)
        before = [ops.convert_to_numpy(v) for v in trainer.network.trainable_variables]
        train(trainer, 1)
        after = [ops.convert_to_numpy(v) for v in trainer.network.trainable_variables]
        squares = [np.square(b - a).sum() for a, b in zip(after, before)]
        lengths[start] = math.sqrt(sum(squares))
        # And the step of s has its own: rate * factor * norm, over the two of them.
        moved = [log_variances(trainer)[task] - start for task in STARTS]
        assert math.hypot(*moved) == pytest.approx(0.01 * FACTOR * 1e-3, rel=1e-2)
    assert lengths[0.0] == pytest.approx(0.01 * 1e-3, rel=1e-3)
    assert lengths[-9.0] == pytest.approx(0.01 * 1e-3, rel=1e-3)


def frozen(trainer):
    """Lets only weight decay move anything."""
    x, targets = make_data()
    nothing = dict.fromkeys(LIKELIHOODS, np.zeros(len(x)))
    trainer.train_on_batch(x, targets, nothing)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Lion", "Muon"])
def test_sigmas_are_never_decayed(name, built):
    optimizer = build(name, 0.01, weight_decay=0.5)
    trainer = MultiTaskTrainer(
        build_network(),
        {"height": "mse", "weight": "mae"},
        UncertaintyWeighting(LIKELIHOODS, STARTS),
    )
    if built:
        optimizer.build(trainer.trainable_variables)
    trainer.compile(optimizer)
    kernel = trainer.network.get_layer("height").kernel
    before = ops.convert_to_numpy(kernel).copy()
    frozen(trainer)
    assert log_variances(trainer) == STARTS
    np.testing.assert_allclose(
        ops.convert_to_numpy(kernel), before * (1 - 0.01 * 0.5), rtol=1e-6
    )
    for s in trainer.weighting.trainable_variables:
        assert not optimizer._use_weight_decay(s)


@pytest.mark.parametrize("accumulated", [None, 2])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda **k: keras.optimizers.Adam(0.01, **k),
        lambda **k: keras.optimizers.SGD(0.01, momentum=0.9, **k),
        lambda **k: keras.optimizers.Lion(0.01, **k),
        lambda **k: keras.optimizers.Adam(
            0.01, use_ema=True, ema_overwrite_frequency=2, **k
        ),
    ],
)
def test_an_absent_task_keeps_its_s_against_momentum(optimizer, accumulated):
    trainer = build_trainer(optimizer(gradient_accumulation_steps=accumulated))
    train(trainer, 4)
    before = log_variances(trainer)
    absent = {"height": np.zeros(16, "float32"), "weight": np.ones(16, "float32")}
    _, values = train(trainer, 12, lambda step: absent)
    assert {value["height"] for value in values} == {before["height"]}
    assert values[-1]["weight"] != before["weight"]
    _, values = train(trainer, 3)  # it goes on from there
    assert 0 < abs(values[-1]["height"] - before["height"]) < 0.5


def test_a_task_present_in_one_of_several_accumulated_batches_moves():
    trainer = build_trainer(keras.optimizers.SGD(0.01, gradient_accumulation_steps=4))
    absent = {"height": np.zeros(16, "float32"), "weight": np.ones(16, "float32")}
    losses, values = train(trainer, 4, lambda step: absent if step else None)
    a, c = A_AND_C["height"]
    gradient = c - a * math.exp(-STARTS["height"]) * losses[0]["height"]
    # The mean over four batches, three of which add nothing.
    expected = STARTS["height"] - 0.01 * FACTOR * gradient / 4
    assert values[2]["height"] == STARTS["height"]
    assert values[3]["height"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["SGD", "Adam", "Lamb", "fused Adam"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
    ],
)
def test_tasks_start_at_the_equilibrium_of_their_first_loss(name, options):
    trainer = build_trainer(build(name, 1e-5, **options), starts=None)
    assert trainer.weighting.sigmas() == {"height": 1.0, "weight": 1.0}
    x, targets = make_data()
    targets["height"] = targets["height"] * 300  # in units of its own
    absent = {"height": np.ones(16, "float32"), "weight": np.zeros(16, "float32")}
    logs = trainer.train_on_batch(x, targets, absent, return_dict=True)
    first = log_variances(trainer)
    assert first["height"] == pytest.approx(math.log(logs["height/loss"]), rel=1e-5)
    assert first["height"] > 10 and first["weight"] == 0.0
    logs = trainer.train_on_batch(x, targets, return_dict=True)
    values = log_variances(trainer)
    assert values["weight"] == pytest.approx(math.log(logs["weight/loss"]), rel=1e-5)
    for _ in range(6):  # and stay near it: no momentum, no average pulls them back
        trainer.train_on_batch(x, targets)
    for task, value in log_variances(trainer).items():
        assert value == pytest.approx(values[task], abs=0.02), task


def test_a_first_loss_without_an_equilibrium_starts_nothing():
    trainer = build_trainer(keras.optimizers.SGD(0.0), starts=None)
    x, _ = make_data()
    predicted = trainer.predict(x, verbose=0)
    trainer.train_on_batch(x, predicted)  # a loss of 0
    assert log_variances(trainer)["weight"] == 0.0
    _, targets = make_data()
    logs = trainer.train_on_batch(x, targets, return_dict=True)
    assert log_variances(trainer)["weight"] == (
        pytest.approx(math.log(logs["weight/loss"]), rel=1e-5)
    )


def test_evaluation_starts_nothing():
    trainer = build_trainer("sgd", starts=None)
    x, targets = make_data()
    trainer.evaluate(x, targets, verbose=0)
    assert log_variances(trainer) == {"height": 0.0, "weight": 0.0}


def test_s_stays_within_its_bounds_and_says_so_once():
    network = build_network()
    trainer = MultiTaskTrainer(
        network,
        {"height": "mse", "weight": "mae"},
        UncertaintyWeighting(LIKELIHOODS, STARTS, bounds=(-1.5, 2.5)),
    )
    trainer.compile(keras.optimizers.SGD(0.1))
    x, targets = make_data()
    targets["height"] = targets["height"] * 1000
    with pytest.warns(
        UserWarning, match="'height' is on its bound 2.5.*scale"
    ) as found:
        trainer.fit(x, targets, epochs=3, verbose=0)
    assert len([w for w in found if "bound" in str(w.message)]) == 1
    assert log_variances(trainer)["height"] == 2.5


@pytest.mark.parametrize("scaled", [False, True])
def test_skipped_steps_under_loss_scaling_leave_s_alone(scaled):
    optimizer = keras.optimizers.SGD(0.01)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 2.0**10)
    trainer = build_trainer(optimizer)
    x, targets = make_data()
    trainer.train_on_batch(x, targets)
    before, iterations = log_variances(trainer), int(trainer.optimizer.iterations)
    if scaled:
        trainer.train_on_batch(np.full_like(x, np.inf), targets)
        assert log_variances(trainer) == before
        assert int(trainer.optimizer.iterations) == iterations
    losses, values = train(trainer, 3)
    expected = follow(keras.optimizers.SGD(0.01 * FACTOR), losses, before)
    assert_follows(values, expected)


def test_the_optimizer_is_saved_and_goes_on(tmp_path):
    x, targets = make_data()
    for sigma_optimizer in (None, keras.optimizers.RMSprop(0.02)):
        trainer = build_trainer(
            keras.optimizers.Adam(0.01), sigma_optimizer=sigma_optimizer
        )
        train(trainer, 3)
        trainer.save(tmp_path / "trainer.keras")
        loaded = keras.saving.load_model(tmp_path / "trainer.keras")
        assert isinstance(loaded.optimizer, optimizers.WeightingOptimizer)
        assert isinstance(loaded.optimizer.network_optimizer, keras.optimizers.Adam)
        for one, other in zip(loaded.optimizer.variables, trainer.optimizer.variables):
            np.testing.assert_array_equal(
                ops.convert_to_numpy(one), ops.convert_to_numpy(other), one.path
            )
        assert train(loaded, 3) == train(trainer, 3)


def test_checkpoints_hold_the_state_of_the_optimizer_once(tmp_path):
    import h5py

    trainer = build_trainer(keras.optimizers.Adam(0.01))
    train(trainer, 1)
    trainer.save_weights(tmp_path / "trainer.weights.h5")
    size = {}
    with h5py.File(tmp_path / "trainer.weights.h5") as file:
        file.visititems(
            lambda name, item: (
                size.update({name: item.size})
                if isinstance(item, h5py.Dataset) and name.startswith("optimizer")
                else None
            )
        )
    weights = sum(int(np.prod(v.shape)) for v in trainer.trainable_variables)
    assert sum(size.values()) == 2 * weights + 5  # and three counts and two rates


def test_compiling_again_keeps_the_optimizer():
    trainer = build_trainer(keras.optimizers.SGD(0.01, momentum=0.9))
    train(trainer, 2)
    inner = trainer.optimizer.network_optimizer
    trainer.compile(trainer.optimizer)
    assert trainer.optimizer.network_optimizer is inner
    train(trainer, 1)


def test_swapped_averages():
    """Keras's callback finds the averages of both optimizers."""
    trainer = build_trainer(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9))
    x, targets = make_data()
    trainer.fit(
        x,
        targets,
        epochs=2,
        validation_data=(x, targets),
        verbose=0,
        callbacks=[keras.callbacks.SwapEMAWeights()],
    )
    assert all(math.isfinite(s) for s in log_variances(trainer).values())


def test_weight_decay_of_an_unbuilt_network_is_refused():
    trainer = MultiTaskTrainer(
        keras.Sequential([keras.layers.Dense(1)]),
        {"height": "mse"},
        UncertaintyWeighting({"height": "gaussian"}),
    )
    with pytest.raises(ValueError, match="call it on a batch before `compile`"):
        trainer.compile(keras.optimizers.AdamW(0.01))
    trainer.compile(keras.optimizers.Adam(0.01))


def test_a_loss_scale_optimizer_that_was_built_before():
    inner = keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, 2.0**10)
    trainer = MultiTaskTrainer(
        build_network(),
        {"height": "mse", "weight": "mae"},
        UncertaintyWeighting(LIKELIHOODS, STARTS),
    )
    optimizer.build(trainer.trainable_variables)
    trainer.compile(optimizer)
    assert trainer.optimizer is optimizer
    losses, found = train(trainer, 2)
    rate = 0.01 * trainer.sigma_learning_rate_factor
    assert_follows(found, follow(keras.optimizers.SGD(rate, momentum=0.9), losses))


def test_a_sigma_optimizer_that_decays_is_refused():
    with pytest.raises(ValueError, match="no weight decay.*0.004"):
        build_trainer("adam", sigma_optimizer=keras.optimizers.AdamW(0.01))


def test_a_learning_rate_that_is_a_function():
    losses, found = train(build_trainer(keras.optimizers.SGD(lambda: 0.01)), 3)
    assert_follows(found, follow(keras.optimizers.SGD(0.01 * FACTOR), losses))


def test_muon_decays_kernels_alone():
    trainer = MultiTaskTrainer(
        build_network(),
        {"height": "mse", "weight": "mae"},
        UncertaintyWeighting(LIKELIHOODS, STARTS),
    )
    trainer.compile(keras.optimizers.Muon(0.01, adam_weight_decay=10.0))
    bias = trainer.network.get_layer("height").bias
    bias.assign(np.ones(1))
    frozen(trainer)
    np.testing.assert_array_equal(ops.convert_to_numpy(bias), [1.0])
    assert log_variances(trainer) == STARTS


def test_the_average_of_an_absent_task_comes_to_its_s():
    trainer = build_trainer(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5))
    train(trainer, 3)
    absent = {"height": np.zeros(16, "float32"), "weight": np.ones(16, "float32")}
    train(trainer, 20, lambda step: absent)
    s = log_variances(trainer)["height"]
    trainer.optimizer.finalize_variable_values(trainer.trainable_variables)
    assert log_variances(trainer)["height"] == pytest.approx(s, abs=1e-5)


@pytest.mark.parametrize(
    "options", [{"momentum": 0.9}, {"use_ema": True, "ema_overwrite_frequency": 5}]
)
def test_nothing_is_left_of_the_batches_that_a_task_starts_from(options):
    """Three batches of 3 elements; then the optimizer begins, at rest."""
    trainer = build_trainer(keras.optimizers.SGD(0.01, **options), starts=None)
    few = dict.fromkeys(LIKELIHOODS, (np.arange(16) < 3).astype("float32"))
    some = dict.fromkeys(LIKELIHOODS, (np.arange(16) > 7).astype("float32"))
    x, targets = make_data()
    for factor in (1.0, 3.0, 0.2):  # losses that differ
        scaled = {task: factor * target for task, target in targets.items()}
        trainer.train_on_batch(x, scaled, few)
    starts = log_variances(trainer)
    assert all(start != 0 for start in starts.values())
    losses, found = train(trainer, 1, lambda step: some)
    expected = follow(keras.optimizers.SGD(0.01 * FACTOR), losses, starts)
    assert_follows(found, expected)


EVERYTHING = """
import json
import sys

import keras
import numpy as np
from keras import ops

from mtl_keras import MultiTaskTrainer, UncertaintyWeighting

inputs = keras.Input((3,))
x = keras.layers.Dense(4, activation="tanh")(inputs)
heads = {"a": 1, "b": 1, "c": 3}
network = keras.Model(
    inputs, {task: keras.layers.Dense(units)(x) for task, units in heads.items()}
)
rng = np.random.default_rng(1)
network.set_weights([rng.normal(0, 0.5, w.shape) for w in network.get_weights()])
trainer = MultiTaskTrainer(
    network,
    {
        "a": "mse",
        "b": keras.losses.Huber(),
        "c": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    },
    UncertaintyWeighting({"a": "gaussian", "b": "laplace", "c": "softmax"}),
)
options = json.loads(sys.argv[1])
optimizer = getattr(keras.optimizers, options["name"])(**options["options"])
if options["scaled"]:
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 2.0**8, 5)
trainer.compile(optimizer)
values = []
for step in range(24):
    x = rng.normal(size=(16, 3)).astype("float32")
    targets = {"a": 1e3 * x[:, :1] + 5, "b": x[:, 1:2], "c": (x[:, 2] > 0).astype(int)}
    masks = {
        "a": np.full(16, step % 3 > 0),  # absent in every third batch
        "b": np.arange(16) < (3 if step < 4 else 12),  # starts from three of them
    }
    if options["scaled"] and step in (7, 8):
        x[0] = np.inf  # steps that are skipped
    trainer.train_on_batch(x, targets, masks)
    for s in trainer.weighting.log_variances.values():
        values.append(float(ops.convert_to_numpy(s)))
for weight in network.get_weights():
    values += weight.ravel().tolist()
print(json.dumps(values))
"""


@pytest.mark.slow
@only_on("tensorflow", "one run is enough: it starts the other backends")
@pytest.mark.parametrize(
    "name, scaled, options",
    [
        (
            "Adam",
            True,
            {
                "learning_rate": 0.01,
                "gradient_accumulation_steps": 2,
                "use_ema": True,
                "ema_momentum": 0.7,
                "ema_overwrite_frequency": 3,
                "global_clipnorm": 0.5,
            },
        ),
        ("Nadam", False, {"learning_rate": 0.01, "clipnorm": 0.3, "use_ema": True}),
        ("Lamb", False, {"learning_rate": 0.02, "weight_decay": 0.1}),
    ],
)
def test_everything_at_once_is_the_same_on_every_backend(name, scaled, options):
    arguments = json.dumps({"name": name, "scaled": scaled, "options": options})
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", EVERYTHING, arguments],
                env={**os.environ, "KERAS_BACKEND": backend},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.splitlines()[-1]
        )
        for backend in ("tensorflow", "jax", "torch")
    ]
    assert len(found[0]) == 24 * 3 + 4 * 4 + 5 * 5 and np.isfinite(found[0]).all()
    np.testing.assert_allclose(found[1], found[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=2e-5, atol=2e-5)
