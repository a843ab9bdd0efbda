"""Trained networks behind one call: pictures of any size in, outputs by task out."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np

from mtl_keras.cityscapes import LABEL_SETS
from mtl_keras.data.frames import resize_smoothly
from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike, Size
from mtl_keras.serving.export_directory import read_manifest
from mtl_keras.serving.formats import build_serving_model
from mtl_keras.tasks import tasks_of


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A network as `build_serving_model` makes it, or a SavedModel of one.

    Attributes:
        source: str, what it is called in messages.
        serve: function from images `(batch, h, w, 3)` uint8 to a dict of arrays by
            task.
        image_size: `(h, w)`.
        tasks: names of the tasks.
        label_set: str, a key of `cityscapes.LABEL_SETS`: what its classes mean.

    Raises:
        UserError: if it is not a network of street scenes.
    """

    source: str
    serve: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    image_size: Size
    tasks: tuple[str, ...]
    label_set: str

    def __post_init__(self) -> None:
        if not set(tasks_of("scenes")) & set(self.tasks):
            raise UserError(
                f"{self.source} is not a model of street scenes: it returns "
                f"{', '.join(self.tasks) or 'nothing by name'}."
            )

    def predict(self, pictures: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """The outputs by task for each of a batch of pictures `(H, W, 3)` uint8 RGB,
        which may have sizes of their own; there may be none."""
        if not pictures:
            return []
        images = [resize_smoothly(picture, self.image_size) for picture in pictures]
        outputs = self.serve(np.stack(images))
        return [
            {task: np.asarray(values[i]) for task, values in outputs.items()}
            for i in range(len(pictures))
        ]


def serve_network(network: keras.Model, label_set: str, source: str) -> ServedModel:
    """A network of `build_network`, served."""
    model = build_serving_model(network)
    _, height, width, _ = model.input.shape
    return ServedModel(
        source, model.predict_on_batch, (height, width), tuple(model.output), label_set
    )


def load_saved_model(path: PathLike) -> ServedModel:
    """A SavedModel that `export` wrote, served.

    Raises:
        UserError: if it cannot be loaded, or takes or returns something else.
    """
    import tensorflow as tf

    path = pathlib.Path(path)
    try:
        signature = tf.saved_model.load(str(path)).signatures["serving_default"]
        ((name, spec),) = signature.structured_input_signature[1].items()
        _, height, width, depth = spec.shape
        outputs = signature.structured_outputs
    except (OSError, ValueError, KeyError, TypeError, tf.errors.OpError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path} cannot be served ({reason}); export the model again."
        ) from error
    if depth != 3 or spec.dtype != tf.uint8 or None in (height, width):
        raise UserError(
            f"{path} does not take RGB pictures of 8 bits and of one size; name a "
            "SavedModel that train.py or `export` has written."
        )
    label_set = read_manifest(path).get("label_set")
    if label_set is not None and label_set not in LABEL_SETS:
        raise UserError(
            f"{path} has the classes {label_set!r}, which this version does not know; "
            "export the model again."
        )
    if "semantic" in outputs and label_set is None:
        raise UserError(
            f"{path} does not say what its classes are; export the model again, with "
            "its label set."
        )

    def serve(images):
        values = signature(**{name: tf.constant(images)})
        return {task: value.numpy() for task, value in values.items()}

    return ServedModel(
        str(path), serve, (height, width), tuple(outputs), label_set or ""
    )
