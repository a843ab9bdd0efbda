import doctest
import math

import keras
import numpy as np
import pytest
from backends import only_on
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from layer_checks import check_layer

from mtl_keras import layers
from mtl_keras.layers import AtrousConv2D, BilinearResize, ResizeConv2D

tensorflow_only = only_on("tensorflow", "compares with its own operations")
SAMPLINGS = {"legacy": False, "half_pixel": True}

# Source and target: the network's ratio, fractional ratios, rows up and columns
# down, smaller, equal, and a single pixel.
SIZES = [
    ((2, 4), (16, 32)),
    ((5, 7), (13, 16)),
    ((3, 11), (20, 5)),
    ((9, 8), (4, 3)),
    ((6, 5), (6, 5)),
    ((1, 1), (4, 3)),
]


@pytest.fixture(params=SAMPLINGS.values(), ids=SAMPLINGS.keys())
def half_pixel_centers(request):
    return request.param


def interpolation_matrix(source, target, half_pixel_centers):
    """The definition of bilinear interpolation, one output pixel at a time."""
    matrix = np.zeros((target, source))
    for row in range(target):
        if half_pixel_centers:
            position = (row + 0.5) * source / target - 0.5
        else:
            position = row * source / target
        below = math.floor(position)
        fraction = position - below
        matrix[row, min(max(below, 0), source - 1)] += 1 - fraction
        matrix[row, min(max(below + 1, 0), source - 1)] += fraction
    return matrix


def resize_by_definition(images, target_size, half_pixel_centers):
    rows, columns = (
        interpolation_matrix(source, target, half_pixel_centers).astype("float32")
        for source, target in zip(images.shape[1:3], target_size)
    )
    return ops.einsum(
        "Hh,Ww,bhwc->bHWc",
        ops.cast(rows, images.dtype),
        ops.cast(columns, images.dtype),
        images,
    )


def values_and_gradients(function, layer, images, cotangent):
    """`function(images)`, and gradients of `sum(cotangent * function(images))`.

    The gradients are with respect to the images and to the layer's weights.
    """
    images = ops.convert_to_tensor(images)
    weights = [variable.value for variable in layer.trainable_variables]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = function(images)
        gradients = tape.gradient(
            outputs, [images, *weights], tf.cast(cotangent, outputs.dtype)
        )
    elif keras.backend.backend() == "jax":
        import jax

        def stateless(images, weights):
            pairs = zip(layer.trainable_variables, weights)
            with keras.StatelessScope(pairs):
                return function(images)

        def run(images, weights):
            outputs, pull_back = jax.vjp(stateless, images, weights)
            return outputs, *pull_back(ops.cast(cotangent, outputs.dtype))

        if images.dtype == "float32":  # in half precision XLA leaves out roundings
            run = jax.jit(run)
        outputs, images, weights = run(images, weights)
        gradients = [images, *weights]
    else:
        import torch

        images.requires_grad_()
        outputs = function(images)
        gradients = torch.autograd.grad(
            outputs, [images, *weights], ops.cast(cotangent, outputs.dtype)
        )
    return [
        ops.convert_to_numpy(ops.cast(tensor, "float32"))
        for tensor in (outputs, *gradients)
    ]


def fused_and_direct(
    images,
    target_size,
    half_pixel_centers,
    kernel_size=3,
    filters=3,
    dtype="float32",
    direct_dtype="float32",
    seed=0,
):
    """Values and gradients of ResizeConv2D and of a resize before a Conv2D."""
    rng = np.random.default_rng(seed)
    fused = ResizeConv2D(
        filters, kernel_size, target_size, half_pixel_centers, dtype=dtype
    )
    direct = keras.layers.Conv2D(
        filters, kernel_size, padding="same", dtype=direct_dtype
    )
    fused.build(images.shape)
    direct.build((len(images), *target_size, images.shape[-1]))
    weights = [representable(rng, weight.shape) for weight in fused.weights]
    fused.set_weights(weights)
    direct.set_weights(weights)
    cotangent = representable(rng, (len(images), *target_size, filters))

    def resize_then_convolve(images):
        images = ops.cast(images, "float32")
        resized = resize_by_definition(images, target_size, half_pixel_centers)
        return direct(resized)  # rounds `resized` to its compute dtype

    return (
        values_and_gradients(fused, fused, images, cotangent),
        values_and_gradients(resize_then_convolve, direct, images, cotangent),
    )


def representable(rng, shape):
    """Random float32 numbers which bfloat16 holds exactly."""
    values = rng.normal(size=shape).astype("float32")
    return ops.convert_to_numpy(ops.cast(ops.cast(values, "bfloat16"), "float32"))


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = map(ops.convert_to_numpy, (actual, expected))
    scale = max(np.abs(expected).max(), 1e-6)
    np.testing.assert_allclose(actual / scale, expected / scale, atol=tolerance, rtol=0)


def root_mean_square(values):
    return np.sqrt(np.mean(np.square(values)))


@pytest.mark.parametrize("source, target", SIZES)
@pytest.mark.parametrize("kernel_size", [3, 1, 5, (3, 1), (1, 5)], ids=str)
def test_resize_conv_equals_resize_then_conv(
    kernel_size, source, target, half_pixel_centers
):
    images = representable(np.random.default_rng(1), (2, *source, 4))
    fused, direct = fused_and_direct(images, target, half_pixel_centers, kernel_size)
    for actual, expected in zip(fused, direct, strict=True):
        assert_close(actual, expected)


small = st.integers(1, 12)
odd = st.sampled_from([1, 3, 5, 7])


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    source=st.tuples(small, small),
    target=st.tuples(small, small),
    kernel_size=st.tuples(odd, odd),
    half_pixel_centers=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_sizes(source, target, kernel_size, half_pixel_centers, seed):
    images = representable(np.random.default_rng(seed), (1, *source, 2))
    fused, direct = fused_and_direct(
        images, target, half_pixel_centers, kernel_size, seed=seed
    )
    for actual, expected in zip(fused, direct, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("source, target", [((4, 8), (32, 64)), ((5, 7), (33, 40))])
def test_bfloat16_is_as_good_as_the_direct_form(source, target, half_pixel_centers):
    images = representable(np.random.default_rng(2), (2, *source, 64))
    _, exact = fused_and_direct(images, target, half_pixel_centers, filters=16)
    options = dict(filters=16, dtype="mixed_bfloat16", direct_dtype="mixed_bfloat16")
    fused, direct = fused_and_direct(
        ops.cast(images, "bfloat16"), target, half_pixel_centers, **options
    )
    for name, ours, theirs, truth in zip(
        ["outputs", "images", "kernel", "bias"], fused, direct, exact, strict=True
    ):
        error = root_mean_square(ours - truth)
        direct_error = root_mean_square(theirs - truth)
        # Equal, but for luck, where the processor multiplies bfloat16. Elsewhere
        # TensorFlow's matmul rounds its sums more than once, its convolution does not.
        assert error <= 1.5 * direct_error, name
        assert error <= 0.004 * root_mean_square(truth), name


@pytest.mark.parametrize("source, target", SIZES)
def test_resize_follows_the_definition(source, target, half_pixel_centers):
    images = np.random.default_rng(3).normal(size=(2, *source, 3)).astype("float32")
    resized = BilinearResize(target, half_pixel_centers)(images)
    expected = resize_by_definition(
        ops.convert_to_tensor(images), target, half_pixel_centers
    )
    assert_close(ops.convert_to_numpy(resized), ops.convert_to_numpy(expected))


@pytest.mark.parametrize("source, target", SIZES)
def test_half_pixel_resize_equals_keras(source, target):
    images = np.random.default_rng(4).normal(size=(2, *source, 3)).astype("float32")
    resized = BilinearResize(target, half_pixel_centers=True)(images)
    expected = ops.image.resize(images, target, "bilinear", antialias=False)
    assert_close(ops.convert_to_numpy(resized), ops.convert_to_numpy(expected))


@tensorflow_only
@pytest.mark.parametrize("source, target", SIZES)
def test_resize_equals_tensorflow(source, target, half_pixel_centers):
    import tensorflow as tf

    images = np.random.default_rng(5).normal(size=(2, *source, 3)).astype("float32")
    resized = BilinearResize(target, half_pixel_centers)(images)
    expected = tf.raw_ops.ResizeBilinear(
        images=images,
        size=target,
        align_corners=False,
        half_pixel_centers=half_pixel_centers,
    )
    assert_close(resized, expected)
    if half_pixel_centers:
        assert_close(resized, tf.image.resize(images, target, "bilinear"))


def test_legacy_resize_by_hand():
    image = np.array([0.0, 4.0], "float32").reshape(1, 1, 2, 1)
    legacy = BilinearResize((1, 4))(image)
    np.testing.assert_array_equal(np.ravel(legacy), [0, 2, 4, 4])
    modern = BilinearResize((1, 4), half_pixel_centers=True)(image)
    np.testing.assert_array_equal(np.ravel(modern), [0, 1, 3, 4])


def test_resize_takes_integers_and_rounds_half_precision_once():
    images = np.arange(35, dtype="uint8").reshape(1, 5, 7, 1)
    expected = BilinearResize((9, 16))(images.astype("float32"))
    assert_close(BilinearResize((9, 16))(images), expected)
    half = BilinearResize((9, 16), dtype="bfloat16")(images.astype("float32"))
    rounded = ops.cast(ops.cast(expected, "bfloat16"), "float32")
    assert_close(ops.convert_to_numpy(ops.cast(half, "float32")), rounded)


def test_weights_are_those_of_conv2d():
    fused = ResizeConv2D(5, (3, 1), (6, 8))
    conv = keras.layers.Conv2D(5, (3, 1), padding="same")
    fused.build((None, 3, 4, 2))
    conv.build((None, 6, 8, 2))
    assert [w.name for w in fused.weights] == [w.name for w in conv.weights]
    assert [w.shape for w in fused.weights] == [w.shape for w in conv.weights]
    fused.set_weights(conv.get_weights())
    images = np.random.default_rng(6).normal(size=(2, 3, 4, 2)).astype("float32")
    assert_close(fused(images), conv(BilinearResize((6, 8))(images)))


def test_several_heads_share_one_input():
    images = np.random.default_rng(8).normal(size=(1, 2, 3, 4)).astype("float32")
    shared = keras.Input((2, 3, 4))
    heads = {name: ResizeConv2D(2, 3, (4, 6), name=name) for name in ("a", "b")}
    model = keras.Model(shared, {name: head(shared) for name, head in heads.items()})
    outputs = model(images)
    for name, head in heads.items():
        assert_close(outputs[name], head(images))


def test_resize_conv_is_a_keras_layer(tmp_path):
    check_layer(
        ResizeConv2D,
        {
            "filters": 3,
            "kernel_size": (3, 1),
            "target_size": (6, 10),
            "half_pixel_centers": True,
            "activation": "relu",
            "bias_initializer": "ones",
            "kernel_regularizer": keras.regularizers.L2(0.01),
            "bias_constraint": "non_neg",
            "name": "head",
        },
        (2, 3, 4, 5),
        expected_weights={"kernel": (3, 1, 5, 3), "bias": (3,)},
        expected_output_shape=(2, 6, 10, 3),
        tmp_path=tmp_path,
    )


def test_resize_conv_that_shrinks_is_a_keras_layer(tmp_path):
    check_layer(
        ResizeConv2D,
        {"filters": 2, "kernel_size": 3, "target_size": (3, 2), "use_bias": False},
        (2, 5, 4, 3),
        expected_weights={"kernel": (3, 3, 3, 2)},
        expected_output_shape=(2, 3, 2, 2),
        tmp_path=tmp_path,
    )


@pytest.mark.parametrize("target", [(6, 9), (3, 4)], ids=["larger", "equal"])
def test_resize_is_a_keras_layer(target, tmp_path):
    check_layer(
        BilinearResize,
        {"target_size": target, "half_pixel_centers": True},
        (2, 3, 4, 5),
        expected_weights={},
        expected_output_shape=(2, *target, 5),
        tmp_path=tmp_path,
    )


def test_regularizers_and_activation_are_applied():
    layer = ResizeConv2D(
        2, 3, (4, 4), activation="relu", kernel_regularizer=keras.regularizers.L2(0.5)
    )
    outputs = ops.convert_to_numpy(layer(np.ones((1, 2, 2, 3), "float32")))
    kernel = ops.convert_to_numpy(layer.kernel)
    assert outputs.min() >= 0
    assert float(layer.losses[0]) == pytest.approx(0.5 * np.sum(kernel**2), rel=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kernel_size": 2}, "must be odd"),
        ({"kernel_size": (3, 4)}, "must be odd"),
        ({"kernel_size": (3, 3, 3)}, "`kernel_size` must be a pair"),
        ({"target_size": (0, 4)}, "`target_size` must be a pair"),
        ({"target_size": (None, 4)}, "`target_size` must be a pair"),
        ({"filters": 0}, "`filters` must be positive"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResizeConv2D(**{"filters": 1, "kernel_size": 3, "target_size": 4} | arguments)


@pytest.mark.parametrize("shape", [(None, None, 3), (4, None, 3)])
def test_unknown_input_size_is_refused(shape):
    for layer in (
        ResizeConv2D(1, 3, (4, 4)),
        BilinearResize((4, 4)),
        AtrousConv2D(1, 3, 2),
    ):
        with pytest.raises(ValueError, match="Height and width of the input"):
            layer(keras.Input(shape))


def atrous_and_dilated(
    images, kernel_size, rate, dtype="float32", dilated_dtype="float32", seed=0
):
    """Values and gradients of AtrousConv2D and of a dilated Conv2D."""
    rng = np.random.default_rng(seed)
    filters = 3
    atrous = AtrousConv2D(filters, kernel_size, rate, dtype=dtype)
    dilated = keras.layers.Conv2D(
        filters, kernel_size, padding="same", dilation_rate=rate, dtype=dilated_dtype
    )
    atrous.build(images.shape)
    dilated.build(images.shape)
    weights = [representable(rng, weight.shape) for weight in atrous.weights]
    atrous.set_weights(weights)
    dilated.set_weights(weights)
    cotangent = representable(rng, (*images.shape[:3], filters))
    return (
        values_and_gradients(atrous, atrous, images, cotangent),
        values_and_gradients(dilated, dilated, images, cotangent),
    )


# Taps that all see the image, a few, only those of one row or column, only one.
@pytest.mark.parametrize("rate", [1, 3, 5, 12, (2, 9)], ids=str)
@pytest.mark.parametrize("kernel_size", [3, 5, (3, 1)], ids=str)
def test_atrous_conv_equals_dilated_conv(kernel_size, rate):
    images = representable(np.random.default_rng(1), (2, 5, 9, 4))
    atrous, dilated = atrous_and_dilated(images, kernel_size, rate)
    for actual, expected in zip(atrous, dilated, strict=True):
        assert_close(actual, expected)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    size=st.tuples(small, small),
    rate=st.tuples(small, small),
    kernel_size=st.tuples(odd, odd),
    seed=st.integers(0, 99),
)
def test_any_rates(size, rate, kernel_size, seed):
    images = representable(np.random.default_rng(seed), (1, *size, 2))
    atrous, dilated = atrous_and_dilated(images, kernel_size, rate, seed=seed)
    for actual, expected in zip(atrous, dilated, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize(
    "rate, seen",
    [
        (3, [[1, 1, 1], [1, 1, 1], [1, 1, 1]]),
        (4, [[0, 0, 0], [1, 1, 1], [0, 0, 0]]),
        (9, [[0, 0, 0], [0, 1, 0], [0, 0, 0]]),
    ],
)
def test_gradient_of_taps_in_the_padding_is_zero(rate, seen):
    images = np.random.default_rng(2).normal(size=(2, 4, 9, 3)).astype("float32")
    (_, _, gradient, _), _ = atrous_and_dilated(images, 3, rate)
    np.testing.assert_array_equal(gradient.any(axis=(2, 3)), seen)


def test_atrous_conv_in_bfloat16_is_as_good_as_the_dilated_one():
    images = representable(np.random.default_rng(3), (2, 8, 16, 64))
    _, exact = atrous_and_dilated(images, 3, 2)
    half = ops.cast(images, "bfloat16")
    policies = dict(dtype="mixed_bfloat16", dilated_dtype="mixed_bfloat16")
    atrous, dilated = atrous_and_dilated(half, 3, 2, **policies)
    for name, ours, theirs, truth in zip(
        ["outputs", "images", "kernel"], atrous[:3], dilated[:3], exact[:3], strict=True
    ):
        error = root_mean_square(ours - truth)
        # Products and their sum are rounded, where Conv2D rounds the sum alone: that
        # is up to the square root of 2, and more where matmul rounds more than once.
        assert error <= 2.0 * root_mean_square(theirs - truth), name
        assert error <= 0.006 * root_mean_square(truth), name


def test_atrous_conv_takes_and_gives_weights_of_conv2d():
    atrous = AtrousConv2D(5, (3, 1), dilation_rate=2, activation="relu")
    conv = keras.layers.Conv2D(
        5, (3, 1), padding="same", dilation_rate=2, activation="relu"
    )
    for layer in (atrous, conv):
        layer.build((None, 6, 8, 2))
    assert [w.name for w in atrous.weights] == [w.name for w in conv.weights]
    images = np.random.default_rng(6).normal(size=(2, 6, 8, 2)).astype("float32")
    atrous.set_weights(conv.get_weights())
    assert_close(atrous(images), conv(images))
    assert np.min(ops.convert_to_numpy(atrous(images))) == 0


@pytest.mark.parametrize("rate", [2, (9, 3), 12], ids=str)
def test_atrous_conv_is_a_keras_layer(rate, tmp_path):
    check_layer(
        AtrousConv2D,
        {
            "filters": 3,
            "kernel_size": 3,
            "dilation_rate": rate,
            "use_bias": False,
            "kernel_regularizer": keras.regularizers.L2(0.01),
            "name": "pyramid",
        },
        (2, 5, 8, 4),
        expected_weights={"kernel": (3, 3, 4, 3)},
        expected_output_shape=(2, 5, 8, 3),
        tmp_path=tmp_path,
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kernel_size": (3, 4)}, "must be odd"),
        ({"padding": "valid"}, "`padding` must be 'same'"),
        ({"strides": 2, "dilation_rate": 1}, r"`strides` must be \(1, 1\)"),
        ({"groups": 2}, "`groups` must be 1"),
        ({"data_format": "channels_first"}, "`data_format` must be 'channels_last'"),
        ({"filters": 0}, "`filters`"),
    ],
)
def test_wrong_arguments_of_atrous_conv_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        AtrousConv2D(**{"filters": 2, "kernel_size": 3, "dilation_rate": 2} | arguments)


@tensorflow_only
def test_export_serves_any_batch(tmp_path):
    import tensorflow as tf

    images = np.random.default_rng(9).normal(size=(3, 2, 3, 4)).astype("float32")
    inputs = keras.Input((2, 3, 4))
    features = AtrousConv2D(3, 3, dilation_rate=2)(inputs)
    features = ResizeConv2D(2, 3, (4, 6))(features)
    model = keras.Model(inputs, BilinearResize((8, 12))(features))
    model.export(tmp_path / "served", verbose=False)
    artefact = tf.saved_model.load(tmp_path / "served")
    for batch in (1, 3):
        assert_close(artefact.serve(images[:batch]), model(images[:batch]))


@tensorflow_only
@pytest.mark.parametrize(
    "layer", [ResizeConv2D(2, 3, (6, 8)), AtrousConv2D(2, 3, 2)], ids=lambda x: x.name
)
def test_xla_computes_the_same(layer):
    import tensorflow as tf

    images = tf.constant(representable(np.random.default_rng(10), (2, 2, 4, 3)))

    def value_and_gradient(images):
        with tf.GradientTape() as tape:
            outputs = layer(images)
            loss = tf.reduce_sum(outputs**2)
        return outputs, tape.gradient(loss, layer.kernel.value)

    expected = value_and_gradient(images)
    compiled = tf.function(value_and_gradient, jit_compile=True)(images)
    for actual, wanted in zip(compiled, expected, strict=True):
        assert_close(actual, wanted)


def test_docstring_examples():
    assert doctest.testmod(layers).failed == 0
