"""Export of a trained network for serving."""

import pathlib
import shutil

import keras
import numpy as np

from mtl_keras.cityscapes import LABEL_SETS
from mtl_keras.frames import encode_png


def build_serving_model(network):
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


def export_saved_model(network, path):
    """Writes a SavedModel that needs neither Keras nor this project to load.

    Its only endpoint takes and returns what `build_serving_model` says, and is
    `tf.saved_model.load(path).serve` as well as the signature `serving_default`.
    The loss weighting is no part of the network, so no sigma is exported.

    Args:
        network: a model of `build_network`.
        path: directory to write. It appears when it is complete.
    """
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    build_serving_model(network).export(partial, verbose=False)
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)


def write_predictions(directory, frame_ids, predictions, label_set):
    """Writes the predicted maps of a batch as files.

    `{id}_labelIds.png` holds label ids (8 bit), `{id}_disparity.png` disparity in
    the Cityscapes encoding, `256 * d + 1` with d in pixels of this width (16 bit),
    `{id}_offsets.npy` the `(dy, dx)` to the instance centre, `(H, W, 2)` float32.

    Args:
        directory: where to, made if need be.
        frame_ids: list of str.
        predictions: dict of arrays as the network returns them.
        label_set: str, a key of `cityscapes.LABEL_SETS`.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    label_ids = np.array([label.id for label in LABEL_SETS[label_set]], np.uint8)
    for i, frame_id in enumerate(frame_ids):
        if "semantic" in predictions:
            ids = label_ids[predictions["semantic"][i].argmax(-1)]
            (directory / f"{frame_id}_labelIds.png").write_bytes(encode_png(ids))
        if "instance" in predictions:
            np.save(directory / f"{frame_id}_offsets.npy", predictions["instance"][i])
        if "depth" in predictions:
            coded = np.rint(predictions["depth"][i, ..., 0] * 256.0) + 1.0
            coded = np.clip(coded, 1, 2**16 - 1).astype(np.uint16)
            (directory / f"{frame_id}_disparity.png").write_bytes(encode_png(coded))
