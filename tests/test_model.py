import doctest

import keras
import numpy as np
import pytest
from gradients import value_and_gradients
from keras import ops

from benchmarks.workload import randomize
from mtl_keras import model
from mtl_keras.architectures import ARCHITECTURES, BACKBONES, DECODERS, Backbone
from mtl_keras.errors import UserError
from mtl_keras.model import (
    apply_aspp,
    apply_backbone,
    build_network,
)

SIZE = (32, 64)
CHANNELS = {"semantic": 19, "instance": 2, "depth": 1}
ASPP_BRANCHES = ("rate1", "rate12", "rate24", "rate36", "pool")


def test_examples_of_the_docstrings():
    result = doctest.testmod(model)
    assert result.attempted > 0 and result.failed == 0


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return request.param


def build_small(**options):
    keras.utils.set_random_seed(0)
    options = {"backbone": "small", "image_size": SIZE, "num_classes": 19, **options}
    return build_network(**options)


def build_backbone(backbone, output_stride, image_size=SIZE):
    image = keras.Input((*image_size, 3))
    return keras.Model(image, apply_backbone(image, backbone, output_stride))


def random_images(count=2, size=SIZE):
    images = np.random.default_rng(0).integers(0, 256, (count, *size, 3))
    return images.astype("uint8")


def signature(network):
    """Names of the layers with weights, with the shapes of these."""
    return [
        (layer.name, [tuple(weight.shape) for weight in layer.weights])
        for layer in network.layers
        if layer.weights
    ]


def assert_close(actual, expected, tolerance):
    actual, expected = map(ops.convert_to_numpy, (actual, expected))
    scale = np.abs(expected).max()
    assert np.isfinite(scale) and scale > 0
    np.testing.assert_allclose(actual / scale, expected / scale, atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", [SIZE, (96, 160), (33, 70)], ids=str)
def test_outputs_have_names_shapes_and_dtypes(architecture, size):
    network = build_small(architecture=architecture, image_size=size)
    assert network.name == f"{architecture}_small"
    outputs = network(random_images(2, size))
    assert {task: tuple(y.shape) for task, y in outputs.items()} == {
        task: (2, *size, channels) for task, channels in CHANNELS.items()
    }
    for task, output in outputs.items():
        assert keras.backend.standardize_dtype(output.dtype) == "float32", task


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_outputs_are_float32_under_mixed_policies(policy, set_policy, architecture):
    set_policy(policy)
    network = build_small(architecture=architecture)
    for task, output in network(random_images()).items():
        assert keras.backend.standardize_dtype(output.dtype) == "float32", task
        assert np.isfinite(ops.convert_to_numpy(output)).all()
    for name in ("conv2_block1_2_conv", "depth_conv1"):
        computed = network.get_layer(name).compute_dtype
        assert computed == policy.removeprefix("mixed_")


@pytest.mark.parametrize("tasks", [("depth",), ("semantic", "instance")])
def test_only_the_chosen_tasks_are_built(tasks, architecture):
    network = build_small(tasks=tasks, architecture=architecture)
    assert set(network(random_images(1))) == set(tasks)
    heads = {layer.name.split("_")[0] for layer in network.layers} & set(CHANNELS)
    assert heads == set(tasks)


def test_any_batch_size_and_uint8_or_float(architecture):
    network = build_small(architecture=architecture)
    images = random_images(3)
    together = network.predict_on_batch(images)
    for number in range(3):
        alone = network.predict_on_batch(images[number : number + 1].astype("float32"))
        for task in CHANNELS:
            assert_close(alone[task][0], together[task][number], 1e-5)


def test_input_is_normalized_like_the_pretrained_weights_expect():
    features = build_backbone("small", 8)
    normalized = keras.Model(features.input, features.get_layer("normalization").output)
    images = random_images()
    expected = images[..., ::-1] - np.array([103.939, 116.779, 123.68], "float32")
    np.testing.assert_allclose(normalized(images), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("stride, shape", [(8, (4, 8)), (16, (2, 4)), (32, (1, 2))])
def test_output_stride(stride, shape):
    features = build_backbone("small", stride)
    assert features.output_shape == (None, *shape, 32 * BACKBONES["small"].width)


def test_dilation_changes_no_weight():
    assert signature(build_backbone("small", 8)) == signature(
        build_backbone("small", 32)
    )


def dilated_and_strided(backbone, image_size):
    """Features at stride 8, every fourth pixel, and those at stride 32."""
    dilated = build_backbone(backbone, 8, image_size)
    strided = build_backbone(backbone, 32, image_size)
    randomize(dilated)
    strided.set_weights(dilated.get_weights())
    images = random_images(1, image_size)
    return dilated(images)[:, ::4, ::4], strided(images)


def test_dilated_features_hold_those_of_stride_32():
    assert_close(*dilated_and_strided("small", (64, 128)), 1e-5)


@pytest.mark.slow
def test_dilated_resnet101_holds_the_features_of_stride_32():
    assert_close(*dilated_and_strided("resnet101", (64, 96)), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", model.PRETRAINED)
def test_layers_and_weights_are_those_of_keras_applications(name):
    stock = getattr(keras.applications, model.PRETRAINED[name])
    stock = stock(include_top=False, weights=None)
    for stride in (8, 32):
        assert signature(build_backbone(name, stride)) == signature(stock)


@pytest.mark.slow
def test_undilated_resnet101_is_that_of_keras_applications():
    stock = keras.applications.ResNet101(include_top=False, weights=None)
    randomize(stock)
    ours = build_backbone("resnet101", 32, (64, 96))
    ours.set_weights(stock.get_weights())
    images = random_images(1, (64, 96))
    prepared = keras.applications.resnet.preprocess_input(images.astype("float32"))
    assert_close(ours(images), stock(prepared), 1e-5)


@pytest.mark.slow
def test_the_full_network_runs():
    network = build_network()
    outputs = network(random_images(1, (128, 256)))
    assert {task: tuple(y.shape[1:]) for task, y in outputs.items()} == {
        "semantic": (128, 256, 34),
        "instance": (128, 256, 2),
        "depth": (128, 256, 1),
    }


@pytest.mark.parametrize("task", CHANNELS)
def test_gradients_of_every_head_reach_the_trunk(task, architecture):
    network = build_small(architecture=architecture)
    images = random_images(2)
    trunk = [f"{name}_conv" for name in ("conv1", "conv5_block1_3")]
    if architecture == "kendall":
        trunk += [f"aspp_{name}_conv" for name in ASPP_BRANCHES]
    kernels = [network.get_layer(name).kernel for name in trunk]
    other = "depth" if task != "depth" else "instance"
    head = [network.get_layer(f"{name}_conv1").kernel for name in (task, other)]
    _, gradients = value_and_gradients(
        lambda: ops.sum(ops.square(network(images, training=True)[task])),
        kernels + head,
    )
    *reached, unreached = gradients
    for gradient in reached:
        assert np.abs(gradient).max() > 0
    assert np.abs(unreached).max() == 0


def test_direct_decoder_is_the_same_function_of_the_same_weights():
    fused, direct = (build_small(decoder=name) for name in DECODERS)
    randomize(fused)
    assert signature(fused) == signature(direct)
    direct.set_weights(fused.get_weights())
    images = random_images()
    expected = direct(images)
    for task, output in fused(images).items():
        assert_close(output, expected[task], 1e-5)


def count_weights(network, *prefixes):
    """Number of weights of the layers whose names begin with a prefix."""
    return sum(
        int(np.prod(weight.shape))
        for layer in network.layers
        if layer.name.startswith(prefixes)
        for weight in layer.weights
    )


def test_weights_of_kendall_are_those_counted_by_hand():
    network = build_small(architecture="kendall")
    # 640 features; five branches and the heads of 32; 4 numbers a normalized channel.
    convs = 2 * 640 * 32 + 3 * 9 * 640 * 32
    assert count_weights(network, "aspp_") == convs + 5 * 4 * 32
    for task, channels in CHANNELS.items():
        conv = 9 * 5 * 32 * 32
        assert count_weights(network, task) == conv + 4 * 32 + 33 * channels


@pytest.mark.slow
def test_kendall_on_resnet101_has_the_weights_of_the_paper():
    network = build_network("kendall", num_classes=19)
    stock = keras.applications.ResNet101(include_top=False, weights=None)
    aspp = (2 + 3 * 9) * 2048 * 256 + 5 * 4 * 256
    heads = 3 * (9 * 1280 * 256 + 4 * 256) + 257 * (19 + 2 + 1)
    assert count_weights(network, "aspp_") == aspp == 15_209_472
    assert count_weights(network, *CHANNELS) == heads == 8_856_086
    assert network.count_params() == stock.count_params() + aspp + heads
    assert network.get_layer("aspp_concat").output.shape == (None, 16, 32, 1280)


def test_rates_of_dilation():
    network = build_small(architecture="kendall")
    rates = {
        layer.name: layer.dilation_rate
        for layer in network.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.dilation_rate != (1, 1)
    }
    assert rates == {
        "conv4_block1_2_conv": (2, 2),
        "conv5_block1_2_conv": (4, 4),
        "aspp_rate12_conv": (12, 12),
        "aspp_rate24_conv": (24, 24),
        "aspp_rate36_conv": (36, 36),
    }


def dilated_conv(images, kernel, rate):
    """3x3 convolution with taps `rate` pixels apart and zeros around the images."""
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (rate, rate), (rate, rate), (0, 0)))
    return sum(
        padded[:, rate * u :, rate * v :][:, :height, :width] @ kernel[u, v]
        for u in range(3)
        for v in range(3)
    )


@pytest.mark.parametrize("size", [(16, 32), (5, 13)], ids=str)
def test_the_pyramid_follows_its_definition(size):
    inputs = keras.Input((*size, 6))
    pyramid = keras.Model(inputs, apply_aspp(inputs, 4))
    randomize(pyramid)
    images = np.random.default_rng(1).normal(size=(2, *size, 6)).astype("float32")
    branches = []
    for name in ASPP_BRANCHES:
        (kernel,) = pyramid.get_layer(f"aspp_{name}_conv").get_weights()
        if name == "rate1":
            branch = images @ kernel[0, 0]
        elif name == "pool":
            branch = np.mean(images, axis=(1, 2), keepdims=True) @ kernel[0, 0]
        else:
            branch = dilated_conv(images, kernel, int(name.removeprefix("rate")))
        gamma, beta, mean, variance = pyramid.get_layer(f"aspp_{name}_bn").get_weights()
        branch = (branch - mean) / np.sqrt(variance + 1.001e-5) * gamma + beta
        branches.append(np.broadcast_to(np.maximum(branch, 0), (2, *size, 4)))
    assert_close(pyramid(images), np.concatenate(branches, axis=-1), 1e-5)


def test_features_are_centred_on_every_eighth_pixel(monkeypatch):
    # A brighter column of pixels makes just those features grow that see it.
    monkeypatch.setitem(BACKBONES, "small", Backbone((1, 1, 1, 1), 2, 2, 2))
    size = (32, 192)
    features = build_backbone("small", 8, size)
    for variable in features.variables:
        if variable.name == "kernel":
            fan_in = np.prod(variable.shape[:-1])
            variable.assign(np.full(variable.shape, 1 / fan_in, "float32"))
    images = np.full((1 + size[1], *size, 3), 200, "uint8")
    for column in range(size[1]):
        images[1 + column, :, column] = 255
    plain, *brighter = features.predict(images, batch_size=32, verbose=0)[:, 0, :, 0]
    sees = np.stack(brighter) > plain  # (column, feature)
    for feature in (10, 11, 12, 13):
        (columns,) = sees[:, feature].nonzero()
        assert 0 < columns[0] and columns[-1] < size[1] - 1
        assert (columns[0] + columns[-1]) / 2 == 8 * feature


def test_outputs_of_kendall_are_resized_with_legacy_sampling():
    network = build_small(architecture="kendall", image_size=(32, 64))
    randomize(network)
    logits = {task: network.get_layer(f"{task}_conv2").output for task in CHANNELS}
    images = random_images()
    small = keras.Model(network.input, logits)(images)
    for task, output in network(images).items():
        output, small_output = map(ops.convert_to_numpy, (output, small[task]))
        assert_close(output[:, ::8, ::8], small_output, 1e-6)
        between = (small_output[:, :, :-1] + small_output[:, :, 1:]) / 2
        assert_close(output[:, ::8, 4:-8:8], between, 1e-6)


def test_reloaded_network_is_the_same(tmp_path, architecture):
    network = build_small(architecture=architecture)
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    images = random_images()
    expected = network(images)
    for task, output in loaded(images).items():
        np.testing.assert_allclose(
            *map(ops.convert_to_numpy, (output, expected[task])), atol=1e-6
        )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"architecture": "unet"}, "Unknown architecture 'unet'.*mtl, kendall"),
        ({"backbone": "vgg"}, "Unknown backbone 'vgg'.*resnet101"),
        ({"decoder": "fast"}, "Unknown decoder 'fast'.*direct"),
        (
            {"architecture": "kendall", "decoder": "direct"},
            "'direct' is a form of the mtl architecture; kendall",
        ),
        ({"tasks": ("semantic", "flow")}, "Unknown task 'flow'.*depth"),
        ({"weights": "coco"}, "Unknown weights 'coco'.*imagenet"),
        ({"weights": "imagenet"}, "no ImageNet weights.*'small'.*resnet50"),
        ({"image_size": (16, 64)}, "at least 32x32"),
    ],
)
def test_what_cannot_be_built_is_named(options, message):
    with pytest.raises(UserError, match=message):
        build_small(**options)


def test_pretrained_weights_are_copied_into_the_backbone(monkeypatch, architecture):
    source = build_backbone("small", 32, (64, 64))
    randomize(source)

    def stock(include_top, weights):
        assert (include_top, weights) == (False, "imagenet")
        return source

    monkeypatch.setitem(model.PRETRAINED, "small", "ResNet50")
    monkeypatch.setattr(keras.applications, "ResNet50", stock)
    network = build_small(weights="imagenet", architecture=architecture)
    copied = 0
    for layer in source.layers:
        for expected, found in zip(
            layer.get_weights(),
            network.get_layer(layer.name).get_weights() if layer.weights else (),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)
            copied += 1
    assert copied == len(source.weights) > 50


def test_a_failed_download_is_explained(monkeypatch):
    def offline(**_):
        raise Exception("URL fetch failure: Name or service not known")

    monkeypatch.setattr(keras.applications, "ResNet50", offline)
    monkeypatch.setitem(BACKBONES, "resnet50", Backbone((1, 1, 1, 1), 4, 4, 4))
    with pytest.raises(UserError, match="resnet50.*not known.*--no-pretrained"):
        build_small(backbone="resnet50", weights="imagenet")
