"""Draws the picture in the README: what a network sees, says, and should say.

    python -m docs.draw_scenes runs/demo docs/images/demo.png

The run has to have all three tasks of street scenes.
"""

import argparse
import io
import pathlib

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mtl_keras.data.batches import Batch
from mtl_keras.experiments import runs, setup
from mtl_keras.experiments.options import TrainOptions, read_options
from mtl_keras.experiments.problems import open_problem
from mtl_keras.figures.maps import Row, paint_prediction, paint_truth
from mtl_keras.figures.painters import PAINTERS

TASKS = ("semantic", "instance", "depth")
TITLES = ("semantics", "votes for object centres", "disparity")
WIDTH = 960  # of the picture, in pixels
TITLE_HEIGHT = 24


def load_rows(directory, frames):
    """Frames of the val split, given by number, with the maps that the best checkpoint
    of a run predicts; and the label set of the run."""
    problem = open_problem(read_options(TrainOptions, directory / "options.json"))
    trainer = setup.build_trainer(problem)
    runs.restore_best(trainer, directory)
    rows = {}
    for number, elements in enumerate(problem.make_batches("val", 1)):
        if number in frames:
            batch = Batch([number], *elements)
            predictions = trainer.network.predict_on_batch(batch.images)
            rows[number] = Row.of(batch, predictions, 0)
    return [rows[number] for number in frames], problem.options.label_set


def paint(rows, label_set):
    """Yields two lines of three maps for each row, the network's and the truth."""
    unused = Figure().subplots()  # for the legends, which the README tells
    paints = {task: PAINTERS[task](rows, label_set, unused) for task in TASKS}
    for row in rows:
        for name, paint_row in (("network", paint_prediction), ("truth", paint_truth)):
            maps = [paint_row(row, task, label_set, paints[task]) for task in TASKS]
            yield name, maps


def draw(rows, label_set, path):
    """Draws the image of each row and beside it two lines of maps."""
    height, width = rows[0].image.shape[:2]
    cell_height = WIDTH / 5 * height / width
    total = 2 * len(rows) * cell_height + TITLE_HEIGHT
    figure = Figure(figsize=(WIDTH / 100, total / 100))
    margins = {"left": 0, "right": 1, "bottom": 0, "top": 1 - TITLE_HEIGHT / total}
    grid = figure.add_gridspec(2 * len(rows), 5, **margins, wspace=0.02, hspace=0.04)

    def show(place, picture, title="", name="", **options):
        axis = figure.add_subplot(place)
        axis.imshow(picture.astype(np.uint8), **options)
        axis.set_axis_off()
        axis.set_title(title, fontsize=10, pad=3)
        axis.text(4, 15, name, color="white", fontsize=8, weight="bold")

    for i, row in enumerate(rows):
        title = "" if i else "what the network sees"
        show(grid[2 * i : 2 * i + 2, :2], row.image, title)
    for i, (name, pictures) in enumerate(paint(rows, label_set)):
        for j, picture in enumerate(pictures):
            title, name = "" if i else TITLES[j], "" if j else name
            show(grid[i, 2 + j], picture, title, name, interpolation="nearest")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").save(path, optimize=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("picture", type=pathlib.Path)
    parser.add_argument("--frames", type=int, nargs="+", default=[0, 62, 249])
    options = parser.parse_args(argv)
    draw(*load_rows(options.run, options.frames), options.picture)


if __name__ == "__main__":
    main()
