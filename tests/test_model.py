import keras
import numpy as np
import pytest
from gradients import value_and_gradients
from keras import ops

from mtl_keras import model
from mtl_keras.errors import UserError
from mtl_keras.model import Backbone, apply_backbone, build_network

SIZE = (32, 64)
CHANNELS = {"semantic": 19, "instance": 2, "depth": 1}


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


def randomize(network, seed=0):
    """Weights under which every layer matters: nothing dies and nothing explodes."""
    rng = np.random.default_rng(seed)
    for variable in network.variables:
        if variable.name == "moving_variance":
            values = rng.uniform(0.5, 2.0, variable.shape)
        elif variable.name == "gamma":
            values = rng.uniform(0.5, 1.0, variable.shape)
        elif len(variable.shape) == 1:
            values = rng.normal(0, 0.1, variable.shape)
        else:
            fan_in = np.prod(variable.shape[:-1])
            values = rng.normal(0, (1 / fan_in) ** 0.5, variable.shape)
        variable.assign(values.astype("float32"))


def assert_close(actual, expected, tolerance):
    actual, expected = np.asarray(actual), np.asarray(expected)
    scale = np.abs(expected).max()
    assert np.isfinite(scale) and scale > 0
    np.testing.assert_allclose(actual / scale, expected / scale, atol=tolerance, rtol=0)


def test_outputs_have_names_shapes_and_dtypes():
    network = build_small()
    assert network.name == "mtl_small"
    outputs = network(random_images())
    assert {task: tuple(y.shape) for task, y in outputs.items()} == {
        task: (2, *SIZE, channels) for task, channels in CHANNELS.items()
    }
    for task, output in outputs.items():
        assert keras.backend.standardize_dtype(output.dtype) == "float32", task


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_outputs_are_float32_under_mixed_policies(policy, set_policy):
    set_policy(policy)
    network = build_small()
    for task, output in network(random_images()).items():
        assert keras.backend.standardize_dtype(output.dtype) == "float32", task
        assert np.isfinite(np.asarray(output)).all()
    computed = network.get_layer("conv2_block1_2_conv").compute_dtype
    assert computed == policy.removeprefix("mixed_")


@pytest.mark.parametrize("tasks", [("depth",), ("semantic", "instance")])
def test_only_the_chosen_tasks_are_built(tasks):
    network = build_small(tasks=tasks)
    assert set(network(random_images(1))) == set(tasks)
    heads = {layer.name.split("_")[0] for layer in network.layers} & set(CHANNELS)
    assert heads == set(tasks)


def test_any_batch_size_and_uint8_or_float():
    network = build_small()
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
    assert features.output_shape == (None, *shape, 32 * model.BACKBONES["small"].width)


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
def test_gradients_of_every_head_reach_the_trunk(task):
    network = build_small()
    images = random_images(1)
    kernels = [
        network.get_layer(f"{name}_conv").kernel for name in ("conv1", "conv5_block1_3")
    ]
    other = "depth" if task != "depth" else "instance"
    head = [network.get_layer(f"{name}_conv1").kernel for name in (task, other)]
    _, gradients = value_and_gradients(
        lambda: ops.sum(ops.square(network(images, training=True)[task])),
        kernels + head,
    )
    for gradient in gradients[:3]:
        assert np.abs(gradient).max() > 0
    assert np.abs(gradients[3]).max() == 0


def test_direct_decoder_is_the_same_function_of_the_same_weights():
    fused, direct = (build_small(decoder=name) for name in model.DECODERS)
    randomize(fused)
    assert signature(fused) == signature(direct)
    direct.set_weights(fused.get_weights())
    images = random_images()
    expected = direct(images)
    for task, output in fused(images).items():
        assert_close(output, expected[task], 1e-5)


def test_reloaded_network_is_the_same(tmp_path):
    network = build_small()
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    images = random_images()
    expected = network(images)
    for task, output in loaded(images).items():
        np.testing.assert_allclose(output, expected[task], atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"architecture": "unet"}, "Unknown architecture 'unet'.*mtl"),
        ({"backbone": "vgg"}, "Unknown backbone 'vgg'.*resnet101"),
        ({"decoder": "fast"}, "Unknown decoder 'fast'.*direct"),
        ({"tasks": ("semantic", "flow")}, "Unknown task 'flow'.*depth"),
        ({"weights": "coco"}, "Unknown weights 'coco'.*imagenet"),
        ({"weights": "imagenet"}, "no ImageNet weights.*'small'.*resnet50"),
        ({"image_size": (16, 64)}, "at least 32x32"),
    ],
)
def test_what_cannot_be_built_is_named(options, message):
    with pytest.raises(UserError, match=message):
        build_small(**options)


def test_pretrained_weights_are_copied_into_the_backbone(monkeypatch):
    source = build_backbone("small", 32, (64, 64))
    randomize(source)

    def stock(include_top, weights):
        assert (include_top, weights) == (False, "imagenet")
        return source

    monkeypatch.setitem(model.PRETRAINED, "small", "ResNet50")
    monkeypatch.setattr(keras.applications, "ResNet50", stock)
    network = build_small(weights="imagenet")
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
    monkeypatch.setitem(model.BACKBONES, "resnet50", Backbone((1, 1, 1, 1), 4, 4))
    with pytest.raises(UserError, match="resnet50.*not known.*--no-pretrained"):
        build_small(backbone="resnet50", weights="imagenet")
