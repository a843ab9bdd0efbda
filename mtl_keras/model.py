"""The networks: dilated ResNets and the architectures on top of them, and a small
encoder and decoder."""

from collections.abc import Sequence

import keras
from keras import ops

from mtl_keras.architectures import ARCHITECTURES, BACKBONES, DECODERS
from mtl_keras.errors import UserError
from mtl_keras.hints import Size, Tensor
from mtl_keras.layers import (
    AtrousConv2D,
    BilinearResize,
    FusedBatchNormalization,
    ResizeConv2D,
)
from mtl_keras.tasks import channels_of, tasks_of

PRETRAINED = {
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
}
ASPP_RATES = (12, 24, 36)  # the paper, appendix A; those of DeepLabv3 at stride 8

IMAGENET_BGR_MEAN = (103.939, 116.779, 123.68)


def build_network(
    architecture: str = "mtl",
    backbone: str = "resnet101",
    image_size: Size = (128, 256),
    num_classes: int = 34,
    tasks: Sequence[str] = ("semantic", "instance", "depth"),
    weights: str | None = None,
    decoder: str = "resize_conv",
) -> keras.Model:
    """Builds the multi-task network.

    `mtl` is the network of the first public code: a ResNet v1 dilated to output
    stride 8, whose features are resized bilinearly (legacy sampling) to the image
    size and decoded by one head per task: 3x3 convolution and ReLU, 1x1 convolution
    and ReLU, 1x1 convolution.

    `kendall` is the network of the paper: on the same ResNet an Atrous Spatial
    Pyramid Pooling module (`apply_aspp`), and one head per task whose output is
    resized to the image size (`apply_kendall_head`).

    Args:
        architecture: str, one of `ARCHITECTURES`.
        backbone: str, a key of `BACKBONES`.
        image_size: `(height, width)` in pixels, also the size of the outputs.
        num_classes: int. Channels of the semantic output.
        tasks: the outputs to build, from `"semantic"`, `"instance"`, `"depth"`.
        weights: `None` for random weights, or `"imagenet"` for the backbone of
            `keras.applications`, downloaded on first use.
        decoder: str, how `mtl` computes its heads: `"resize_conv"`, or `"direct"`
            for the literal graph, which computes the same function from the same
            weights with about fifteen times the arithmetic. `kendall` resizes no
            features and takes only the default.

    Returns:
        A functional `keras.Model` from RGB images `(batch, height, width, 3)` in
        0..255 (uint8 or float) to a dict of float32 maps of the image size:
        `semantic` class logits `(..., num_classes)`, `instance` offsets
        `(dy, dx)` in pixels `(..., 2)`, `depth` disparity in pixels `(..., 1)`.

    Raises:
        UserError: for an unknown name, an image side below 32, or `kendall` with the
            decoder `"direct"`; or if pretrained weights do not exist or cannot be
            downloaded.

    Example:
    >>> network = build_network(backbone="small", image_size=(32, 64))
    >>> sorted(network.output)
    ['depth', 'instance', 'semantic']
    >>> network.output["depth"].shape
    (None, 32, 64, 1)

    References:
     - [Kendall et al., 2018](https://arxiv.org/abs/1705.07115), section 4 and
       appendix A
    """
    _check_choice("architecture", architecture, ARCHITECTURES)
    _check_choice("backbone", backbone, BACKBONES)
    _check_choice("decoder", decoder, DECODERS)
    if architecture != "mtl" and decoder == "direct":
        raise UserError(
            "The decoder 'direct' is a form of the mtl architecture; "
            f"{architecture} has no other than the default."
        )
    for task in tasks:
        _check_choice("task", task, tasks_of("scenes"))
    if min(image_size) < 32:
        raise UserError(f"The image size must be at least 32x32, not {image_size}.")

    image = keras.Input((*image_size, 3), name="image")
    features = apply_backbone(image, backbone)
    outputs = {}
    if architecture == "mtl":
        width = BACKBONES[backbone].head_width
        if decoder == "direct":
            features = BilinearResize(image_size, name="decoder_resize")(features)
        for task in tasks:
            outputs[task] = apply_mtl_head(
                features, task, width, channels_of(task, num_classes), image_size
            )
    else:
        width = BACKBONES[backbone].aspp_width
        features = apply_aspp(features, width)
        for task in tasks:
            outputs[task] = apply_kendall_head(
                features, task, width, channels_of(task, num_classes), image_size
            )
    network = keras.Model(image, outputs, name=f"{architecture}_{backbone}")
    if weights is not None:
        _check_choice("weights", weights, ("imagenet",))
        load_imagenet_weights(network, backbone)
    return network


def apply_backbone(image: Tensor, backbone: str, output_stride: int = 8) -> Tensor:
    """Applies a ResNet v1 to RGB images in 0..255.

    Layers are named as in `keras.applications`. Where the stride stops growing,
    the 3x3 convolutions of the stage are dilated instead, as in DeepLab. That
    includes the first block's, since in this ResNet the stride that is left out came
    before them. The reproduction of the paper at github.com/oscarkey/multitask-learning
    dilates only the first block of each of these stages.

    Feature `(i, j)` is centred on pixel `(output_stride * i, output_stride * j)`.

    Args:
        image: `(batch, height, width, 3)`.
        backbone: str, a key of `BACKBONES`.
        output_stride: 8, 16, or 32 for the original ResNet.

    Returns:
        Features `(batch, height / output_stride, width / output_stride,
        32 * width)`.
    """
    blocks, width, *_ = BACKBONES[backbone]
    x = ops.flip(image, axis=-1)  # the pretrained weights take BGR
    # Not a Normalization: its constants would become inputs of an ONNX file.
    offset = [-mean for mean in IMAGENET_BGR_MEAN]
    x = keras.layers.Rescaling(1.0, offset, name="normalization")(x)
    x = keras.layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = keras.layers.Conv2D(width, 7, strides=2, name="conv1_conv")(x)
    x = _apply_batch_norm(x, "conv1_bn")
    x = keras.layers.ReLU(name="conv1_relu")(x)
    x = keras.layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    stride, dilation = 4, 1
    for stage, num_blocks in enumerate(blocks):
        step = 1 if stage == 0 else 2
        if stride * step > output_stride:
            step, dilation = 1, dilation * 2
        stride *= step
        for block in range(num_blocks):
            x = apply_block(
                x,
                width * 2**stage,
                strides=step if block == 0 else 1,
                dilation=dilation,
                project=block == 0,
                name=f"conv{stage + 2}_block{block + 1}",
            )
    return x


def apply_block(
    x: Tensor, width: int, strides: int, dilation: int, project: bool, name: str
) -> Tensor:
    """Applies a bottleneck block: 1x1, 3x3 and 1x1 convolution, and a shortcut.

    Args:
        x: `(batch, h, w, channels)`.
        width: int. Channels of the first two convolutions, a quarter of the output's.
        strides: int, of the first convolution.
        dilation: int, of the 3x3 convolution.
        project: bool. Whether a 1x1 convolution takes the shortcut to the strides and
            channels of the output.
        name: str, the first part of the layers' names.

    Returns:
        `(batch, h / strides, w / strides, 4 * width)`.
    """
    shortcut = x
    if project:
        shortcut = keras.layers.Conv2D(
            4 * width, 1, strides=strides, name=f"{name}_0_conv"
        )(x)
        shortcut = _apply_batch_norm(shortcut, f"{name}_0_bn")
    x = keras.layers.Conv2D(width, 1, strides=strides, name=f"{name}_1_conv")(x)
    x = _apply_batch_norm(x, f"{name}_1_bn")
    x = keras.layers.ReLU(name=f"{name}_1_relu")(x)
    x = keras.layers.Conv2D(
        width, 3, padding="same", dilation_rate=dilation, name=f"{name}_2_conv"
    )(x)
    x = _apply_batch_norm(x, f"{name}_2_bn")
    x = keras.layers.ReLU(name=f"{name}_2_relu")(x)
    x = keras.layers.Conv2D(4 * width, 1, name=f"{name}_3_conv")(x)
    x = _apply_batch_norm(x, f"{name}_3_bn")
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.ReLU(name=f"{name}_out")(x)


def apply_mtl_head(
    x: Tensor, task: str, width: int, channels: int, image_size: Size
) -> Tensor:
    """Applies a head of `mtl`, resizing the features unless they have the image size
    already: `(batch, h, w, features)` to float32 `(batch, *image_size, channels)`."""
    if tuple(x.shape[1:3]) == tuple(image_size):
        conv = keras.layers.Conv2D(
            width, 3, padding="same", activation="relu", name=f"{task}_conv1"
        )
    else:
        conv = ResizeConv2D(
            width, 3, image_size, activation="relu", name=f"{task}_conv1"
        )
    x = conv(x)
    x = keras.layers.Conv2D(width, 1, activation="relu", name=f"{task}_conv2")(x)
    # Losses need float32 under every dtype policy.
    return keras.layers.Conv2D(channels, 1, dtype="float32", name=task)(x)


def apply_aspp(x: Tensor, width: int) -> Tensor:
    """Applies Atrous Spatial Pyramid Pooling.

    A 1x1 convolution, a 3x3 convolution at each of `ASPP_RATES` and the mean of the
    image through a 1x1 convolution stand side by side, each normalized and rectified.
    The last of these branches has a single value per image and channel, so a training
    batch of one image is normalized to zero there.

    Args:
        x: `(batch, h, w, channels)`.
        width: int. Channels of each of the five branches.

    Returns:
        `(batch, h, w, 5 * width)`.

    References:
     - [DeepLabv3, Chen et al., 2017](https://arxiv.org/abs/1706.05587), section 3.3
    """
    size = x.shape[1:3]
    conv = keras.layers.Conv2D(width, 1, use_bias=False, name="aspp_rate1_conv")
    branches = [_apply_batch_norm_relu(conv(x), "aspp_rate1")]
    for rate in ASPP_RATES:
        name = f"aspp_rate{rate}"
        conv = AtrousConv2D(width, 3, rate, use_bias=False, name=f"{name}_conv")
        branches.append(_apply_batch_norm_relu(conv(x), name))
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name="aspp_pool_mean")(x)
    conv = keras.layers.Conv2D(width, 1, use_bias=False, name="aspp_pool_conv")
    pooled = _apply_batch_norm_relu(conv(mean), "aspp_pool")
    branches.append(keras.layers.UpSampling2D(size, name="aspp_pool_repeat")(pooled))
    return keras.layers.Concatenate(name="aspp_concat")(branches)


def apply_kendall_head(
    x: Tensor, task: str, width: int, channels: int, image_size: Size
) -> Tensor:
    """Applies a head of `kendall`: 3x3 convolution, batch normalization and ReLU,
    1x1 convolution, resize; `(batch, h, w, features)` to float32
    `(batch, *image_size, channels)`.

    This follows the paper's main text, as does its reproduction at
    github.com/oscarkey/multitask-learning; the paper's appendix has a 1x1 in place of
    the 3x3 convolution. The main text is followed because, without the 3x3, nothing
    after the pyramid, whose taps are at least 12 features apart, would look at
    neighbouring features.
    """
    x = keras.layers.Conv2D(
        width, 3, padding="same", use_bias=False, name=f"{task}_conv1"
    )(x)
    x = _apply_batch_norm_relu(x, f"{task}_conv1")
    # Losses need float32 under every dtype policy.
    x = keras.layers.Conv2D(channels, 1, dtype="float32", name=f"{task}_conv2")(x)
    # Legacy sampling reads output pixel p at feature p / 8, and feature i is centred
    # on pixel 8 i. Half pixel centres would move the maps by 3.5 pixels, the aligned
    # corners of the reproduction by 0 pixels at the upper left up to 7 at the lower
    # right.
    return BilinearResize(image_size, dtype="float32", name=task)(x)


def load_imagenet_weights(network: keras.Model, backbone: str) -> None:
    """Copies the ImageNet weights of `keras.applications` into the backbone.

    Raises:
        UserError: if there are none for this backbone, or if they cannot be
            downloaded.
    """
    if backbone not in PRETRAINED:
        raise UserError(
            f"There are no ImageNet weights for the backbone {backbone!r}; "
            f"choose one of {', '.join(PRETRAINED)} or train it from scratch."
        )
    build = getattr(keras.applications, PRETRAINED[backbone])
    try:
        source = build(include_top=False, weights="imagenet")
    except Exception as error:  # Keras raises a bare Exception if offline
        raise UserError(
            f"The ImageNet weights of {backbone} could not be downloaded ({error}). "
            "Try again with a connection, put the file that it names into "
            "~/.keras/models, or train from scratch: --no-pretrained "
            "(`weights=None`)."
        ) from error
    for layer in source.layers:
        if layer.weights:
            network.get_layer(layer.name).set_weights(layer.get_weights())


def build_small_network(
    image_size: Size,
    num_classes: int = 10,
    tasks: Sequence[str] = ("class", "reconstruction"),
) -> keras.Model:
    """Builds an encoder with a classifier and a decoder on its code.

    Kernels and widths are those of the larger convolutional network of the Oxford
    reproduction: five convolutions and four halvings from 28x28 to a code of
    2x2x16; two dense layers for the class; for the image, four transposed
    convolutions with the sizes of the encoder in reverse, then a ReLU and a tanh.

    Two things differ. The 2x2 convolutions keep the size of their maps instead of
    losing a row and a column. The code is linear, since units after a ReLU die
    where it has few channels. Sides of 2 are halved no further. The code has one
    number for every twelve pixels, but at least 4 channels: 2x2x4 for 8x8.

    Args:
        image_size: `(height, width)` in pixels.
        num_classes: int. Channels of the output `class`.
        tasks: the outputs to build, from `"class"`, `"reconstruction"`.

    Returns:
        A functional `keras.Model` from grey images `(batch, height, width, 1)` in
        0..255 (uint8 or float) to a dict of float32 tensors: `class`, logits
        `(batch, num_classes)`, and `reconstruction`,
        `(batch, height, width, 1)` in 0..1.

    Raises:
        UserError: for an unknown task, or images smaller than 4x4.

    References:
     - [oscarkey/multitask-learning](https://github.com/oscarkey/multitask-learning),
       `multitask-learning/mnisttask/mnist_model.py`
    """
    for task in tasks:
        _check_choice("task", task, tasks_of("small_images"))
    if min(image_size) < 4:
        raise UserError(f"The images must be at least 4x4, not {image_size}.")

    image = keras.Input((*image_size, 1), name="image")
    maps = [keras.layers.Rescaling(1 / 255, name="normalize")(image)]
    x = _apply_conv(maps[0], 32, 3, "encoder_conv1")
    x = _apply_conv(x, 32, 3, "encoder_conv2")
    maps.append(_apply_pool(x, "encoder_pool1"))  # 28x28: 14x14x32
    x = _apply_conv(maps[-1], 32, 2, "encoder_conv3")
    x = _apply_conv(x, 16, 2, "encoder_conv4")
    maps.append(_apply_pool(x, "encoder_pool2"))  # 7x7x16
    maps.append(
        keras.layers.Conv2D(
            max(round(image_size[0] * image_size[1] / 49), 4),
            2,
            strides=_halving(maps[-1]),
            padding="same",
            name="encoder_conv5",
        )(maps[-1])  # 4x4x16
    )
    maps.append(_apply_pool(maps[-1], "code"))  # 2x2x16
    code = maps[-1]

    outputs = {}
    if "class" in tasks:
        x = keras.layers.Flatten(name="class_flatten")(code)
        x = keras.layers.Dense(128, activation="relu", name="class_dense")(x)
        # Losses need float32 under every dtype policy.
        outputs["class"] = keras.layers.Dense(
            num_classes, dtype="float32", name="class"
        )(x)
    if "reconstruction" in tasks:
        # The sizes before the code, each once, back to that of the image.
        sizes = list(dict.fromkeys(x.shape[1:3] for x in maps))[-2::-1]
        x = code
        for i, (size, filters) in enumerate(zip(sizes[:-1], (16, 8, 4)), 1):
            x = _apply_unpool(x, filters, size, f"decoder_conv{i}")
        x = _apply_unpool(x, 1, sizes[-1], f"decoder_conv{len(sizes)}")
        outputs["reconstruction"] = keras.layers.Activation(
            "tanh", dtype="float32", name="reconstruction"
        )(x)
    return keras.Model(image, outputs, name="small_images")


def _halving(x):
    """The strides that halve a map, but leave a side of 2 as it is."""
    return tuple(2 if side > 2 else 1 for side in x.shape[1:3])


def _apply_conv(x, filters, kernel_size, name):
    return keras.layers.Conv2D(
        filters, kernel_size, padding="same", activation="relu", name=name
    )(x)


def _apply_pool(x, name):
    return keras.layers.MaxPooling2D(_halving(x), padding="same", name=name)(x)


def _apply_unpool(x, filters, size, name):
    """Undoes the halving of a map of `size` with a transposed convolution."""
    strides = tuple(2 if side > old else 1 for side, old in zip(size, x.shape[1:3]))
    # A side of 2n - 1 is the middle of 2n + 1, which a kernel of 3 makes from n.
    margins = tuple(side % 2 for side in size)
    x = keras.layers.Conv2DTranspose(
        filters,
        tuple(map(sum, zip(strides, margins))),
        strides=strides,
        activation="relu",
        name=name,
    )(x)
    if any(margins):
        x = keras.layers.Cropping2D(margins, name=f"{name}_crop")(x)
    return x


def _apply_batch_norm_relu(x, name):
    x = _apply_batch_norm(x, f"{name}_bn")
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _apply_batch_norm(x, name):
    return FusedBatchNormalization(epsilon=1.001e-5, name=name)(x)


def _check_choice(name, value, choices):
    if value not in choices:
        raise UserError(f"Unknown {name} {value!r}; choose from {', '.join(choices)}.")
