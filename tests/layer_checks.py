"""One helper that puts any layer through what Keras expects of it."""

import inspect

import keras
import numpy as np
from keras import ops, tree


def check_layer(
    layer_class,
    init_kwargs,
    input_shape,
    expected_weights=None,
    expected_output_shape=None,
    expected_dtype=None,
    tmp_path=None,
):
    """Checks config, serialisation, weights, shapes and dtypes of a layer.

    Args:
        layer_class: the layer's class.
        init_kwargs: dict. Its constructor arguments, `dtype` excepted.
        input_shape: tuple, batch included, or dict of them. `()` is a scalar.
        expected_weights: dict of weight name to shape, or `None` for no check.
        expected_output_shape: tuple, or `None` for no check.
        expected_dtype: str. Dtype of the output under every policy; `None` for
            the compute dtype of the policy.
        tmp_path: path. Where to save and reload a model with the layer; `None`
            leaves that check out.

    Returns:
        The layer, built, in float32.
    """
    inputs = _map_shapes(_random_tensor, input_shape)
    layer = layer_class(**init_kwargs)
    outputs = layer(inputs)

    if expected_weights is not None:
        weights = {weight.name: tuple(weight.shape) for weight in layer.weights}
        assert weights == expected_weights
        assert len(layer.weights) == len(expected_weights), "a name occurs twice"
    if expected_output_shape is not None:
        assert tuple(outputs.shape) == tuple(expected_output_shape)

    _check_config(layer, inputs, outputs)
    _check_shapes(layer, input_shape, inputs, outputs)
    _check_dtypes(layer_class, init_kwargs, inputs, expected_dtype)
    if tmp_path is not None:
        _check_reload(layer, input_shape, inputs, outputs, tmp_path)
    return layer


def _check_config(layer, inputs, outputs):
    config = layer.get_config()
    for parameter in inspect.signature(type(layer)).parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            assert parameter.name in config, f"{parameter.name} is not in the config"
    assert type(layer).from_config(config).get_config() == config
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert type(restored) is type(layer)
    assert restored.get_config() == config
    restored(inputs)
    restored.set_weights(layer.get_weights())
    _assert_equal(restored(inputs), outputs)


def _check_shapes(layer, input_shape, inputs, outputs):
    assert tuple(layer.compute_output_shape(input_shape)) == tuple(outputs.shape)
    symbolic = layer(_map_shapes(lambda s: keras.Input(batch_shape=s), input_shape))
    assert tuple(symbolic.shape) == tuple(outputs.shape)
    assert symbolic.dtype == keras.backend.standardize_dtype(outputs.dtype)
    if () in _shapes(input_shape):
        return
    model = _dynamic_batch_model(layer, input_shape)
    assert tuple(model.output_shape) == (None, *outputs.shape[1:])
    _assert_equal(model.predict_on_batch(inputs), outputs)
    first = tree.map_structure(lambda tensor: tensor[:1], inputs)
    assert tuple(model.predict_on_batch(first).shape) == (1, *outputs.shape[1:])


def _check_dtypes(layer_class, init_kwargs, inputs, expected_dtype):
    for policy in ("mixed_float16", "mixed_bfloat16"):
        layer = layer_class(**init_kwargs, dtype=policy)
        output_dtype = keras.backend.standardize_dtype(layer(inputs).dtype)
        assert output_dtype == (expected_dtype or layer.compute_dtype), policy
        for weight in layer.weights:
            assert weight.dtype == "float32", f"{weight.path} under {policy}"


def _check_reload(layer, input_shape, inputs, outputs, tmp_path):
    if () in _shapes(input_shape):
        symbolic = _map_shapes(lambda s: keras.Input(batch_shape=s), input_shape)
        model = keras.Model(symbolic, layer(symbolic))
    else:
        model = _dynamic_batch_model(layer, input_shape)
    path = tmp_path / "model.keras"
    model.save(path)
    _assert_equal(keras.saving.load_model(path)(inputs), outputs)


def _dynamic_batch_model(layer, input_shape):
    symbolic = _map_shapes(lambda s: keras.Input(shape=s[1:]), input_shape)
    return keras.Model(symbolic, layer(symbolic))


def _map_shapes(function, shapes):
    if isinstance(shapes, dict):
        return {name: function(shape) for name, shape in shapes.items()}
    return function(shapes)


def _shapes(shapes):
    return list(shapes.values()) if isinstance(shapes, dict) else [shapes]


def _random_tensor(shape):
    values = np.random.default_rng(0).uniform(size=shape)
    return ops.convert_to_tensor(values.astype("float32"))


def _assert_equal(actual, expected):
    np.testing.assert_allclose(
        ops.convert_to_numpy(actual),
        ops.convert_to_numpy(expected),
        rtol=1e-5,
        atol=1e-5,
    )
