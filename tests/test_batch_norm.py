"""`layers.FusedBatchNormalization` is Keras's, whatever computes it."""

import keras
import numpy as np
import pytest
from backends import only_on
from gradients import value_and_gradients
from keras import ops
from layer_checks import check_layer

from mtl_keras.layers import FusedBatchNormalization

tensorflow_only = only_on("tensorflow", "about its fused kernel")

SHAPE = (3, 4, 5, 6)
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
EPSILON = 1.001e-5


def random_images(shape=SHAPE, seed=0):
    images = np.random.default_rng(seed).normal(2.0, 3.0, shape)
    return images.astype("float32")


def build_pair(shape=SHAPE, **options):
    """A layer of Keras and one of ours, with the same weights."""
    options = {"epsilon": EPSILON, "momentum": 0.9, **options}
    rng = np.random.default_rng(1)
    pair = [
        cls(**options)
        for cls in (keras.layers.BatchNormalization, FusedBatchNormalization)
    ]
    for layer in pair:
        layer.build((None, *shape[1:]))
    weights = [rng.uniform(0.5, 1.5, w.shape) for w in pair[0].weights]
    for layer in pair:
        layer.set_weights(weights)
    return pair


def results(layer, images, **call):
    """Outputs, gradients and moving statistics of one call."""
    weighting = ops.convert_to_tensor(random_images(images.shape, seed=2))
    images = keras.Variable(images, name="images")
    dtype = layer.compute_dtype

    def loss():
        outputs = layer(ops.cast(images.value, dtype), **call)
        return ops.sum(ops.cast(outputs, "float32") * weighting)

    outputs = layer(ops.cast(images, dtype), **{**call, "training": False})
    variables = [images, *layer.trainable_variables]
    value, gradients = value_and_gradients(loss, variables)
    if keras.backend.backend() == "jax":  # there the call above kept no state
        layer(ops.cast(images, dtype), **call)
    return {
        "inference": ops.convert_to_numpy(ops.cast(outputs, "float32")),
        "value": value,
        **{f"gradient of {v.name}": g for v, g in zip(variables, gradients)},
        **{v.name: v.numpy() for v in layer.non_trainable_variables},
    }


def assert_alike(pair, images, tolerance=2e-6, **call):
    expected, found = (results(layer, images, **call) for layer in pair)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        # Sums over the batch round to the size of what they add up.
        scale = max(np.abs(value).max(), 1.0 if "gradient" in name else 1e-6)
        np.testing.assert_allclose(
            np.asarray(found[name]) / scale,
            np.asarray(value) / scale,
            atol=tolerance,
            rtol=0,
            err_msg=name,
        )
    return found


@pytest.mark.parametrize("policy", POLICIES)
def test_one_step_is_that_of_keras(policy):
    pair = build_pair(dtype=policy)
    found = assert_alike(pair, random_images(), training=True)
    assert np.abs(found["gradient of gamma"]).max() > 0
    # The moving variance takes in that of the batch, not of the population.
    images = random_images().astype(pair[1].compute_dtype).astype("float32")
    start = build_pair()[1].moving_variance.numpy()
    expected = 0.9 * start + 0.1 * images.reshape(-1, SHAPE[-1]).var(axis=0)
    np.testing.assert_allclose(found["moving_variance"], expected, rtol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_inference_and_its_gradients_are_those_of_keras(policy):
    pair = build_pair(dtype=policy)
    before = pair[1].moving_mean.numpy()
    found = assert_alike(pair, random_images(), training=False)
    np.testing.assert_array_equal(found["moving_mean"], before)


def test_frozen_means_inference():
    pair = build_pair()
    for layer in pair:
        layer.trainable = False
    before = pair[1].get_weights()
    assert_alike(pair, random_images(), training=True)
    for old, new in zip(before, pair[1].get_weights()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("size", [1, 2])
def test_batches_of_hardly_any_pixel(size):
    """A single pixel has the variance 0."""
    pair = build_pair((size, 1, 1, 6))
    start = pair[1].moving_variance.numpy()
    found = assert_alike(pair, random_images((size, 1, 1, 6)), 2e-5, training=True)
    if size == 1:
        np.testing.assert_allclose(found["moving_variance"], 0.9 * start, rtol=1e-6)


@tensorflow_only
@pytest.mark.parametrize(
    "options",
    [
        {"center": False},
        {"scale": False},
        {"axis": 1},
        {"epsilon": 1e-7},
        {"dtype": "float64"},
        {"renorm": True},
    ],
)
def test_what_the_kernel_cannot_do_is_left_to_keras(options):
    shape = (3, 6, 6, 6)
    assert_alike(build_pair(shape, **options), random_images(shape), training=True)


@tensorflow_only
@pytest.mark.parametrize("shape", [(7, 6), (3, 4, 6), (2, 3, 2, 4, 6)])
def test_inputs_that_are_no_images(shape):
    assert_alike(build_pair(shape), random_images(shape), training=True)


def test_masks():
    mask = random_images(SHAPE[:-1]) > 0
    assert_alike(build_pair(), random_images(), training=True, mask=mask)


def test_layer_contract(tmp_path):
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    layer = check_layer(
        FusedBatchNormalization,
        {"momentum": 0.9, "epsilon": EPSILON},
        SHAPE,
        expected_weights=dict.fromkeys(names, SHAPE[-1:]),
        expected_output_shape=SHAPE,
        tmp_path=tmp_path,
    )
    stock = keras.layers.BatchNormalization(momentum=0.9, epsilon=EPSILON)
    config, expected = layer.get_config(), stock.get_config()
    for each in (config, expected):
        each.pop("name")
    assert config == expected


def build_model(layer_class):
    inputs = keras.Input((4, 5, 3))
    x = keras.layers.Conv2D(6, 1)(inputs)
    x = layer_class(name="first")(x)
    x = keras.layers.Conv2D(6, 1)(x)
    return keras.Model(inputs, layer_class(name="second")(x))


def test_weights_are_interchangeable_with_those_of_keras():
    """By order and name; files of weights go by the name of the class, too."""
    ours = build_model(FusedBatchNormalization)
    stock = build_model(keras.layers.BatchNormalization)
    rng = np.random.default_rng(0)
    stock.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in stock.get_weights()])
    ours.set_weights(stock.get_weights())
    assert [v.name for v in ours.variables] == [v.name for v in stock.variables]
    images = random_images((3, 4, 5, 3))
    assert_close = np.testing.assert_allclose
    assert_close(ours.predict(images), stock.predict(images), rtol=1e-5, atol=1e-5)


def traced_operations(function, *specs):
    graph = function.get_concrete_function(*specs).graph
    return [operation.type for operation in graph.get_operations()]


@tensorflow_only
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("training", [True, False])
def test_the_kernel_does_it(policy, training):
    import tensorflow as tf

    stock, ours = build_pair(dtype=policy)
    images = tf.TensorSpec((None, *SHAPE[1:]), ours.compute_dtype)
    counts = []
    for layer in (stock, ours):
        function = tf.function(lambda x: layer(x, training=training))
        operations = traced_operations(function, images)
        counts.append(len(operations))
        assert ("FusedBatchNormV3" in operations) == (layer is ours)
    assert counts[1] < counts[0]


@tensorflow_only
@pytest.mark.parametrize("batch", [3, None])
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_traced_and_compiled_it_is_that_of_keras(policy, jit_compile, batch):
    import tensorflow as tf

    images, weighting = random_images(), random_images(seed=2)
    found = []
    for layer in build_pair(dtype=policy):
        spec = tf.TensorSpec((batch, *SHAPE[1:]), "float32")

        @tf.function(jit_compile=jit_compile, input_signature=[spec])
        def step(images):
            with tf.GradientTape() as tape:
                tape.watch(images)
                outputs = layer(images, training=True)
                total = tf.reduce_sum(tf.cast(outputs, "float32") * weighting)
            gradients = tape.gradient(
                total, [images, *(v.value for v in layer.trainable_variables)]
            )
            return [tf.cast(outputs, "float32"), *gradients]

        found.append([x.numpy() for x in step(images)] + layer.get_weights())
    for expected, result in zip(*found, strict=True):
        # One unit in the last place of half precision, where it is rounded to.
        tolerance = 1e-5 if policy == "float32" else 1e-3
        scale = np.abs(expected).max()
        np.testing.assert_allclose(result / scale, expected / scale, atol=tolerance)


@tensorflow_only
def test_an_empty_batch_is_as_with_keras():
    import tensorflow as tf

    for layer in build_pair():
        assert layer(tf.zeros((0, *SHAPE[1:])), training=True).shape[0] == 0
        assert np.isnan(layer.moving_mean.numpy()).all()
        assert np.isnan(layer.moving_variance.numpy()).all()


@tensorflow_only
def test_saved_model(tmp_path):
    import tensorflow as tf

    model = build_model(FusedBatchNormalization)
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    model.export(tmp_path / "saved", verbose=False)
    images = random_images((2, 4, 5, 3))
    served = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(
        served.serve(images), model(images), rtol=1e-5, atol=1e-5
    )
