import doctest
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from backends import only_on
from keras import ops

from mtl_keras import training
from mtl_keras.losses import MaskedLoss
from mtl_keras.training import MultiTaskTrainer
from mtl_keras.weighting import FixedWeighting, UncertaintyWeighting

tensorflow_only = only_on("tensorflow", "uses tf.data, its export or its tracing")

TASKS = ("height", "weight", "kind")
LIKELIHOODS = {"height": "gaussian", "weight": "laplace", "kind": "softmax"}


def build_mlp(structure="dict", regularizer=None, seed=0):
    """A network that is none of ours: two outputs of one shape, and a classifier."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(
        8, activation="tanh", name="trunk", kernel_regularizer=regularizer
    )(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    heads = {
        task: keras.layers.Dense(3 if task == "kind" else 1, name=task)(x)
        for task in TASKS
    }
    outputs = {
        "dict": heads,
        "list": list(heads.values()),
        "single": heads["height"],
    }[structure]
    return keras.Model(inputs, outputs)


def task_losses(tasks=TASKS):
    losses = {
        "height": keras.losses.MeanSquaredError(),
        "weight": keras.losses.MeanAbsoluteError(),
        "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }
    return {task: losses[task] for task in tasks}


def build_trainer(network=None, tasks=TASKS, weighting=None, losses=None, **options):
    return MultiTaskTrainer(
        network or build_mlp(),
        losses or task_losses(tasks),
        weighting or UncertaintyWeighting({task: LIKELIHOODS[task] for task in tasks}),
        **options,
    )


def make_data(size=24, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 6)).astype("float32")
    targets = {
        "height": x[:, :1] * 2 + 1,
        "weight": x[:, 1:2] - x[:, 2:3],
        "kind": rng.integers(0, 3, size).astype("int32"),
    }
    return x, targets


def weights_of(model):
    return [np.array(variable.numpy()) for variable in model.trainable_variables]


def log_variances(trainer):
    return {t: float(s.numpy()) for t, s in trainer.weighting.log_variances.items()}


def test_example_of_the_docstring():
    result = doctest.testmod(training, extraglobs={"keras": keras, "ops": ops})
    assert result.attempted > 0 and result.failed == 0


def test_a_step_moves_trunk_heads_and_sigmas():
    trainer = build_trainer()
    trainer.compile(keras.optimizers.Adam(0.01))
    before = weights_of(trainer)
    x, targets = make_data()
    trainer.train_on_batch(x, targets)
    assert len(before) == 2 + 2 + 3 * 2 + 3
    for variable, old in zip(trainer.trainable_variables, before):
        assert np.abs(variable.numpy() - old).max() > 0, variable.path


def test_evaluation_moves_nothing():
    trainer = build_trainer()
    trainer.compile("adam")
    before = [variable.numpy() for variable in (*trainer.network.variables,)]
    sigmas = trainer.weighting.sigmas()
    x, targets = make_data()
    trainer.evaluate(x, targets, verbose=0)
    for variable, old in zip(trainer.network.variables, before):
        np.testing.assert_array_equal(variable.numpy(), old)
    assert trainer.weighting.sigmas() == sigmas


def test_losses_are_those_of_the_formula():
    network = build_mlp()
    trainer = build_trainer(
        network, weighting=UncertaintyWeighting(LIKELIHOODS, {"height": 0.4})
    )
    trainer.compile("adam")
    x, targets = make_data()
    logs = trainer.evaluate(x, targets, verbose=0, return_dict=True)
    outputs = {t: ops.convert_to_numpy(y) for t, y in network(x).items()}
    error = outputs["height"] - targets["height"]
    height = np.mean(np.square(error))
    weight = np.mean(np.abs(outputs["weight"] - targets["weight"]))
    scores = np.exp(outputs["kind"])
    chosen = np.take_along_axis(scores, targets["kind"][:, None], 1)[:, 0]
    kind = -np.mean(np.log(chosen / scores.sum(1)))
    expected = {
        "loss": 0.5 * math.exp(-0.4) * height + 0.5 * 0.4 + weight + kind,
        "height/loss": height,
        "weight/loss": weight,
        "kind/loss": kind,
    }
    assert set(logs) == set(expected)
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-5), name


def test_logs_hold_losses_metrics_sigmas_and_weights():
    trainer = build_trainer(
        task_metrics={"height": [keras.metrics.MeanAbsoluteError(name="mean_abs")]}
    )
    trainer.compile("adam")
    x, targets = make_data()
    history = trainer.fit(
        x, targets, validation_data=(x, targets), batch_size=8, epochs=2, verbose=0
    ).history
    names = ["loss", "height/mean_abs"] + [f"{task}/loss" for task in TASKS]
    own = [f"{task}/{name}" for task in TASKS for name in ("sigma", "weight")]
    assert set(history) == {*names, *own, *(f"val_{name}" for name in names)}
    # They are the values after the last step.
    for task in TASKS:
        assert history[f"{task}/sigma"][-1] == pytest.approx(
            trainer.weighting.sigmas()[task]
        )
        assert history[f"{task}/weight"][-1] == pytest.approx(
            trainer.weighting.task_weights()[task]
        )
    assert history["height/sigma"][0] != history["height/sigma"][1]


def test_fixed_weights_are_not_logged_as_sigmas():
    trainer = build_trainer(weighting=FixedWeighting(dict.fromkeys(TASKS, 0.5)))
    trainer.compile("adam")
    logs = trainer.train_on_batch(*make_data(), return_dict=True)
    assert set(logs) == {"loss"} | {f"{task}/loss" for task in TASKS}
    parts = sum(logs[f"{task}/loss"] for task in TASKS)
    assert logs["loss"] == pytest.approx(0.5 * parts, rel=1e-5)


@tensorflow_only
def test_arrays_and_tf_data_train_alike():
    import tensorflow as tf

    x, targets = make_data()
    # For arrays, Keras wants a mask for every target.
    masks = {task: np.ones(24, "float32") for task in TASKS}
    masks["height"] = np.arange(24, dtype="float32") % 2
    histories = []
    for pipeline in (False, True):
        trainer = build_trainer()
        trainer.compile("adam")
        if pipeline:
            batches = tf.data.Dataset.from_tensor_slices((x, targets, masks)).batch(8)
            history = trainer.fit(batches, epochs=2, verbose=0)
        else:
            history = trainer.fit(
                x,
                targets,
                sample_weight=masks,
                batch_size=8,
                epochs=2,
                shuffle=False,
                verbose=0,
            )
        histories.append(history.history)
    assert histories[0] == histories[1]


def test_list_outputs_go_by_the_names_of_their_layers():
    network = build_mlp("list")
    x, targets = make_data()
    height, weight, _ = map(ops.convert_to_numpy, network(x))
    trainer = build_trainer(network, weighting=FixedWeighting(dict.fromkeys(TASKS, 1)))
    trainer.compile("adam")
    # In another order than the outputs; each head predicts its target exactly.
    exact = {"kind": targets["kind"], "weight": weight, "height": height}
    logs = trainer.evaluate(x, exact, verbose=0, return_dict=True)
    assert logs["height/loss"] == pytest.approx(0, abs=1e-10)
    assert logs["weight/loss"] == pytest.approx(0, abs=1e-5)
    swapped = {"kind": targets["kind"], "weight": height, "height": weight}
    logs = trainer.evaluate(x, swapped, verbose=0, return_dict=True)
    assert logs["height/loss"] > 0.01 and logs["weight/loss"] > 0.01


def test_dict_and_list_outputs_train_alike():
    x, targets = make_data()
    trained = []
    for structure in ("dict", "list"):
        trainer = build_trainer(build_mlp(structure))
        trainer.compile(keras.optimizers.SGD(0.1))
        trainer.train_on_batch(x, targets)
        trained.append({v.path: v.numpy() for v in trainer.network.trainable_variables})
    first, second = trained
    assert first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_allclose(value, second[path], atol=1e-6, err_msg=path)


def test_a_single_output():
    x, targets = make_data()
    trainer = build_trainer(build_mlp("single"), tasks=("height",))
    trainer.compile("adam")
    logs = trainer.train_on_batch(x, {"height": targets["height"]}, return_dict=True)
    assert set(logs) == {"loss", "height/loss", "height/sigma", "height/weight"}


def test_outputs_without_a_loss_are_not_trained():
    trainer = build_trainer(tasks=("weight",))
    trainer.compile(keras.optimizers.SGD(0.1))
    before = {v.path: v.numpy() for v in trainer.trainable_variables}
    x, targets = make_data()
    trainer.train_on_batch(x, targets)
    moved = {
        v.path.split("/")[-2]
        for v in trainer.trainable_variables
        if np.abs(v.numpy() - before[v.path]).max() > 0
    }
    assert "height" not in moved and "kind" not in moved
    assert {"trunk", "weight"} <= moved


def test_a_task_masked_in_a_batch_stays_where_it_is():
    x, targets = make_data()
    trainer = build_trainer()
    trainer.compile(keras.optimizers.SGD(0.1))
    head = trainer.network.get_layer("weight")
    before, starts = head.get_weights(), log_variances(trainer)
    poisoned = {**targets, "weight": np.full_like(targets["weight"], np.nan)}
    masks = {"weight": np.zeros(24, "float32")}
    logs = trainer.train_on_batch(x, poisoned, sample_weight=masks, return_dict=True)
    assert np.isfinite(logs["loss"])
    for old, new in zip(before, head.get_weights()):
        np.testing.assert_array_equal(old, new)
    after = log_variances(trainer)
    assert after["weight"] == starts["weight"]
    assert after["height"] != starts["height"] and after["kind"] != starts["kind"]


def test_unmasked_losses_do_not_depend_on_the_batches_either():
    x, targets = make_data()
    trainer = build_trainer()
    trainer.compile("adam")
    whole, cut = (
        trainer.evaluate(x, targets, batch_size=size, verbose=0, return_dict=True)
        for size in (24, 7)
    )
    for name, value in whole.items():
        assert cut[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_sigmas_move_by_the_factor(optimizer):
    moved = {}
    for factor in (1.0, 8.0):
        trainer = build_trainer(
            weighting=UncertaintyWeighting(LIKELIHOODS, 0.0),
            sigma_learning_rate_factor=factor,
        )
        trainer.compile(
            keras.optimizers.get(
                {"class_name": optimizer, "config": {"learning_rate": 0.01}}
            )
        )
        trainer.train_on_batch(*make_data())
        moved[factor] = log_variances(trainer), weights_of(trainer.network)
    for task in TASKS:
        step = moved[1.0][0][task]
        assert step != 0
        assert moved[8.0][0][task] == pytest.approx(8 * step, rel=1e-5)
    for plain, fast in zip(moved[1.0][1], moved[8.0][1]):
        np.testing.assert_array_equal(plain, fast)


def test_a_plain_step_of_s_is_that_of_the_gradient():
    trainer = build_trainer(
        tasks=("weight",),
        weighting=UncertaintyWeighting({"weight": "laplace"}, 0.0),
        sigma_learning_rate_factor=1.0,
    )
    trainer.compile(keras.optimizers.SGD(0.01))
    x, targets = make_data()
    outputs = trainer.network(x, training=True)["weight"]
    loss = np.mean(np.abs(ops.convert_to_numpy(outputs) - targets["weight"]))
    trainer.train_on_batch(x, targets)
    expected = -0.01 * (1.0 - loss)  # the derivative of exp(-s) * loss + s
    assert log_variances(trainer)["weight"] == pytest.approx(expected, rel=1e-4)


def flat_loss(y_true, y_pred, sample_weight=None):
    return 0.0 * ops.sum(y_pred)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_weight_decay_touches_kernels_only(precision, set_policy):
    set_policy(precision)
    network = build_mlp()
    network.set_weights([np.full_like(w, 0.5) for w in network.get_weights()])
    trainer = build_trainer(
        network,
        losses=dict.fromkeys(TASKS, flat_loss),
        weighting=UncertaintyWeighting(dict.fromkeys(TASKS, "laplace"), 2.0),
    )
    trainer.compile(keras.optimizers.SGD(0.1, weight_decay=0.5))
    trainer.train_on_batch(*make_data())
    for variable in network.trainable_variables:
        decays = variable.name == "kernel"
        expected = 0.5 * (1 - 0.1 * 0.5) if decays else 0.5
        np.testing.assert_allclose(
            variable.numpy(), expected, rtol=1e-6, err_msg=variable.path
        )
    # Only the regularizer, whose derivative is 1, moves s: 10 times 0.1.
    for s in log_variances(trainer).values():
        assert s == pytest.approx(2.0 - 10 * 0.1, rel=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains(policy, set_policy):
    set_policy(policy)
    trainer = build_trainer()
    assert trainer.dtype_policy.name == policy
    trainer.compile(keras.optimizers.Adam(0.01))
    scaled = isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    x, targets = make_data()
    history = trainer.fit(x, targets, epochs=8, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["height/loss"][-1] < history["height/loss"][0]
    for s in trainer.weighting.log_variances.values():
        assert s.dtype == "float32" and float(s.numpy()) != 0


def test_xla():
    x, targets = make_data()
    losses = []
    for jit_compile in (False, True):
        trainer = build_trainer()
        trainer.compile(keras.optimizers.SGD(0.05), jit_compile=jit_compile)
        history = trainer.fit(
            x, targets, batch_size=8, epochs=2, shuffle=False, verbose=0
        )
        losses.append(history.history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_steps_run_eagerly_and_several_at_a_time():
    x, targets = make_data()
    trained = []
    several = 1 if keras.backend.backend() == "torch" else 3
    for options in ({}, {"run_eagerly": True}, {"steps_per_execution": several}):
        trainer = build_trainer()
        trainer.compile(keras.optimizers.SGD(0.05), jit_compile=False, **options)
        trainer.fit(x, targets, batch_size=8, shuffle=False, verbose=0)
        trained.append(weights_of(trainer))
    for other in trained[1:]:
        for first, second in zip(trained[0], other):
            np.testing.assert_allclose(first, second, atol=1e-6)


def test_metrics_start_afresh_every_epoch():
    x, targets = make_data()
    trainer = build_trainer(
        task_metrics={"kind": [keras.metrics.SparseCategoricalAccuracy(name="hits")]}
    )
    trainer.compile(keras.optimizers.SGD(0.0))
    first = trainer.evaluate(x, targets, verbose=0, return_dict=True)
    trainer.evaluate(x[:5], {t: y[:5] for t, y in targets.items()}, verbose=0)
    assert trainer.evaluate(x, targets, verbose=0, return_dict=True) == first


def test_regularizers_of_the_network_are_in_the_total():
    network = build_mlp(regularizer=keras.regularizers.L2(0.1))
    trainer = build_trainer(network, weighting=FixedWeighting(dict.fromkeys(TASKS, 1)))
    trainer.compile(keras.optimizers.SGD(0.1))
    x, targets = make_data()
    logs = trainer.evaluate(x, targets, verbose=0, return_dict=True)
    kernel = network.get_layer("trunk").kernel.numpy()
    parts = sum(logs[f"{task}/loss"] for task in TASKS)
    expected = parts + 0.1 * np.square(kernel).sum()
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)


def test_keras_file_holds_everything(tmp_path):
    x, targets = make_data()
    trainer = build_trainer(
        weighting=UncertaintyWeighting(LIKELIHOODS, {"weight": 0.3}),
        task_metrics={"height": [keras.metrics.MeanAbsoluteError(name="mean_abs")]},
        losses={task: MaskedLoss(loss) for task, loss in task_losses().items()},
        sigma_learning_rate_factor=3.0,
    )
    trainer.compile(keras.optimizers.AdamW(0.01))
    fit = {"batch_size": 8, "shuffle": False, "verbose": 0}
    trainer.fit(x, targets, **fit)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    assert loaded.weighting.sigmas() == trainer.weighting.sigmas()
    assert loaded.sigma_learning_rate_factor == 3.0
    assert isinstance(loaded.optimizer.network_optimizer, keras.optimizers.AdamW)
    predicted, original = loaded.predict(x, verbose=0), trainer.predict(x, verbose=0)
    for task in TASKS:
        np.testing.assert_array_equal(predicted[task], original[task])
    histories = [model.fit(x, targets, **fit).history for model in (trainer, loaded)]
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[0].items():
        assert histories[1][name] == pytest.approx(values, rel=1e-6), name


def test_the_network_is_saved_without_the_weighting(tmp_path):
    trainer = build_trainer()
    trainer.network.save(tmp_path / "network.keras")
    network = keras.saving.load_model(tmp_path / "network.keras")
    assert not any("log_variance" in variable.path for variable in network.variables)
    x, _ = make_data()
    for task, output in network.predict(x, verbose=0).items():
        expected = ops.convert_to_numpy(trainer.network(x)[task])
        np.testing.assert_allclose(output, expected, atol=1e-6)


def test_saved_and_continued_equals_uninterrupted(tmp_path):
    x, targets = make_data()
    fit = {"batch_size": 8, "shuffle": False, "verbose": 0}

    def build():
        trainer = build_trainer()
        schedule = keras.optimizers.schedules.CosineDecay(0.01, 12)
        trainer.compile(keras.optimizers.Adam(schedule))
        trainer.optimizer.build(trainer.trainable_variables)
        return trainer

    def save_after_two(epoch, logs):
        if epoch == 1:
            whole.save_weights(tmp_path / "middle.weights.h5")

    whole = build()
    save = keras.callbacks.LambdaCallback(on_epoch_end=save_after_two)
    whole.fit(x, targets, epochs=4, callbacks=[save], **fit)
    second = build()
    second.load_weights(tmp_path / "middle.weights.h5")
    second.fit(x, targets, epochs=4, initial_epoch=2, **fit)
    for uninterrupted, continued in zip(whole.variables, second.variables):
        np.testing.assert_array_equal(
            uninterrupted.numpy(), continued.numpy(), err_msg=uninterrupted.path
        )


def test_what_the_trainer_refuses():
    network = build_mlp()
    with pytest.raises(ValueError, match="`losses` names 'size'.*'height', 'weight'"):
        build_trainer(network, losses={"size": keras.losses.MeanSquaredError()})
    with pytest.raises(ValueError, match="at least one task"):
        MultiTaskTrainer(network, {}, FixedWeighting({"height": 1.0}))
    with pytest.raises(ValueError, match="`task_metrics` names 'size'"):
        build_trainer(network, task_metrics={"size": []})
    with pytest.raises(ValueError, match="'kind'"):
        build_trainer(network, weighting=FixedWeighting({"height": 1, "weight": 1}))
    trainer = build_trainer(network)
    for argument in ("loss", "loss_weights", "metrics", "weighted_metrics"):
        with pytest.raises(ValueError, match=f"`{argument}`"):
            trainer.compile("adam", **{argument: ["mse"]})


def some(targets):
    return {task: targets[task] for task in ("height", "weight")}


@pytest.mark.parametrize(
    "change, masks, message",
    [
        (some, None, "targets lack 'kind'"),
        (lambda targets: None, None, "targets must be a dict.*NoneType"),
        (dict, {"size": np.ones(24)}, "mask for 'size'.*'height'"),
        (dict, [np.ones(24)], "masks must be a dict.*Received"),
        (dict, {"height": np.ones((24, 2))}, r"mask of task 'height'.*\(24, 2\)"),
    ],
)
def test_what_the_trainer_refuses_of_the_data(change, masks, message):
    trainer = build_trainer()
    trainer.compile("adam", run_eagerly=True)
    x, targets = make_data()
    with pytest.raises(ValueError, match=message):
        trainer.test_on_batch(x, change(targets), sample_weight=masks)


def numpy_log_variances(trainer):
    return {
        task: float(ops.convert_to_numpy(s))
        for task, s in trainer.weighting.log_variances.items()
    }


def arrays_of(model):
    return [ops.convert_to_numpy(v).copy() for v in model.variables]


# Masks


def test_a_plain_loss_is_averaged_over_its_valid_elements():
    """Noise of size 1, a tenth of the targets given: sigma is 1, not 0.3."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 6)).astype("float32")
    y = (x.sum(1, keepdims=True) + rng.normal(size=(4000, 1))).astype("float32")
    mask = rng.random(4000) < 0.1
    y[~mask] = np.nan
    inputs = keras.Input((6,))
    network = keras.Model(inputs, {"height": keras.layers.Dense(1)(inputs)})
    trainer = build_trainer(network, tasks=("height",))
    trainer.compile(keras.optimizers.Adam(0.02))
    trainer.fit(
        x,
        {"height": y},
        sample_weight={"height": mask},
        batch_size=400,
        epochs=30,
        verbose=0,
    )
    assert trainer.weighting.sigmas()["height"] == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bool", "int32"])
@pytest.mark.parametrize("shape", [(24,), (24, 1)])
def test_what_lies_under_a_mask_reaches_nothing(dtype, shape):
    x, targets = make_data()
    mask = (np.arange(24) % 3 > 0).astype(dtype)
    poisoned = {
        "height": np.where(mask[:, None] > 0, targets["height"], np.nan),
        "weight": targets["weight"],
        "kind": np.where(mask > 0, targets["kind"], -7),
    }
    kept = mask > 0
    logs, arrays = [], []
    for x_used, targets_used, masks in (
        (x, poisoned, {"height": mask.reshape(shape), "kind": mask.reshape(shape)}),
        (x, targets, {"height": mask, "kind": mask}),
    ):
        trainer = build_trainer(
            task_metrics={"height": ["mae", "mse"], "kind": "accuracy"}
        )
        trainer.compile("adam")
        logs.append(
            trainer.train_on_batch(x_used, targets_used, masks, return_dict=True)
        )
        arrays.append(arrays_of(trainer.network))
    assert logs[0] == logs[1] and np.isfinite([*logs[0].values()]).all()
    for one, other in zip(*arrays):
        np.testing.assert_array_equal(one, other)
    # The metrics are over the valid ones, too.
    output = ops.convert_to_numpy(trainer.network(x)["height"])
    evaluated = trainer.evaluate(
        x,
        poisoned,
        sample_weight={"height": mask, "kind": mask},
        verbose=0,
        return_dict=True,
    )
    errors = np.abs(output - targets["height"])[kept]
    assert evaluated["height/mae"] == pytest.approx(errors.mean(), rel=1e-5)
    assert evaluated["height/mse"] == pytest.approx(np.square(errors).mean(), rel=1e-5)


@pytest.mark.parametrize("masks", [{"kind"}, {"kind", "height"}])
def test_masks_for_some_tasks_only(masks):
    x, targets = make_data()
    given = {task: (np.arange(24) % 2).astype("float32") for task in masks}
    full = {task: given.get(task, np.ones(24, "float32")) for task in TASKS}
    results = []
    for sample_weight in (given, full, {**dict.fromkeys(TASKS), **given}):
        trainer = build_trainer()
        trainer.compile("adam")
        history = trainer.fit(
            x,
            targets,
            sample_weight=sample_weight,
            validation_data=(x, targets, sample_weight),
            batch_size=8,
            epochs=2,
            shuffle=False,
            verbose=0,
        ).history
        score = trainer.evaluate(
            x, targets, sample_weight=sample_weight, verbose=0, return_dict=True
        )
        results.append((history, score))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("weighting", [None, FixedWeighting(dict.fromkeys(TASKS, 0.5))])
def test_evaluation_does_not_depend_on_the_batches(weighting):
    x, targets = make_data()
    masks = {
        "height": (np.arange(24) % 3 == 0).astype("float32"),
        "kind": (np.arange(24) > 9).astype("float32"),  # none in the first batch
        "weight": np.linspace(0, 1, 24),
    }
    trainer = build_trainer(
        build_mlp(regularizer=keras.regularizers.L2(0.1)),
        weighting=weighting,
        task_metrics={
            "height": [keras.metrics.RootMeanSquaredError(name="rms")],
            "kind": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        },
    )
    trainer.compile("adam")
    trainer.fit(x, targets, verbose=0)
    whole, *cut = (
        trainer.evaluate(
            x,
            targets,
            sample_weight=masks,
            batch_size=size,
            verbose=0,
            return_dict=True,
        )
        for size in (24, 5, 7, 1)
    )
    for logs in cut:
        assert logs == pytest.approx(whole, rel=1e-5)
    losses = {task: ops.array(whole[f"{task}/loss"]) for task in TASKS}
    kernel = ops.convert_to_numpy(trainer.network.get_layer("trunk").kernel)
    total = float(trainer.weighting(losses)) + 0.1 * np.square(kernel).sum()
    assert whole["loss"] == pytest.approx(total, rel=1e-5)
    output = ops.convert_to_numpy(trainer.network(x)["height"])
    error = output[::3] - targets["height"][::3]
    assert whole["height/rms"] == pytest.approx(
        np.sqrt(np.mean(np.square(error))), rel=1e-5
    )


def test_masks_that_layers_carry():
    tokens = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(7, 4, mask_zero=True)(tokens)
    x = keras.layers.GRU(4, return_sequences=True)(x)
    network = keras.Model(tokens, {"tag": keras.layers.Dense(3)(x)})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = MultiTaskTrainer(
        network, {"tag": loss}, UncertaintyWeighting({"tag": "softmax"}), {"tag": "acc"}
    )
    trainer.compile("sgd")
    x = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 1]])
    tags = np.array([[0, 1, 2, 2, 2], [2, 1, 0, 1, 2]])
    logs = trainer.evaluate(x, {"tag": tags}, verbose=0, return_dict=True)
    logits = ops.convert_to_numpy(network(x)["tag"])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    values = -np.take_along_axis(log_p, tags[..., None], -1)[..., 0]
    assert logs["tag/loss"] == pytest.approx(values[x > 0].mean(), rel=1e-5)
    hits = (logits.argmax(-1) == tags)[x > 0]
    assert logs["tag/acc"] == pytest.approx(hits.mean(), rel=1e-6)
    first = np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])  # both masks count
    logs = trainer.test_on_batch(x, {"tag": tags}, {"tag": first}, return_dict=True)
    assert logs["tag/loss"] == pytest.approx(values[0, 0], rel=1e-5)


def test_masks_by_position_and_as_lists():
    x, targets = make_data()
    trainer = build_trainer()
    trainer.compile("sgd")
    mask = np.arange(24) % 2
    expected = trainer.evaluate(x, targets, sample_weight={"height": mask}, verbose=0)
    for given in (mask, mask.tolist(), tuple(mask)):
        found = trainer.evaluate(x, targets, 24, 0, {"height": given})
        assert found == pytest.approx(expected, rel=1e-6)
        assert trainer.test_on_batch(x, targets, {"height": given}) == (
            pytest.approx(expected, rel=1e-6)
        )
    trainer.fit(x, targets, 24, 1, 0, None, 0.0, (x, targets, {"height": mask}))


def test_one_weight_per_sample_for_all_tasks():
    x, targets = make_data()
    weights = np.arange(24.0)
    results = []
    for masks in (weights, dict.fromkeys(TASKS, weights)):
        trainer = build_trainer()
        trainer.compile("sgd")
        results.append(
            trainer.evaluate(
                x, targets, sample_weight=masks, verbose=0, return_dict=True
            )
        )
    assert results[0] == results[1]


def test_a_mask_for_nobody_is_refused():
    trainer = build_trainer()
    trainer.compile("sgd")
    x, targets = make_data()
    with pytest.raises(ValueError, match="mask for 'size', which has no loss"):
        trainer.fit(x, targets, sample_weight={"size": np.ones(24)}, verbose=0)


# Losses, metrics, networks


def test_names_and_functions_are_losses_and_metrics():
    x, targets = make_data()
    results = []
    for losses, metrics in (
        (
            {
                "height": "mse",
                "weight": keras.losses.mean_absolute_error,
                "kind": lambda y_true, y_pred: ops.cast(
                    keras.losses.sparse_categorical_crossentropy(
                        y_true, y_pred, from_logits=True
                    ),
                    "float32",
                ),
            },
            {"height": "mae", "weight": None, "kind": "sparse_categorical_accuracy"},
        ),
        (
            {**task_losses(), "height": keras.losses.MeanSquaredError},
            {
                "height": keras.metrics.MeanAbsoluteError(name="mae"),
                "kind": ["sparse_categorical_accuracy"],
            },
        ),
    ):
        trainer = build_trainer(losses=losses, task_metrics=metrics)
        trainer.compile("sgd", weighted_metrics=[], metrics=None, loss={})
        history = trainer.fit(x, targets, shuffle=False, verbose=0).history
        results.append(history)
    assert results[0].keys() == results[1].keys()
    assert {"height/mae", "kind/sparse_categorical_accuracy"} <= results[0].keys()
    for name, values in results[0].items():
        assert results[1][name] == pytest.approx(values, rel=1e-6), name


@pytest.mark.parametrize(
    "loss, output, target, expected",
    [
        (keras.losses.BinaryCrossentropy(from_logits=True), [0.3], [1], 1.0),
        (keras.losses.BinaryCrossentropy(), [0.3], [1], 0.0),
        ("binary_crossentropy", [0.7], [1], 1.0),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), [1, 9], 1, 1.0),
        ("categorical_crossentropy", [0.1, 0.9], [1, 0], 0.0),
    ],
)
def test_accuracy_means_that_of_the_loss(loss, output, target, expected):
    inputs = keras.Input((len(output),))
    network = keras.Model(inputs, {"a": keras.layers.Identity()(inputs)})
    trainer = MultiTaskTrainer(
        network, {"a": loss}, FixedWeighting({"a": 1.0}), {"a": "accuracy"}
    )
    trainer.compile("sgd")
    logs = trainer.test_on_batch(
        np.array([output], "float32"), {"a": np.array([target])}, return_dict=True
    )
    assert logs["a/accuracy"] == expected


def test_accuracy_of_a_regression_is_refused():
    with pytest.raises(ValueError, match="`task_metrics` of 'height'.*name it"):
        build_trainer(task_metrics={"height": "accuracy"})


def test_the_loss_none_trains_nothing():
    trainer = build_trainer(
        losses={**task_losses(), "kind": None},
        weighting=UncertaintyWeighting({"height": "gaussian", "weight": "laplace"}),
    )
    trainer.compile("sgd")
    x, targets = make_data()
    head = trainer.network.get_layer("kind")
    before = [w.copy() for w in head.get_weights()]
    logs = trainer.train_on_batch(x, some(targets), return_dict=True)
    assert "kind/loss" not in logs
    for old, new in zip(before, head.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_lists_and_single_arrays_go_by_the_order_of_the_outputs():
    x, targets = make_data()
    masks = {**dict.fromkeys(TASKS, np.ones(24)), "weight": np.arange(24) % 2}
    results = []
    for in_lists in (False, True):
        trainer = build_trainer(build_mlp("list"))
        trainer.compile("sgd")
        given = [targets, masks]
        if in_lists:
            given = [[values[task] for task in TASKS] for values in given]
        history = trainer.fit(
            x, given[0], sample_weight=given[1], shuffle=False, verbose=0
        ).history
        results.append((history, trainer.test_on_batch(x, *given)))
    assert results[0] == results[1]
    single = build_trainer(build_mlp("single"), tasks=("height",))
    single.compile("sgd")
    logs = [
        single.evaluate(x, y, sample_weight=w, verbose=0)
        for y, w in (
            (targets["height"], masks["weight"]),
            ({"height": targets["height"]}, {"height": masks["weight"]}),
        )
    ]
    assert logs[0] == logs[1]


def test_lists_for_outputs_without_an_order_are_refused():
    trainer = build_trainer()  # a dict of outputs
    trainer.compile("sgd")
    x, targets = make_data()
    with pytest.raises(ValueError, match="targets must be a dict by task"):
        trainer.fit(x, [*targets.values()], verbose=0)


class Called(keras.Model):
    """A network that is no functional model."""

    def __init__(self):
        super().__init__()
        self.heads = {task: keras.layers.Dense(1) for task in ("height", "weight")}

    def call(self, x):
        return {task: head(x) for task, head in self.heads.items()}


@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        lambda: keras.Sequential([keras.layers.Dense(1, name="height")]),
        lambda: keras.Sequential([keras.layers.Dense(1)]),  # whatever its name
        Called,
    ],
)
def test_networks_of_every_kind(build, is_built):
    x, targets = make_data()
    network = build()
    if is_built:
        network(x)
    tasks = ("height", "weight") if isinstance(network, Called) else ("height",)
    trainer = build_trainer(network, tasks=tasks)
    trainer.compile("adam")
    targets = {task: targets[task] for task in tasks}
    history = trainer.fit(x, targets, epochs=3, verbose=0).history
    assert history["height/loss"][-1] < history["height/loss"][0]
    assert trainer.predict(x, verbose=0) is not None


def test_outputs_of_one_name_are_refused():
    first, second = keras.Input((4,)), keras.Input((4,))
    shared = keras.layers.Dense(1, name="height")
    network = keras.Model([first, second], [shared(first), shared(second)])
    with pytest.raises(ValueError, match="several outputs named 'height'"):
        build_trainer(network, tasks=("height",))


def test_nested_outputs_are_refused():
    inputs = keras.Input((4,))
    dense = keras.layers.Dense
    network = keras.Model(inputs, {"height": {"a": dense(1)(inputs)}})
    with pytest.raises(ValueError, match="output 'height'.*one tensor.*dict"):
        build_trainer(network, tasks=("height",))


def test_a_weighting_of_more_tasks_is_refused():
    with pytest.raises(ValueError, match="has the task 'kind', but `losses` has none"):
        build_trainer(
            losses=task_losses(("height", "weight")),
            weighting=UncertaintyWeighting(LIKELIHOODS),
        )


def test_metrics_that_would_mix_or_hide_are_refused():
    shared = keras.metrics.MeanAbsoluteError(name="mae")
    with pytest.raises(ValueError, match="'height' and 'weight' share.*'mae'"):
        build_trainer(task_metrics={"height": shared, "weight": [shared]})
    for names in (("mae", "mae"), ("loss",), ("sigma",)):
        metrics = [keras.metrics.MeanAbsoluteError(name=name) for name in names]
        with pytest.raises(ValueError, match="'height' logs .* twice"):
            build_trainer(task_metrics={"height": metrics})
    with pytest.raises(ValueError, match="`task_metrics` of 'height'.*'no such'"):
        build_trainer(task_metrics={"height": "no such"})


def test_negative_losses_are_refused_by_name():
    def negative(y_true, y_pred):
        return -ops.abs(y_true - y_pred)

    x, targets = make_data()
    for learned in (True, False):
        trainer = build_trainer(
            losses={**task_losses(), "weight": negative},
            weighting=None if learned else FixedWeighting(dict.fromkeys(TASKS, 1.0)),
        )
        trainer.compile("sgd")
        for run in (
            lambda: trainer.fit(x, targets, verbose=0),
            lambda: trainer.evaluate(x, targets, verbose=0),
            lambda: trainer.train_on_batch(x, targets),
        ):
            if learned:
                with pytest.raises(ValueError, match="task 'weight' is negative"):
                    run()
            else:
                run()


def test_targets_in_their_own_units_train_under_sgd():
    x, targets = make_data()
    targets = {**targets, "height": targets["height"] * 1000}
    trainer = build_trainer()
    trainer.compile(keras.optimizers.SGD(0.01))
    history = trainer.fit(x, targets, epochs=40, batch_size=8, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    s = numpy_log_variances(trainer)["height"]
    assert s == pytest.approx(math.log(history["height/loss"][-1]), abs=1)


def test_a_loss_of_zero_ends_in_no_nan():
    x, targets = make_data()
    trainer = build_trainer(losses={**task_losses(), "weight": flat_loss})
    trainer.compile(keras.optimizers.SGD(0.5))
    history = trainer.fit(x, targets, epochs=120, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert numpy_log_variances(trainer)["weight"] == -30  # the bound
    assert np.isfinite(trainer.network.get_layer("trunk").get_weights()[0]).all()


def test_freezing_the_weighting():
    x, targets = make_data()
    trainer = build_trainer(weighting=UncertaintyWeighting(LIKELIHOODS, 0.3))
    trainer.weighting.trainable = False
    trainer.compile("adam")
    history = trainer.fit(x, targets, epochs=2, verbose=0).history
    assert numpy_log_variances(trainer) == dict.fromkeys(TASKS, pytest.approx(0.3))
    assert history["weight/sigma"] == pytest.approx([math.exp(0.3)] * 2)


def test_double_precision():
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        x, targets = make_data()
        trainer = build_trainer(build_mlp())
        trainer.compile("adam")
        masks = {"weight": np.ones(24)}
        history = trainer.fit(
            x.astype("float64"), targets, sample_weight=masks, verbose=0, epochs=2
        ).history
        assert np.isfinite(history["loss"]).all()
        assert {s.dtype for s in trainer.weighting.log_variances.values()} == {
            "float32"
        }
    finally:
        keras.config.set_floatx(before)


@only_on("torch", "Keras writes a SavedModel on other backends")
def test_a_saved_model_cannot_be_exported_under_pytorch(tmp_path):
    trainer = build_trainer()
    with pytest.raises(ValueError, match="SavedModel.*PyTorch.*format='onnx'"):
        trainer.export(tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@tensorflow_only
def test_export_of_a_trainer_is_that_of_its_network(tmp_path):
    import tensorflow as tf

    x, targets = make_data()
    trainer = build_trainer()
    trainer.compile("adam")
    trainer.fit(x, targets, verbose=0)
    trainer.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    served = loaded.serve(x)
    for task, output in trainer.predict(x, verbose=0).items():
        np.testing.assert_allclose(served[task], output, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import mtl_keras; import keras",
        "import keras; import mtl_keras",
        "from mtl_keras import UncertaintyWeighting; import keras",
    ],
)
def test_a_trainer_is_loaded_in_a_fresh_process(imports, tmp_path):
    trainer = build_trainer()
    trainer.compile("adam")
    trainer.train_on_batch(*make_data())
    trainer.save(tmp_path / "trainer.keras")
    script = (
        f"{imports}; print(keras.models.load_model({str(tmp_path / 'trainer.keras')!r})"
        ".weighting.sigmas())"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.strip() == str(trainer.weighting.sigmas())


def test_metrics_leave_out_what_the_loss_ignores():
    inputs = keras.Input((3,))
    network = keras.Model(inputs, {"a": keras.layers.Identity()(inputs)})
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=255
    )
    trainer = MultiTaskTrainer(
        network, {"a": loss}, FixedWeighting({"a": 1.0}), {"a": "accuracy"}
    )
    trainer.compile("sgd")
    x = np.eye(3, dtype="float32")[[0, 1, 2, 0]]
    labels = np.array([0, 1, 255, 255])
    for masks, expected in (({}, 1.0), ({"a": [0, 1, 1, 1]}, 1.0)):
        masks = {task: np.array(mask) for task, mask in masks.items()}
        logs = trainer.test_on_batch(x, {"a": labels}, masks, return_dict=True)
        assert logs["a/accuracy"] == expected
    logs = trainer.test_on_batch(x, {"a": np.array([0, 0, 255, 2])}, return_dict=True)
    assert logs["a/accuracy"] == pytest.approx(1 / 3)


def test_metrics_that_make_their_variables_late():
    x, targets = make_data()
    trainer = build_trainer(task_metrics={"height": [keras.metrics.R2Score()]})
    trainer.compile("adam")
    trainer.fit(x, targets, verbose=0)
    logs = trainer.evaluate(x, targets, batch_size=7, verbose=0, return_dict=True)
    error = ops.convert_to_numpy(trainer.network(x)["height"]) - targets["height"]
    expected = 1 - np.square(error).mean() / targets["height"].var()
    assert logs["height/r2_score"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("prepared", [False, True])
def test_metrics_that_make_their_variables_late_and_unknown_outputs(prepared):
    x, targets = make_data()
    metric = keras.metrics.R2Score()
    if prepared:
        metric.update_state(np.zeros((2, 1)), np.zeros((2, 1)))
        metric.reset_state()
    network = Called()
    network(x)
    trainer = build_trainer(
        network, tasks=("height", "weight"), task_metrics={"height": metric}
    )
    trainer.compile("adam")
    for run in (trainer.fit, trainer.evaluate):
        if keras.backend.backend() == "jax" and not prepared:
            with pytest.raises(ValueError, match="'r2_score' of task 'height' creates"):
                run(x, some(targets), verbose=0)
        else:
            run(x, some(targets), verbose=0)


def test_metrics_of_half_precision_are_counted_in_single():
    inputs = keras.Input((1,))
    network = keras.Model(inputs, {"a": keras.layers.Identity(dtype="float16")(inputs)})
    trainer = MultiTaskTrainer(
        network,
        {"a": "mse"},
        FixedWeighting({"a": 1.0}),
        {"a": ["mse", lambda t, p: ops.mean(ops.square(t - p), axis=-1)]},
    )
    trainer.compile("sgd")
    x = np.full((8, 1), 400, "float32")
    logs = trainer.test_on_batch(x, {"a": 0 * x}, return_dict=True)
    assert logs["a/mse"] == logs["a/loss"] == 400**2


def test_one_mask_counts_in_metrics_of_outputs_without_a_loss():
    x, targets = make_data()
    trainer = build_trainer(
        tasks=("weight",), task_metrics={"height": [keras.metrics.MeanSquaredError()]}
    )
    trainer.compile("sgd", run_eagerly=True)
    mask = np.arange(24) % 2
    targets["height"][mask == 0] = 1e6
    logs = trainer.test_on_batch(x, targets, mask, return_dict=True)
    assert logs["height/mean_squared_error"] < 100


@pytest.mark.parametrize("value", [-1.0, np.nan])
def test_masks_that_are_no_weights_are_refused(value):
    x, targets = make_data()
    trainer = build_trainer()
    trainer.compile("sgd")
    one = np.full(24, value)
    for masks, whose in (({"height": one}, "mask of task 'height'"), (one, "mask")):
        for run in (trainer.fit, trainer.evaluate, trainer.train_on_batch):
            with pytest.raises(ValueError, match=f"{whose} has .* negative or NaN"):
                run(x, targets, sample_weight=masks)


def test_freezing_without_compiling_is_refused():
    x, targets = make_data()
    trainer = build_trainer()
    trainer.compile("sgd")
    trainer.fit(x, targets, verbose=0)
    trainer.weighting.trainable = False
    with pytest.raises(ValueError, match="compile it again after freezing"):
        trainer.fit(x, targets, verbose=0)
    trainer.compile("sgd")
    trainer.fit(x, targets, verbose=0)


def test_a_loss_given_as_a_class_is_saved(tmp_path):
    losses = {**task_losses(), "height": keras.losses.MeanSquaredError}
    trainer = build_trainer(losses=losses)
    trainer.compile("sgd")
    trainer.save(tmp_path / "trainer.keras")
    assert keras.saving.load_model(tmp_path / "trainer.keras").compiled


def test_compile_needs_an_optimizer():
    with pytest.raises(ValueError, match="`compile` needs an `optimizer`"):
        build_trainer().compile(None)
    with pytest.raises(ValueError, match="`compile` takes no `loss`"):
        build_trainer().compile("adam", "mse")


def test_a_nan_that_is_not_masked_is_named():
    x, targets = make_data()
    targets["weight"][3] = np.nan
    trainer = build_trainer()
    trainer.compile("sgd")
    with pytest.warns(
        UserWarning, match="loss of task 'weight' was NaN.*mask"
    ) as found:
        trainer.fit(x, targets, epochs=2, batch_size=8, verbose=0)
    own = [w for w in found if "'weight'" in str(w.message)]
    assert len(own) == 1


def test_a_task_without_a_valid_element_has_no_score():
    x, targets = make_data()
    trainer = build_trainer(task_metrics={"height": "mae"})
    trainer.compile("sgd")
    masks = {"height": np.zeros(24)}
    logs = trainer.evaluate(
        x, targets, sample_weight=masks, verbose=0, return_dict=True
    )
    assert math.isnan(logs["height/loss"]) and math.isnan(logs["height/mae"])
    others = logs["weight/loss"] + logs["kind/loss"]  # at sigmas of 1
    assert logs["loss"] == pytest.approx(others, rel=1e-5)


def test_a_metric_without_a_loss_has_no_score_either():
    x, targets = make_data()
    trainer = build_trainer(tasks=("weight",), task_metrics={"height": "mae"})
    trainer.compile("sgd")
    some_masks = ({"height": np.zeros(24)}, {"height": np.ones(24)})
    scores = [
        trainer.evaluate(x, targets, sample_weight=m, verbose=0, return_dict=True)
        for m in some_masks
    ]
    assert math.isnan(scores[0]["height/mae"])
    assert scores[1]["height/mae"] > 0 and scores[0]["weight/loss"] > 0


def test_names_that_begin_with_another_tasks():
    inputs = keras.Input((2,))
    network = keras.Model(
        inputs, {task: keras.layers.Dense(1)(inputs) for task in ("a", "a/b")}
    )
    trainer = MultiTaskTrainer(
        network,
        {"a": "mse", "a/b": "mse"},
        FixedWeighting({"a": 1.0, "a/b": 1.0}),
        {"a/b": "mae"},
    )
    trainer.compile("sgd")
    x, y = np.ones((4, 2), "float32"), np.full((4, 1), 9.0)
    logs = trainer.test_on_batch(
        x, {"a": y, "a/b": y}, {"a": np.zeros(4)}, return_dict=True
    )
    assert math.isnan(logs["a/loss"])
    assert logs["a/b/loss"] > 0 and logs["a/b/mae"] > 0


def test_metrics_may_divide_by_targets_under_a_mask():
    def relative(y_true, y_pred):
        return ops.mean(ops.abs(y_pred - y_true) / ops.abs(y_true), axis=-1)

    x, targets = make_data()
    mask = np.arange(24) % 2
    targets["height"] = np.where(mask[:, None] > 0, targets["height"], np.nan)
    trainer = build_trainer(task_metrics={"height": relative})
    trainer.compile("sgd")
    logs = trainer.test_on_batch(x, targets, {"height": mask}, return_dict=True)
    output = ops.convert_to_numpy(trainer.network(x)["height"])
    errors = np.abs(output - targets["height"]) / np.abs(targets["height"])
    assert logs["height/relative"] == pytest.approx(np.nanmean(errors), rel=1e-5)


def test_options_of_losses_are_saved(tmp_path):
    x, targets = make_data()
    losses = {**task_losses(), "height": keras.losses.Huber(delta=0.3)}
    trainer = build_trainer(losses=losses)
    trainer.compile("sgd")
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    logs = [
        model.evaluate(x, targets, verbose=0, return_dict=True)
        for model in (trainer, loaded)
    ]
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)


def test_names_of_what_evaluate_returns():
    x, targets = make_data()
    trainer = build_trainer(task_metrics={"height": "mae"})
    trainer.compile("sgd")
    values = trainer.evaluate(x, targets, verbose=0)
    named = trainer.evaluate(x, targets, verbose=0, return_dict=True)
    assert dict(zip(trainer.metrics_names, values, strict=True)) == named


def test_weights_saved_before_compiling_are_loaded(tmp_path):
    build_trainer().save_weights(tmp_path / "trainer.weights.h5")
    trainer = build_trainer()
    trainer.compile("adam")
    trainer.train_on_batch(*make_data())
    with pytest.warns(UserWarning, match="no state of the optimizer"):
        trainer.load_weights(tmp_path / "trainer.weights.h5")


def test_what_fails_is_named():
    x, targets = make_data()
    trainer = build_trainer(losses={**task_losses(), "kind": "categorical_hinge"})
    trainer.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match="targets of task 'kind' must have the shape"):
        trainer.test_on_batch(x, targets)

    def fails(y_true, y_pred):
        raise RuntimeError("no such thing\nand pages more")

    def says_nothing(y_true, y_pred):
        raise RuntimeError

    for loss, message in ((fails, "no such thing$"), (says_nothing, "RuntimeError$")):
        trainer = build_trainer(losses={**task_losses(), "kind": loss})
        trainer.compile("sgd", run_eagerly=True)
        with pytest.raises(ValueError, match=f"loss of task 'kind' fails: {message}"):
            trainer.test_on_batch(x, targets)
    trainer = build_trainer(task_metrics={"height": fails})
    trainer.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match="'fails' of task 'height' fails: no such"):
        trainer.test_on_batch(x, targets)


@pytest.mark.slow
def test_noise_levels_of_the_data_are_found():
    """Two regressions with noise of known size, as in the authors' example."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 6)).astype("float32")
    noise = {"height": 3.0, "weight": 0.5}
    targets = {
        "height": x[:, :1] + noise["height"] * rng.normal(size=(2000, 1)),
        "weight": x[:, 1:2] + rng.laplace(0, noise["weight"], size=(2000, 1)),
    }
    inputs = keras.Input((6,))
    keras.utils.set_random_seed(0)
    network = keras.Model(
        inputs, {t: keras.layers.Dense(1, name=t)(inputs) for t in noise}
    )
    trainer = build_trainer(network, tasks=tuple(noise))
    trainer.compile(keras.optimizers.Adam(0.01))
    trainer.fit(x, targets, batch_size=100, epochs=30, verbose=0)
    sigmas = trainer.weighting.sigmas()
    for task, expected in noise.items():
        assert sigmas[task] == pytest.approx(expected, rel=0.1), task


@pytest.mark.slow
def test_a_tiny_set_can_be_overfit():
    x, targets = make_data(8)
    trainer = build_trainer()
    trainer.compile(keras.optimizers.Adam(0.02))
    logs = trainer.fit(x, targets, epochs=120, batch_size=8, verbose=0).history
    for task in TASKS:
        assert logs[f"{task}/loss"][-1] < 0.05 * logs[f"{task}/loss"][0], task
    assert logs["loss"][-1] < 0  # legal: log variances have no floor


BACKEND_SCRIPT = """
import sys
import keras, numpy as np
from mtl_keras import MultiTaskTrainer, UncertaintyWeighting, build_network
path, policy = sys.argv[1:]
keras.config.set_dtype_policy(policy)
rng = np.random.default_rng(0)
network = build_network(backbone="small", image_size=(32, 64), num_classes=5)
# At the kink of a ReLU it is rounding that decides which way the gradient goes.
network = keras.models.clone_model(
    network,
    clone_function=lambda layer: keras.layers.Activation("softplus", name=layer.name)
    if isinstance(layer, keras.layers.ReLU)
    else layer.__class__.from_config(
        layer.get_config() | {"activation": "softplus"}
        if getattr(layer, "activation", None) is keras.activations.relu
        else layer.get_config()
    ),
)
network.set_weights(
    [rng.normal(0, 0.05, w.shape) if w.ndim > 1 else w for w in network.get_weights()]
)
losses = {
    "semantic": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "instance": keras.losses.MeanAbsoluteError(),
    "depth": keras.losses.MeanAbsoluteError(),
}
trainer = MultiTaskTrainer(
    network,
    losses,
    UncertaintyWeighting(
        {"semantic": "softmax", "instance": "laplace", "depth": "laplace"}
    ),
    sigma_learning_rate_factor=1.0,
)
trainer.compile(keras.optimizers.SGD(0.1))
x = rng.integers(0, 256, (4, 32, 64, 3)).astype("uint8")
targets = {
    "semantic": rng.integers(0, 5, (4, 32, 64)).astype("int32"),
    "instance": rng.normal(size=(4, 32, 64, 2)).astype("float32"),
    "depth": rng.uniform(0, 9, size=(4, 32, 64, 1)).astype("float32"),
}
masks = {
    task: (rng.random((4, 32, 64)) < 0.7).astype("float32") for task in targets
}
before = {v.path: v.numpy() for v in trainer.variables}
history = trainer.fit(
    x, targets, sample_weight=masks, batch_size=2, epochs=2, shuffle=False, verbose=0
).history
moved = {v.path: v.numpy() - before.get(v.path, 0) for v in trainer.variables}
logs = {f"log {name}": values for name, values in history.items()}
np.savez(path, backend=keras.backend.backend(), **logs, **moved)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy, of_losses, of_weights",
    [("float32", 1e-5, 2e-5), ("mixed_bfloat16", 2e-2, 0.35)],
)
def test_tensorflow_and_jax_train_alike(policy, of_losses, of_weights, tmp_path):
    """From the same weights, on the same arrays, to the same losses and weights.

    The second backend may live in another environment, named in the variable
    `OTHER_BACKEND_PYTHON`, such as `jax:/path/to/python`.
    """
    backend, python = keras.backend.backend(), sys.executable
    other = {"tensorflow": "jax", "jax": "tensorflow"}.get(backend)
    elsewhere = os.environ.get("OTHER_BACKEND_PYTHON", "")
    other_python = elsewhere.partition(":")[2] or python
    results = []
    for name, executable in ((backend, python), (other, other_python)):
        path = tmp_path / f"{name}.npz"
        completed = subprocess.run(
            [executable, "-c", BACKEND_SCRIPT, path, policy],
            env={**os.environ, "KERAS_BACKEND": name},
            capture_output=True,
            text=True,
        )
        assert completed.returncode == 0, completed.stderr
        results.append(dict(np.load(path)))
        assert results[-1].pop("backend") == name
    found, expected = results
    assert found.keys() == expected.keys() and len(found) > 100
    for name, value in expected.items():
        tolerance = of_losses if name.startswith("log ") else of_weights
        difference, size = np.abs(found[name] - value), np.abs(value)
        if policy == "float32":
            # How far each weight has moved, compared with the farthest of its array;
            # and a few units in the last place of a weight of 1.
            assert difference.max() <= tolerance * size.max() + 5e-7, name
        elif not name.endswith("bias"):
            # JAX on CPUs sums the gradients of biases over the pixels in bfloat16.
            norm = np.linalg.norm
            assert norm(difference) <= tolerance * norm(size) + 5e-7, name


@tensorflow_only
def test_a_step_is_traced_once():
    """Tracing takes most of the first seconds of a run."""
    traced = []

    class Loss(keras.losses.MeanSquaredError):
        def call(self, *args, **kwargs):
            traced.append(self.name)
            return super().call(*args, **kwargs)

    trainer = build_trainer(tasks=("height",), losses={"height": Loss()})
    trainer.compile("adam")
    trainer.fit(np.ones((8, 6)), {"height": np.ones((8, 1))}, batch_size=4, verbose=0)
    assert len(traced) == 1
