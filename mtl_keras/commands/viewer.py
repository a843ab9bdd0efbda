"""What `app` does with a picture, whatever its page looks like.

The network runs once for each picture. Its outputs are kept, so that a slider of the
clustering only turns the votes into objects again.
"""

from __future__ import annotations

import inspect
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mtl_keras.errors import UserError
from mtl_keras.instances.clustering import METHODS
from mtl_keras.serving.answers import Answer, StereoCamera, encode_answer, make_answer
from mtl_keras.serving.pictures import read_picture

if TYPE_CHECKING:
    from mtl_keras.serving.models import ServedModel


class Slider(NamedTuple):
    """An option of the clustering: what it does, and its range."""

    info: str
    minimum: float
    maximum: float
    step: float


# Those of all methods; a method has some of them.
SLIDERS = {
    "eps": Slider("How near votes share an object.", 0.25, 10, 0.25),
    "xi": Slider("How steep the edge of a cloud of votes is.", 0.01, 0.99, 0.01),
    "min_samples": Slider("Votes that make a place dense.", 2, 60, 1),
    "min_cluster_size": Slider("Fewest votes for an object.", 2, 200, 1),
}


class Look(NamedTuple):
    """What is kept of a picture: what it takes to find its objects again."""

    name: str
    picture: np.ndarray
    outputs: Mapping[str, np.ndarray]
    label_set: str
    camera: StereoCamera | None
    folder: pathlib.Path  # for files to download


def take_look(
    model: ServedModel,
    camera_of: Callable[[np.ndarray], StereoCamera | None],
    path: pathlib.Path,
) -> Look:
    """Reads a picture and runs the network.

    Raises:
        UserError: if it cannot be read; the sentence names the file without its folder,
            which the user has never seen.
    """
    try:
        picture = read_picture(path)
    except UserError as error:
        sentence = str(error).replace(str(path), path.name)
        raise UserError(sentence) from error
    (outputs,) = model.predict([picture])
    folder = pathlib.Path(tempfile.mkdtemp(dir=path.parent))
    camera = camera_of(picture)
    return Look(path.name, picture, outputs, model.label_set, camera, folder)


def default_options(method: str) -> dict[str, float]:
    """The values of the sliders that a method has, as `cluster_offsets` has them."""
    parameters = inspect.signature(METHODS[method]).parameters
    values = {name: parameters[name].default for name in SLIDERS if name in parameters}
    # HDBSCAN's min_samples is by default its min_cluster_size.
    return {
        k: values["min_cluster_size"] if v is None else v for k, v in values.items()
    }


def find_objects(look: Look, method: str, left_over: str, *values: float) -> Answer:
    """The answer for a picture.

    Args:
        look: `Look`.
        method: str, as for `cluster_offsets`.
        left_over: str, likewise.
        *values: those of all `SLIDERS`; the ones that the method does not have are
            passed over.
    """
    options = {
        name: value
        for name, value in zip(SLIDERS, values, strict=True)
        if name in default_options(method)
    }
    return make_answer(
        look.outputs,
        look.picture.shape[:2],
        look.label_set,
        look.camera,
        method=method,
        left_over=left_over,
        **options,
    )


def list_objects(objects: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """The table of the objects, `headers` and rows of `data`; what is not known of any
    of them has no column."""
    columns: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "class": lambda thing: thing["class"],
        "confidence": lambda thing: round(thing["confidence"], 2),
        "box": lambda thing: " ".join(map(str, thing["box"])),
        "pixels": lambda thing: thing["pixels"],
    }
    if any("median_disparity" in thing for thing in objects):
        columns["disparity"] = lambda thing: round(thing["median_disparity"], 1)
    if any("distance_m" in thing for thing in objects):
        columns["metres"] = lambda thing: thing["distance_m"]
    rows = [[value_of(thing) for value_of in columns.values()] for thing in objects]
    return {"headers": [*columns], "data": rows}


def write_objects(look: Look, found: Answer) -> pathlib.Path:
    """Writes the JSON that `predict` writes, and returns its path."""
    height, width = look.picture.shape[:2]
    camera = look.camera and look.camera._asdict()
    facts = {"picture": look.name, "height": height, "width": width, "camera": camera}
    path = look.folder / f"{pathlib.Path(look.name).stem}.json"
    path.write_bytes(encode_answer(found, ["json"], **facts)["json"])
    return path
