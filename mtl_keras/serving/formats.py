"""The formats that a trained network leaves in."""

import contextlib
import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable

import keras
import numpy as np

from mtl_keras.cityscapes import label_id_table, labels_of
from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike
from mtl_keras.serving.export_directory import check_replaceable, replace_export
from mtl_keras.serving.model_card import ModelFacts, format_card
from mtl_keras.tasks import tasks_of


@dataclasses.dataclass(frozen=True)
class Format:
    """What there is to know about a format.

    Attributes:
        title: str.
        write: function of the serving model, a directory and `ModelFacts`.
        in_float32: bool, whether what runs it lacks operations in 16-bit floats.
        usage: str, how it is loaded and called, Markdown.
        packages: names of the packages that writing it takes, and the extra of this
            package that installs them.
    """

    title: str
    write: Callable[[keras.Model, pathlib.Path, ModelFacts], None]
    usage: str
    in_float32: bool = False
    packages: tuple[str, ...] = ()
    extra: str = ""


def export(
    network: keras.Model,
    path: PathLike,
    format: str = "tf_saved_model",
    facts: ModelFacts | None = None,
) -> None:
    """Exports a network for programs that have neither Keras nor this package.

    The directory holds the network, a model card (`README.md`) and a list of its files.
    All formats take and return what `build_serving_model` says, by name. The loss
    weighting is not part of the network, so no sigma is exported.

    Args:
        network: a model of `build_network` or `build_small_network`.
        path: directory to write; an earlier export is replaced. It appears when it
            is complete.
        format: str. `"tf_saved_model"`: its signature `serving_default` takes images,
            `from_bytes` PNG and JPEG files, see `build_from_bytes`. `"onnx"`:
            `model.onnx`. `"litert"`: `model.tflite`; `"litert_float16"`: the same
            with its weights in float16.
        facts: optional `ModelFacts`, for the model card. The classes of `from_bytes`
            are label ids if they name a label set, else class indices.

    Raises:
        ValueError: for an unknown format, or a label set of another number of classes.
        UserError: if `path` holds anything but an earlier export or cannot be written,
            or if a package is not installed.
    """
    if format not in FORMATS:
        raise ValueError(
            f"format must be one of {', '.join(FORMATS)}. Received: {format!r}"
        )
    facts = facts or ModelFacts()
    _check_labels(network, facts)
    chosen, path = FORMATS[format], pathlib.Path(path).absolute()
    check_format(format)
    check_replaceable(path)
    if chosen.in_float32:
        network = rebuild_in_float32(network)
    model = build_serving_model(network)
    with replace_export(path, format=format, label_set=facts.label_set) as directory:
        chosen.write(model, directory, facts)
        card = format_card(model, facts, chosen.title, chosen.usage)
        (directory / "README.md").write_text(card, encoding="utf-8")


def check_format(format: str) -> None:
    """Raises `UserError` if a package that a format needs is not installed."""
    if keras.backend.backend() != "tensorflow" and format != "tf_saved_model":
        raise UserError(
            f"The format {format} is written by TensorFlow; export with "
            "KERAS_BACKEND=tensorflow."
        )
    for package in FORMATS[format].packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"The package {package} is not installed; the format {format} needs "
                f"pip install 'mtl-keras[{FORMATS[format].extra}]'."
            )


def _check_labels(network, facts):
    if facts.label_set and "semantic" in network.output:
        channels, count = (
            network.output["semantic"].shape[-1],
            len(labels_of(facts.label_set)),
        )
        if channels != count:
            raise ValueError(
                f"The label set {facts.label_set!r} has {count} classes, the network "
                f"{channels}."
            )


def build_serving_model(network: keras.Model) -> keras.Model:
    """The network as it is served: uint8 in, class probabilities out.

    Args:
        network: a model of `build_network` or `build_small_network`.

    Returns:
        A functional `keras.Model` from images `(batch, H, W, channels)` uint8 to a
        dict of what the network returns, float32, with class probabilities in place
        of the logits: `semantic` `(batch, H, W, num_classes)`, `class` `(batch,
        num_classes)`.
    """
    image = keras.Input(network.input.shape[1:], dtype="uint8", name="image")
    outputs = dict(network(image))
    for task in {"semantic", "class"} & set(outputs):
        outputs[task] = keras.layers.Softmax(dtype="float32", name="probabilities")(
            outputs[task]
        )
    return keras.Model(image, outputs)


def rebuild_in_float32(network: keras.Model) -> keras.Model:
    """A network of the same weights that computes in float32, as its weights are.

    The tools that run ONNX and LiteRT lack most operations in bfloat16 and float16. A
    network that was trained in float32 is returned as it is.
    """
    layers = [one for one in network.layers if isinstance(one, keras.layers.Layer)]
    policies = {layer.dtype_policy.name for layer in layers}
    if policies <= {"float32"}:
        return network

    def rebuild(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer):  # not of operations such as a flip
            config["dtype"] = "float32"
        return type(layer).from_config(config)

    rebuilt = keras.models.clone_model(network, clone_function=rebuild)
    rebuilt.set_weights(network.get_weights())
    return rebuilt


@contextlib.contextmanager
def _errors_as_os_errors():
    """TensorFlow's own errors of files, as Python's."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(None, error.message) from error


def _write_saved_model(model, directory, facts):
    import tensorflow as tf

    from mtl_keras.serving.from_bytes import build_from_bytes

    _, *image_size, channels = model.input.shape
    archive = keras.export.ExportArchive()
    specification = [tf.TensorSpec(model.input.shape, tf.uint8, "image")]
    serve = archive.track_and_add_endpoint("serve", model, specification)
    tasks = [task for task in tasks_of("scenes") if task in model.output]
    if tasks and channels == 3:
        if facts.label_set:
            label_ids = label_id_table(facts.label_set)
        else:
            label_ids = np.arange(256)
        archive.add_endpoint(
            "from_bytes", build_from_bytes(serve, tuple(image_size), tasks, label_ids)
        )
    with _errors_as_os_errors():
        archive.write_out(str(directory), verbose=False)


def _write_onnx(model, directory, facts):
    model(np.zeros((1, *model.input.shape[1:]), np.uint8))  # Keras wants it called
    model.export(str(directory / "model.onnx"), format="onnx", verbose=False)


def _write_litert(model, directory, facts):
    model.export(str(directory / "model.tflite"), format="litert", verbose=False)


def _write_litert_float16(model, directory, facts):
    import tensorflow as tf

    model.export(
        str(directory / "model.tflite"),
        format="litert",
        verbose=False,
        optimizations=[tf.lite.Optimize.DEFAULT],
        target_spec={"supported_types": [tf.float16]},
    )


_USE_SAVED_MODEL = """With TensorFlow alone:

    model = tf.saved_model.load(".")
    outputs = model.signatures["serving_default"](image=images)  # uint8

The signature `from_bytes`, if there is one, takes PNG and JPEG files of any size
(`picture_bytes`, strings) and returns maps at their own sizes: `classes`, `offsets`,
`disparity`, and `size`; beyond its size, a smaller picture of a batch has 0."""

_USE_ONNX = """With onnxruntime:

    session = onnxruntime.InferenceSession("model.onnx")
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {"image": images})))  # uint8"""

_USE_LITERT = """With ai-edge-litert:

    runner = Interpreter("model.tflite").get_signature_runner()
    outputs = runner(image=images)  # uint8, a dict by name"""

FORMATS = {
    "tf_saved_model": Format(
        "a TensorFlow SavedModel", _write_saved_model, _USE_SAVED_MODEL
    ),
    "onnx": Format(
        "ONNX",
        _write_onnx,
        _USE_ONNX,
        in_float32=True,
        packages=("onnx", "tf2onnx"),
        extra="onnx",
    ),
    "litert": Format("LiteRT (TFLite)", _write_litert, _USE_LITERT, in_float32=True),
    "litert_float16": Format(
        "LiteRT (TFLite) with float16 weights",
        _write_litert_float16,
        _USE_LITERT,
        in_float32=True,
    ),
}
