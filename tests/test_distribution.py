"""Several devices give what one gives."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from backends import only_on

from mtl_keras.distribution import mean_over_replicas, num_replicas, sum_over_replicas

# The same trainings on one device and on two, in a process of its own, since the
# devices of a process are fixed before its first operation.
SCRIPT = """
import contextlib
import json
import sys

import keras
import numpy as np
from keras import ops

from mtl_keras import MultiTaskTrainer, UncertaintyWeighting

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, devices)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def two_devices():
    if keras.backend.backend() == "tensorflow":
        return strategy.scope()
    distribution = keras.distribution.DataParallel()
    assert distribution.device_mesh.shape == (2,)
    return distribution.scope()


def train(options):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(options.get("policy", "float32"))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(options["size"], 4)).astype("float32")
    targets = {
        "height": x[:, :1] * 3 + 1,
        "weight": np.where(x[:, 1:2] > 0, x[:, 2:3], np.nan).astype("float32"),
        "kind": rng.integers(0, 3, len(x)),
    }
    half = np.arange(len(x)) % 8 < 4  # the first replica's part of every batch
    masks = {
        "height": half.astype("float32"),  # nothing for the second replica
        "weight": (x[:, 1] > 0).astype("float32"),  # uneven
        "kind": np.ones(len(x), "bool"),
    }
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(
        8, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.01)
    )(inputs)
    network = keras.Model(
        inputs,
        {
            task: keras.layers.Dense(units, dtype="float32")(hidden)
            for task, units in {"height": 1, "weight": 1, "kind": 3}.items()
        },
    )
    trainer = MultiTaskTrainer(
        network,
        {
            "height": "mse",
            "weight": keras.losses.MeanAbsoluteError(),
            "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        },
        UncertaintyWeighting(
            {"height": "gaussian", "weight": "laplace", "kind": "softmax"},
            options.get("start"),
        ),
        {"height": "mae", "kind": "accuracy"},
    )
    optimizer = keras.optimizers.get(options["optimizer"])
    trainer.compile(optimizer, jit_compile=keras.backend.backend() == "jax")
    # JAX wants batches that the devices can share evenly.
    some = 12 if keras.backend.backend() == "jax" else 13
    few = [{t: y[:some] for t, y in values.items()} for values in (targets, masks)]
    history = trainer.fit(
        x,
        targets,
        sample_weight=masks,
        validation_data=(x[:some], *few),
        batch_size=8,
        epochs=options["epochs"],
        shuffle=False,
        verbose=0,
    ).history
    score = trainer.evaluate(
        x, targets, sample_weight=masks, batch_size=8, verbose=0, return_dict=True
    )
    weights = [ops.convert_to_numpy(v).ravel().tolist() for v in network.variables]
    return {
        "history": history,
        "score": score,
        "sigmas": trainer.weighting.sigmas(),
        "weights": weights,
    }


results = []
for options in json.loads(sys.argv[1]):
    one = train(options)
    with two_devices():
        results.append((one, train(options)))
print(json.dumps(results))
"""

SGD = {"class_name": "SGD", "config": {"learning_rate": 0.01, "momentum": 0.5}}
ADAM = {"class_name": "Adam", "config": {"learning_rate": 0.01}}
AVERAGED = {"class_name": "SGD", "config": {"learning_rate": 0.01, "use_ema": True}}


def train_on_one_and_two(*trainings):
    completed = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(trainings)],
        env={
            **os.environ,
            "KERAS_BACKEND": keras.backend.backend(),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        },
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return json.loads(completed.stdout.splitlines()[-1])


def assert_alike(found, expected, rel=1e-5):
    assert found["history"].keys() == expected["history"].keys()
    for name, values in expected["history"].items():
        assert found["history"][name] == pytest.approx(values, rel=rel, abs=rel), name
    assert found["score"] == pytest.approx(expected["score"], rel=rel, abs=rel)
    assert found["sigmas"] == pytest.approx(expected["sigmas"], rel=rel)
    for one, other in zip(found["weights"], expected["weights"], strict=True):
        np.testing.assert_allclose(one, other, rtol=rel, atol=rel)


@pytest.mark.slow
@only_on("tensorflow", "tf.distribute")
def test_two_replicas_are_one_device():
    trainings = (
        {"optimizer": SGD, "size": 16, "epochs": 25},
        {"optimizer": ADAM, "size": 16, "epochs": 25, "start": 0.5},
        {"optimizer": AVERAGED, "size": 16, "epochs": 25},
        # Last batches of 1, of which the second replica gets none; in the validation of
        # 5, three samples for one and two for the other.
        {"optimizer": SGD, "size": 17, "epochs": 17},
        {"optimizer": SGD, "size": 16, "epochs": 5, "policy": "mixed_float16"},
    )
    results = train_on_one_and_two(*trainings)
    for training, (one, two) in zip(trainings, results, strict=True):
        assert_alike(two, one, rel=1e-2 if "policy" in training else 1e-5)


@only_on("jax", "keras.distribution")
def test_two_shards_are_one_device():
    trainings = (
        {"optimizer": SGD, "size": 16, "epochs": 25},
        {"optimizer": ADAM, "size": 16, "epochs": 25, "start": 0.5},
    )
    for one, two in train_on_one_and_two(*trainings):
        assert_alike(two, one)


@only_on("tensorflow", "tf.distribute")
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {"use_ema": True, "ema_overwrite_frequency": 3},
        {"clipnorm": 1.0},
        {"global_clipnorm": 1.0},
        {"clipvalue": 1.0},
    ],
)
def test_what_keras_cannot_do_on_several_replicas_is_refused(options, monkeypatch):
    from mtl_keras import FixedWeighting, MultiTaskTrainer

    class Strategy:
        num_replicas_in_sync = 2

    inputs = keras.Input((1,))
    network = keras.Model(inputs, {"a": keras.layers.Dense(1)(inputs)})
    trainer = MultiTaskTrainer(network, {"a": "mse"}, FixedWeighting({"a": 1.0}))
    monkeypatch.setattr(
        MultiTaskTrainer, "distribute_strategy", Strategy, raising=False
    )
    with pytest.raises(ValueError, match=f"On several replicas.*`{[*options][-1]}`"):
        trainer.compile(keras.optimizers.SGD(0.1, **options))


def test_without_a_strategy_there_is_one_replica():
    assert num_replicas() == 1
    assert sum_over_replicas(3.0) == 3.0
    mean, count = mean_over_replicas(keras.ops.array(6.0), keras.ops.array(4.0))
    assert float(mean) == 1.5 and float(count) == 4
    mean, _ = mean_over_replicas(keras.ops.array(0.0), keras.ops.array(0.0))
    assert float(mean) == 0.0


@only_on("tensorflow", "tf.distribute")
def test_losses_that_may_divide_by_replicas_are_refused(monkeypatch):
    from mtl_keras import losses

    class Own(keras.losses.MeanSquaredError):
        def __call__(self, y_true, y_pred, sample_weight=None):
            return super().__call__(y_true, y_pred, sample_weight)

    class Sum(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return keras.losses.MeanSquaredError()(y_true, y_pred)

    monkeypatch.setattr(losses, "num_replicas", lambda: 2)
    for loss in (Own(), Sum(), lambda t, p, sample_weight: 1.0):
        with pytest.raises(ValueError, match="one number for the batch"):
            losses.sum_loss(loss, np.zeros((2, 1)), keras.ops.zeros((2, 1)))
