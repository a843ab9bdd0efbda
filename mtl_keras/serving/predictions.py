"""Predicted maps as files in the formats of Cityscapes."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mtl_keras.cityscapes import encode_disparity, label_id_table
from mtl_keras.png import encode_png


def write_predictions(
    directory: pathlib.Path,
    frame_ids: Sequence[str],
    predictions: Mapping[str, np.ndarray],
    label_set: str,
) -> None:
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
    label_ids = label_id_table(label_set)
    for i, frame_id in enumerate(frame_ids):
        if "semantic" in predictions:
            ids = label_ids[predictions["semantic"][i].argmax(-1)]
            (directory / f"{frame_id}_labelIds.png").write_bytes(encode_png(ids))
        if "instance" in predictions:
            np.save(directory / f"{frame_id}_offsets.npy", predictions["instance"][i])
        if "depth" in predictions:
            coded = encode_disparity(predictions["depth"][i, ..., 0])
            (directory / f"{frame_id}_disparity.png").write_bytes(encode_png(coded))
