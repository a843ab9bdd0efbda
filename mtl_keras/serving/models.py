"""Trained networks behind one call: pictures of any size in, outputs by task out."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from mtl_keras.cityscapes import LABEL_SETS
from mtl_keras.data.frames import resize_smoothly
from mtl_keras.errors import UserError
from mtl_keras.hints import Size
from mtl_keras.serving.saved_model import build_serving_model


class ServedModel:
    """A network as `build_serving_model` makes it, or a SavedModel of one.

    Args:
        serve: function from images `(batch, h, w, 3)` uint8 to a dict of arrays by
            task.
        image_size: `(h, w)`.
        channels: dict. Task to the number of its output's channels.
        source: str, what it is called in messages.

    Raises:
        UserError: if it is not a network of street scenes.
    """

    def __init__(
        self,
        serve: Callable[[np.ndarray], Mapping[str, np.ndarray]],
        image_size: Size,
        channels: Mapping[str, int],
        source: str,
    ) -> None:
        sizes = {len(labels): name for name, labels in LABEL_SETS.items()}
        if not {"semantic", "instance", "depth"} & set(channels):
            raise UserError(
                f"{source} is not a model of street scenes: it returns "
                f"{', '.join(channels) or 'nothing by name'}."
            )
        if "semantic" in channels and channels["semantic"] not in sizes:
            raise UserError(
                f"{source} has {channels['semantic']} classes, which are not those of "
                f"Cityscapes ({' or '.join(map(str, sizes))})."
            )
        self._serve = serve
        self.image_size = image_size
        self.tasks = tuple(channels)
        self.label_set = sizes.get(channels.get("semantic", -1), "train_ids")

    def predict(self, pictures: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """The outputs by task for each of a batch of pictures `(H, W, 3)` uint8 RGB,
        which may have sizes of their own; there may be none."""
        if not pictures:
            return []
        images = [resize_smoothly(picture, self.image_size) for picture in pictures]
        outputs = self._serve(np.stack(images))
        return [
            {task: np.asarray(values[i]) for task, values in outputs.items()}
            for i in range(len(pictures))
        ]


def serve_network(network: keras.Model, source: str) -> ServedModel:
    """A network of `build_network`, served."""
    model = build_serving_model(network)
    _, height, width, _ = model.input.shape
    channels = {task: output.shape[-1] for task, output in model.output.items()}
    return ServedModel(model.predict_on_batch, (height, width), channels, source)


def load_saved_model(path: pathlib.Path) -> ServedModel:
    """A SavedModel that `export_saved_model` wrote, served.

    Raises:
        UserError: if it cannot be loaded, or takes or returns something else.
    """
    import tensorflow as tf

    try:
        signature = tf.saved_model.load(str(path)).signatures["serving_default"]
        ((name, spec),) = signature.structured_input_signature[1].items()
        _, height, width, depth = spec.shape
        channels = {
            task: output.shape[-1]
            for task, output in signature.structured_outputs.items()
        }
    except (OSError, ValueError, KeyError, TypeError, tf.errors.OpError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path} cannot be served ({reason}); export the model again."
        ) from error
    if depth != 3 or spec.dtype != tf.uint8:
        raise UserError(f"{path} does not take RGB pictures of 8 bits.")

    def serve(images):
        return {
            k: v.numpy() for k, v in signature(**{name: tf.constant(images)}).items()
        }

    return ServedModel(serve, (height, width), channels, str(path))
