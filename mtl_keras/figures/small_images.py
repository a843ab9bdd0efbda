"""Small images and what a network made of them, as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mtl_keras.data.batches import Batch
from mtl_keras.figures.maps import Row
from mtl_keras.figures.shown import ShownFrames
from mtl_keras.hints import Destination

PICTURES_PER_ROW = 10
PICTURE_ROWS = 2
WRONG_COLOR = "#d62728"


class SmallImageGallery:
    """Gathers a few images of a split and draws what was predicted for them.

    Args:
        path: where the picture goes.
        num_frames: int. Images in the split; those shown are spread over it.
        class_names: sequence of str.
    """

    def __init__(
        self, path: Destination, num_frames: int, class_names: Sequence[str]
    ) -> None:
        self.path = path
        self.class_names = class_names
        self.frames = ShownFrames(num_frames, PICTURES_PER_ROW * PICTURE_ROWS)
        self.rows: list = []

    def update(self, batch: Batch, predictions: Mapping[str, np.ndarray]) -> None:
        """Looks through a batch, with `images`, and `targets` and `masks` by task."""
        for i in self.frames.next(len(batch.images)):
            self.rows.append(Row.of(batch, predictions, i))

    def result(self) -> dict[str, Any]:
        """Draws the picture, see `plot_reconstructions`."""
        plot_reconstructions(
            np.stack([row.image for row in self.rows]),
            _stack([row.targets for row in self.rows]),
            _stack([row.predictions for row in self.rows]),
            self.path,
            self.class_names,
        )
        return {}


def _stack(rows):
    return {task: np.stack([row[task] for row in rows]) for task in rows[0]}


def plot_reconstructions(
    images: np.ndarray,
    targets: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    path: Destination,
    class_names: Sequence[str] | None = None,
) -> None:
    """Draws images above their reconstructions, with the predicted classes.

    A wrong class is red and followed by the true one.

    Args:
        images: `(N, height, width, 1)` in 0..255; the first 20 are drawn.
        targets: dict by task; `class` is compared to the prediction if it is there.
        predictions: dict by task, outputs of the network, of one task or both.
        path: where the picture goes.
        class_names: sequence of str. Defaults to the class indices.
    """
    images = np.asarray(images)[: PICTURES_PER_ROW * PICTURE_ROWS, ..., 0]
    pictures = {"input": images / 255}
    if "reconstruction" in predictions:
        pictures["output"] = np.asarray(predictions["reconstruction"])[..., 0]
    num_columns = min(len(images), PICTURES_PER_ROW)
    num_blocks = -(-len(images) // num_columns)
    figure = Figure(
        figsize=(1.1 * num_columns + 0.3, (1.1 * len(pictures) + 0.4) * num_blocks),
        layout="constrained",
    )
    blocks = figure.subfigures(num_blocks, 1, squeeze=False)[:, 0]
    cells = [
        block.subplots(len(pictures), num_columns, squeeze=False) for block in blocks
    ]
    for cell in np.ravel(cells):
        cell.set_axis_off()
    for i in range(len(images)):
        column = cells[i // num_columns][:, i % num_columns]
        for cell, (kind, values) in zip(column, pictures.items()):
            cell.imshow(values[i], cmap="gray_r", vmin=0, vmax=1)
            if i % num_columns == 0:
                cell.text(
                    -0.12,
                    0.5,
                    kind,
                    rotation=90,
                    ha="right",
                    va="center",
                    transform=cell.transAxes,
                )
        if "class" in predictions:
            title, color = _describe_class(i, targets, predictions, class_names)
            column[0].set_title(title, color=color, fontsize=8)
    figure.savefig(path, dpi=110)


def _describe_class(i, targets, predictions, class_names):
    names = class_names or [str(k) for k in range(predictions["class"].shape[-1])]
    predicted = int(np.argmax(predictions["class"][i]))
    if "class" not in targets or predicted == int(targets["class"][i]):
        return names[predicted], "black"
    true = int(targets["class"][i])
    return f"{names[predicted]},\nnot {names[true]}", WRONG_COLOR
