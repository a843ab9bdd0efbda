"""Bilinear resizing, alone or fused with the convolution after it; dilated convolution;
and batch normalization by TensorFlow's fused kernel."""

import functools
from numbers import Integral
from typing import Any

import keras
import numpy as np
from keras import ops

from mtl_keras.hints import Size, Tensor


@keras.saving.register_keras_serializable(package="mtl_keras")
class BilinearResize(keras.layers.Layer):
    """Resizes images bilinearly, as two products with small matrices.

    Bilinear interpolation is linear and separable: with one interpolation
    matrix per axis, `output[b, :, :, c] = R @ input[b, :, :, c] @ C.T`, where
    `R` is `(H, h)` and `C` is `(W, w)`. Nothing is smoothed before shrinking.
    Inputs in half precision are interpolated in float32 and rounded once.

    Args:
        target_size: pair of int. Height and width of the output.
        half_pixel_centers: bool. Where output pixel `i` looks in the input,
            with `scale` the input size over the output size: at `i * scale`
            (`False`, the first TensorFlow releases) or at
            `(i + 0.5) * scale - 0.5` (`True`, `tf.image.resize`,
            `jax.image.resize` and `keras.ops.image.resize`). Defaults to
            `False`.
        **kwargs: passed on to `keras.layers.Layer`.

    Call arguments:
        images: tensor `(batch, h, w, channels)` whose `h` and `w` are known
            when the layer is built.

    Returns:
        Tensor `(batch, H, W, channels)`.

    Raises:
        ValueError: for a `target_size` that is not a pair of positive integers, or
            inputs of unknown size.

    Example:
    >>> layer = BilinearResize((1, 4))
    >>> image = ops.reshape(ops.array([0.0, 2.0]), (1, 1, 2, 1))
    >>> ops.convert_to_numpy(layer(image)).ravel().tolist()
    [0.0, 1.0, 2.0, 2.0]
    """

    def __init__(
        self, target_size: Size, half_pixel_centers: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.target_size = _pair("target_size", target_size)
        self.half_pixel_centers = half_pixel_centers
        self.input_spec = keras.InputSpec(ndim=4)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        _static_size(input_shape)

    def call(self, images: Tensor) -> Tensor:
        resized = _resize(images, self.target_size, self.half_pixel_centers)
        return ops.cast(resized, self.compute_dtype)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return (input_shape[0], *self.target_size, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "target_size": self.target_size,
            "half_pixel_centers": self.half_pixel_centers,
        }


@keras.saving.register_keras_serializable(package="mtl_keras")
class ResizeConv2D(keras.layers.Layer):
    """Convolves a bilinearly enlarged image without enlarging its channels.

    It is the same function, with the same weights and gradients, as

        Conv2D(filters, kernel_size, padding="same")(
            BilinearResize(target_size, half_pixel_centers)(images)
        )

    Resizing is linear and acts on pixels; each tap of the kernel is linear and
    acts on channels. The two therefore commute. With `R` and `C` the interpolation
    matrices of rows and columns, and `S_u` the shift by the offset of tap `u`,
    which moves zeros in at the border as SAME padding does,

        conv(resize(x)) = sum_uv (S_u R) (x @ kernel[u, v]) (S_v C).T

    All `x @ kernel[u, v]` are one product on the small image; the sums over
    `u` and `v` are part of one product along the rows and one along the
    columns. From 16x32 to 128x256 that is 64 times fewer products with the
    kernel. When the target is no larger than the input, resizing first costs
    less, and the layer does that.

    Only the product with the kernel is computed in half precision. Interpolation,
    sum and bias are float32 and rounded once.

    Args:
        filters: int. Number of output channels.
        kernel_size: odd int or pair of odd int. Height and width of the kernel.
        target_size: pair of int. Height and width of the output.
        half_pixel_centers: bool. Sampling of the resize, as in
            `BilinearResize`. Defaults to `False`.
        activation, use_bias, kernel_initializer, bias_initializer,
        kernel_regularizer, bias_regularizer, activity_regularizer,
        kernel_constraint, bias_constraint: as in `keras.layers.Conv2D`. The
            weights have the names and shapes they have there.
        **kwargs: passed on to `keras.layers.Layer`.

    Call arguments:
        images: tensor `(batch, h, w, channels)` whose `h` and `w` are known
            when the layer is built.

    Returns:
        Tensor `(batch, H, W, filters)`.

    Raises:
        ValueError: for sizes that are not positive integers, an even `kernel_size`,
            or inputs of unknown size.

    Example:
    >>> layer = ResizeConv2D(8, 3, target_size=(128, 256), activation="relu")
    >>> layer(ops.ones((2, 16, 32, 4))).shape == (2, 128, 256, 8)
    True
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Size,
        target_size: Size,
        half_pixel_centers: bool = False,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        if filters <= 0:
            raise ValueError(f"`filters` must be positive. Received: {filters}")
        self.filters = filters
        self.kernel_size = _pair("kernel_size", kernel_size)
        if not all(size % 2 for size in self.kernel_size):
            raise ValueError(
                "`kernel_size` must be odd in both directions, so that the kernel "
                f"has a centre. Received: kernel_size={kernel_size}"
            )
        self.target_size = _pair("target_size", target_size)
        self.half_pixel_centers = half_pixel_centers
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.input_spec = keras.InputSpec(ndim=4)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        _static_size(input_shape)
        channels = input_shape[-1]
        self.input_spec = keras.InputSpec(ndim=4, axes={-1: channels})
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, channels, self.filters),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.filters,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def call(self, images: Tensor) -> Tensor:
        height, width = _static_size(images.shape)
        if np.prod(self.target_size) > height * width:
            outputs = self._convolve_then_resize(images)
        else:
            outputs = self._resize_then_convolve(images)
        if self.use_bias:
            outputs = ops.add(outputs, ops.cast(self.bias, outputs.dtype))
        return self.activation(ops.cast(outputs, self.compute_dtype))

    def _convolve_then_resize(self, images):
        height, width = _static_size(images.shape)
        rows, columns = self.kernel_size
        channels = images.shape[-1]
        kernel = ops.transpose(self.kernel, (2, 0, 1, 3))
        taps = ops.matmul(
            ops.reshape(images, (-1, channels)), ops.reshape(kernel, (channels, -1))
        )
        # Each pixel becomes a block of `rows` by `columns` pixels, one per tap.
        # This map is the one to transpose, because it is the smallest.
        taps = ops.reshape(taps, (-1, height, width, rows, columns, self.filters))
        taps = ops.transpose(taps, (0, 1, 3, 2, 4, 5))
        taps = ops.reshape(taps, (-1, height * rows, width * columns, self.filters))
        return _interpolate(
            taps,
            _tap_matrix(height, self.target_size[0], rows, self.half_pixel_centers),
            _tap_matrix(width, self.target_size[1], columns, self.half_pixel_centers),
        )

    def _resize_then_convolve(self, images):
        images = _resize(images, self.target_size, self.half_pixel_centers)
        return ops.conv(
            ops.cast(images, self.compute_dtype),
            self.kernel,
            padding="same",
            data_format="channels_last",
        )

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return (input_shape[0], *self.target_size, self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "target_size": self.target_size,
            "half_pixel_centers": self.half_pixel_centers,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "activity_regularizer": keras.regularizers.serialize(
                self.activity_regularizer
            ),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }


@keras.saving.register_keras_serializable(package="mtl_keras")
class AtrousConv2D(keras.layers.Conv2D):
    """Convolves with a dilated kernel, without multiplying the padding.

    It is the same function, with the same weights and gradients, as

        Conv2D(filters, kernel_size, padding="same", dilation_rate=dilation_rate)

    With `S_uv` the shift by the offset of tap `u, v`, which moves zeros in at the
    border as SAME padding does,

        conv(x) = sum_uv S_uv (x @ kernel[u, v])

    and each product is computed only for the pixels that the shift leaves inside the
    image. On 16x32 pixels a 3x3 kernel at rate 12 then costs 3.4 products per pixel
    instead of 9; at rate 24, where the taps above and below meet nothing but
    padding, 1.5; and at rate 36 it is a 1x1 convolution. On CPUs, TensorFlow's
    dilated convolution takes much longer still at such rates; at rates up to 4 it is
    about as fast as this layer.

    Only the products are computed in half precision. They and their gradients are
    added up in float32, and the sum is rounded.

    Args:
        filters: int. Number of output channels.
        kernel_size: odd int or pair of odd int. Height and width of the kernel.
        dilation_rate: int or pair of int. Distance in pixels between the taps.
            Defaults to `1`.
        **kwargs: passed on to `keras.layers.Conv2D`. Strides and groups must be 1,
            the padding `"same"` and the channels last, as they are by default.

    Call arguments:
        images: tensor `(batch, h, w, channels)` whose `h` and `w` are known
            when the layer is built.

    Returns:
        Tensor `(batch, h, w, filters)`.

    Raises:
        ValueError: for an even `kernel_size`, for other strides, groups, padding or
            data format, or for inputs of unknown size.

    Example:
    >>> layer = AtrousConv2D(8, 3, dilation_rate=12)
    >>> layer(ops.ones((2, 16, 32, 4))).shape == (2, 16, 32, 8)
    True
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Size,
        dilation_rate: int | Size = 1,
        **kwargs: Any,
    ) -> None:
        kwargs = {"padding": "same", "data_format": "channels_last", **kwargs}
        super().__init__(filters, kernel_size, dilation_rate=dilation_rate, **kwargs)
        if not all(size % 2 for size in self.kernel_size):
            raise ValueError(
                "`kernel_size` must be odd in both directions, so that the kernel "
                f"has a centre. Received: kernel_size={kernel_size}"
            )
        required = {
            "strides": (1, 1),
            "groups": 1,
            "padding": "same",
            "data_format": "channels_last",
        }
        for name, value in required.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"`{name}` must be {value!r}. Received: {name}={kwargs[name]!r}"
                )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        _static_size(input_shape)
        super().build(input_shape)

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        height, width = _static_size(inputs.shape)
        channels = inputs.shape[-1]
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        inputs = ops.cast(inputs, dtype)  # gradients, too, are added up in this dtype
        # One unstack, since the gradient of each slice is as large as the kernel.
        taps = ops.unstack(ops.reshape(kernel, (-1, channels, self.filters)))
        shifted = []
        for (u, v), tap in zip(np.ndindex(self.kernel_size), taps, strict=True):
            dy = (u - self.kernel_size[0] // 2) * self.dilation_rate[0]
            dx = (v - self.kernel_size[1] // 2) * self.dilation_rate[1]
            if abs(dy) >= height or abs(dx) >= width:
                continue  # this tap sees nothing but padding
            top, bottom, left, right = max(-dy, 0), max(dy, 0), max(-dx, 0), max(dx, 0)
            seen = inputs[:, bottom : height - top, right : width - left]
            size = seen.shape[1:3]
            seen = ops.cast(ops.reshape(seen, (-1, channels)), self.compute_dtype)
            product = ops.reshape(ops.matmul(seen, tap), (-1, *size, self.filters))
            padding = ((0, 0), (top, bottom), (left, right), (0, 0))
            shifted.append(ops.pad(ops.cast(product, dtype), padding))
        return ops.cast(functools.reduce(ops.add, shifted), self.compute_dtype)


@keras.saving.register_keras_serializable(package="mtl_keras")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Normalizes batches as Keras does, by TensorFlow's fused kernel.

    It is the same function, with the same arguments, weights and gradients, as
    `keras.layers.BatchNormalization`. On TensorFlow, that takes about seventy
    operations per training step; this takes one, and one for its gradient. The kernel
    reads and writes half precision, of which Keras makes float32 copies.

    TensorFlow's kernel returns the variance that estimates the population's, with
    `n - 1` in the denominator. The moving variance is Keras's, with `n`.

    Keras's own code runs on other backends, with a mask, in float64, with `renorm`,
    `synchronized` or an `axis` other than the last, without `center` or `scale`, with
    an `epsilon` below the 1e-5 that cuDNN asks for, and on inputs that are not 4-D.

    Args:
        **kwargs: passed on to `keras.layers.BatchNormalization`.

    Call arguments:
        inputs, training, mask: as in `keras.layers.BatchNormalization`.

    Returns:
        Tensor of the shape of `inputs`.

    Example:
    >>> layer = FusedBatchNormalization(momentum=0.5)
    >>> images = ops.reshape(ops.array([1.0, 3.0]), (1, 1, 2, 1))
    >>> ops.convert_to_numpy(layer(images, training=True)).ravel().round(2).tolist()
    [-1.0, 1.0]
    >>> ops.convert_to_numpy(layer.moving_mean).tolist()
    [1.0]
    """

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        if mask is not None or not self._suits_the_kernel(inputs):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf  # here only: the library runs without it

        def normalize(*moments, is_training):
            return tf.compat.v1.nn.fused_batch_norm(
                inputs,
                ops.cast(self.gamma, "float32"),
                ops.cast(self.beta, "float32"),
                *moments,
                epsilon=self.epsilon,
                is_training=is_training,
            )

        moving_mean = ops.cast(self.moving_mean, "float32")
        moving_variance = ops.cast(self.moving_variance, "float32")
        if not (training and self.trainable):
            return normalize(moving_mean, moving_variance, is_training=False)[0]
        outputs, mean, variance = normalize(is_training=True)
        channels, size = inputs.shape[-1], inputs.shape.num_elements()
        if not size:  # unknown, or an empty batch, whose statistics are NaN
            size = tf.cast(tf.size(inputs, out_type=tf.int64), tf.float32)
        # Exactly 0 for a single pixel, for which kernels may return NaN.
        variance = tf.math.multiply_no_nan(variance, 1.0 - channels / size)
        for moving, old, new in (
            (self.moving_mean, moving_mean, mean),
            (self.moving_variance, moving_variance, variance),
        ):
            moving.assign(old * self.momentum + new * (1.0 - self.momentum))
        return outputs

    def _suits_the_kernel(self, inputs):
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.center
            and self.scale
            and not self.renorm
            and not self.synchronized
            and self.epsilon >= 1e-5
            and self.compute_dtype in ("float16", "bfloat16", "float32")
            and inputs.dtype == self.compute_dtype
        )


def _resize(images, target_size, half_pixel_centers):
    """Resizes `(batch, h, w, channels)`; the result may be float32 (below)."""
    height, width = _static_size(images.shape)
    if (height, width) == target_size:
        return images
    return _interpolate(
        images,
        _tap_matrix(height, target_size[0], 1, half_pixel_centers),
        _tap_matrix(width, target_size[1], 1, half_pixel_centers),
    )


def _interpolate(images, row_matrix, column_matrix):
    """Multiplies `(batch, h, w, channels)` by matrices `(H, h)` and `(W, w)`.

    Interpolation weights are seldom exact in half precision, and the product
    with the first matrix would be rounded once more. Both products are therefore
    computed in float32, or in float64 if the images are.
    """
    dtype = keras.backend.result_type(images.dtype, "float32")
    row_count, height = row_matrix.shape
    column_count, width = column_matrix.shape
    channels = images.shape[-1]
    images = ops.reshape(ops.cast(images, dtype), (-1, width, channels))
    images = _matmul_each(column_matrix, images)  # (batch * h, W, channels)
    images = ops.reshape(images, (-1, height, column_count * channels))
    images = _matmul_each(row_matrix, images)  # (batch, H, W * channels)
    return ops.reshape(images, (-1, row_count, column_count, channels))


def _matmul_each(matrix, stack):
    # Repeating the small matrix makes this a batched product. If it were broadcast,
    # XLA would fold the batch into the columns and transpose the large operands.
    matrix = ops.convert_to_tensor(matrix, dtype=stack.dtype)
    matrix = ops.broadcast_to(matrix, (ops.shape(stack)[0], *matrix.shape))
    return ops.matmul(matrix, stack)


@functools.lru_cache(maxsize=256)
def _tap_matrix(source, target, taps, half_pixel_centers):
    """Resizes one axis and adds up the taps of a kernel along it.

    Returns an array `(target, source * taps)`. Its row `i` adds, over the taps
    `t`, the pixel `i + t - taps // 2` of the resized tap `t`; pixels outside
    are zero. With `taps=1` it is the interpolation matrix.
    """
    positions = np.arange(target) * (source / target)
    if half_pixel_centers:
        positions = (np.arange(target) + 0.5) * (source / target) - 0.5
    positions = np.clip(positions, 0, source - 1)  # repeats the border pixels
    lower = np.floor(positions).astype(int)
    upper = np.minimum(lower + 1, source - 1)
    resize = np.zeros((target, source))
    np.add.at(resize, (np.arange(target), lower), 1 - (positions - lower))
    np.add.at(resize, (np.arange(target), upper), positions - lower)

    padded = np.pad(resize, ((taps // 2, taps // 2), (0, 0)))
    shifted = [padded[tap : tap + target] for tap in range(taps)]
    return np.stack(shifted, axis=-1).reshape(target, source * taps)


def _pair(name, value):
    pair = tuple(value) if np.iterable(value) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, Integral) and n > 0 for n in pair):
        raise ValueError(
            f"`{name}` must be a pair of positive integers (height, width). "
            f"Received: {name}={value}"
        )
    return int(pair[0]), int(pair[1])


def _static_size(shape):
    height, width = shape[1:3]
    if height is None or width is None:
        raise ValueError(
            "Height and width of the input must be known, because the layer is "
            f"built for them. Received: shape={tuple(shape)}"
        )
    return height, width
