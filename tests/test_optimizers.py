import doctest

import keras
import numpy as np
import pytest
from backends import only_on
from keras import ops

from mtl_keras import optimizers
from mtl_keras.optimizers import FusedAdam

tensorflow_only = only_on("tensorflow", "about its fused kernel")
SHAPES = {"kernel": (3, 4), "bias": (4,)}


def run(optimizer, steps=5, dtype="float32"):
    """Weights and state after a few steps along random gradients."""
    rng = np.random.default_rng(0)
    weights = [
        keras.Variable(rng.normal(size=shape), dtype=dtype, name=name)
        for name, shape in SHAPES.items()
    ]
    for _ in range(steps):
        gradients = [rng.normal(size=s).astype(dtype) for s in SHAPES.values()]
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients], weights)
    variables = [*weights, *optimizer.variables]
    return {variable.path: variable.numpy() for variable in variables}


def assert_alike(expected, found, tolerance=1e-5):
    assert len(expected) == len(found)
    for old, new in zip(expected.values(), found.values()):
        np.testing.assert_allclose(new, old, rtol=tolerance, atol=tolerance)


def test_example_of_the_docstring():
    result = doctest.testmod(optimizers, extraglobs={"keras": keras, "ops": ops})
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta_1": 0.5, "beta_2": 0.8, "epsilon": 0.1},
        {"learning_rate": keras.optimizers.schedules.CosineDecay(0.1, 4)},
        {"weight_decay": 0.1},
        {"clipnorm": 0.5},
        {"use_ema": True, "ema_overwrite_frequency": 2},
        {"gradient_accumulation_steps": 2},
        {"loss_scale_factor": 2.0},
        {"amsgrad": True},
    ],
)
def test_steps_are_those_of_keras(options):
    options = {"learning_rate": 0.1, **options}
    expected = run(keras.optimizers.Adam(**options))
    assert_alike(expected, run(FusedAdam(**options)))
    assert len(expected) >= 2 + 2 * 2 + 1


@tensorflow_only  # JAX has none unless told to
def test_weights_in_double_precision():
    expected, found = (
        run(optimizer(0.1), dtype="float64")
        for optimizer in (keras.optimizers.Adam, FusedAdam)
    )
    assert_alike(expected, found, 1e-9)


def test_config_and_state_are_those_of_keras():
    options = {"learning_rate": 0.1, "beta_1": 0.8, "name": "adam"}
    ours, stock = FusedAdam(**options), keras.optimizers.Adam(**options)
    config = ours.get_config()
    assert config == stock.get_config()
    for optimizer in (ours, stock):
        run(optimizer)
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(ours)
    )
    assert type(restored) is FusedAdam and restored.get_config() == config
    names = [[v.name for v in o.variables] for o in (ours, stock)]
    assert names[0] == names[1]


def build_model(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer, "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model, epochs=3):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    model.fit(x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0)
    return [
        variable.numpy() for variable in model.variables + model.optimizer.variables
    ]


@pytest.mark.parametrize("ours_saves", [True, False])
def test_checkpoints_are_interchangeable_with_those_of_keras(tmp_path, ours_saves):
    classes = (FusedAdam, keras.optimizers.Adam)
    saving, loading = classes if ours_saves else classes[::-1]
    first = build_model(saving(0.1))
    fit(first)
    first.save_weights(tmp_path / "model.weights.h5")
    second = build_model(loading(0.1))
    second.load_weights(tmp_path / "model.weights.h5")
    for saved, loaded in zip(first.optimizer.variables, second.optimizer.variables):
        np.testing.assert_array_equal(loaded.numpy(), saved.numpy())
    for one, other in zip(fit(first), fit(second), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@tensorflow_only  # with JAX, Keras scales losses in `fit` alone
def test_with_loss_scaling():
    """A step with an infinite gradient is left out, and the others are taken."""
    trained = []
    for optimizer in (keras.optimizers.Adam, FusedAdam):
        scaled = keras.optimizers.LossScaleOptimizer(optimizer(0.1), initial_scale=4.0)
        weight = keras.Variable([1.0, 2.0])
        for gradient in ([4.0, -8.0], [np.inf, 1.0], [2.0, 2.0]):
            scaled.apply([ops.array(gradient, dtype="float32")], [weight])
        assert int(scaled.inner_optimizer.iterations.numpy()) == 2
        trained.append(weight.numpy())
    np.testing.assert_allclose(*trained, rtol=1e-5)


@tensorflow_only
def test_embeddings():
    import tensorflow as tf

    trained = []
    for optimizer in (keras.optimizers.Adam(0.1), FusedAdam(0.1)):
        table = keras.Variable(np.ones((4, 2)), dtype="float32")
        for rows in ([0, 2], [2, 2]):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.gather(table.value, rows) ** 2)
            gradient = tape.gradient(loss, table.value)
            assert isinstance(gradient, tf.IndexedSlices)
            optimizer.apply([gradient], [table])
        trained.append(table.numpy())
    np.testing.assert_allclose(*trained, rtol=1e-6)


@tensorflow_only
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_step_is_one_operation_a_weight(jit_compile):
    import tensorflow as tf

    expected = run(keras.optimizers.Adam(0.1), steps=3)
    rng = np.random.default_rng(0)
    weights = [
        keras.Variable(rng.normal(size=s), dtype="float32") for s in SHAPES.values()
    ]
    optimizer = FusedAdam(0.1)
    optimizer.build(weights)
    step = tf.function(
        lambda gradients: optimizer.apply(gradients, weights), jit_compile=jit_compile
    )
    for _ in range(3):
        step([tf.constant(rng.normal(size=s), "float32") for s in SHAPES.values()])
    found = {v.path: v.numpy() for v in (*weights, *optimizer.variables)}
    assert_alike(expected, found)
    graph = step.get_concrete_function(
        [tf.TensorSpec(s) for s in SHAPES.values()]
    ).graph
    operations = [operation.type for operation in graph.get_operations()]
    assert operations.count("ResourceApplyAdam") == len(weights)
    assert operations.count("Pow") == 2 and "Sqrt" not in operations
