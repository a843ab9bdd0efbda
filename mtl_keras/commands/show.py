"""Show what is in a data set, and what training sees of it.

    python -m mtl_keras data show streets
    python -m mtl_keras data show CITYSCAPES --recipe original --frames 200

Tables and warnings are printed; a picture shows frames of the first training batches,
augmentation included. The exit status is 1 if training would refuse files.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtl_keras.commands.console import start_tensorflow
from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import parse_given
from mtl_keras.experiments.options import ShowOptions, TrainOptions
from mtl_keras.experiments.recipes import RECIPES
from mtl_keras.experiments.tables import apply_recipe

if TYPE_CHECKING:  # what takes seconds to import waits until the options are read
    from mtl_keras.data.inspection import Findings, Tally
    from mtl_keras.experiments.problems import Problem

# Options of train.py that are not about data.
HIDDEN = (
    *("dataset", "weighting", "task_weights", "likelihoods", "initial_variance"),
    *("architecture", "backbone", "decoder", "pretrained", "precision", "jit"),
    *("epochs", "steps", "epoch_steps", "optimizer", "learning_rate", "schedule"),
    *("weight_decay", "sigma_learning_rate_factor", "resume", "export"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Shows the data set that the command line names."""
    given = parse_given(ShowOptions, argv, RECIPES, ("data",), HIDDEN)
    if given.get("data") == "streets":
        del given["data"]  # as train.py knows them
    options = ShowOptions(**apply_recipe(given))
    training = training_options(options)
    start_tensorflow(options.verbose)
    from mtl_keras.data.arrays import is_array_folder
    from mtl_keras.experiments import setup
    from mtl_keras.experiments.problems import open_problem
    from mtl_keras.figures.data_tables import format_remarks, format_tallies

    if training.dataset != "scenes":
        raise UserError(
            f"data show is about street scenes, and --dataset is {training.dataset}."
        )
    check_output(options)
    setup.check_options(training)
    if is_array_folder(training.data):
        print("Of MTAN's arrays there are no tables, only the sheet.", file=sys.stderr)
        draw_sheet(options, training)
        return
    if not training.data:
        problem = open_problem(dataclasses.replace(training, label_set="label_ids"))
        print("\n" + format_tallies(count_rendered(problem, options)))
        draw_sheet(options, training)
        return
    findings = inspect(training, options.frames)
    print("\n" + format_tallies(findings.tallies))
    if findings.doubtful:
        title = "Warnings, of what training takes but is usually a mistake:"
        print("\n" + format_remarks(title, findings.doubtful))
    if findings.refused:
        print("\n" + format_remarks("Refused by training:", findings.refused))
    if findings.refused and not training.skip_bad:
        print(
            "\nThere is no sheet, and no training, until these files are fixed.",
            file=sys.stderr,
        )
        sys.exit(1)
    draw_sheet(options, training)


def training_options(options: ShowOptions) -> TrainOptions:
    """The options of the training whose data are shown."""
    values = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(TrainOptions)
    }
    return TrainOptions(**{**values, "output": ""})


def check_output(options: ShowOptions) -> None:
    """Raises `UserError` for a sheet that could not be written in the end."""
    path = pathlib.Path(options.output)
    if options.sheet and (path.suffix.lower() != ".png" or not path.parent.is_dir()):
        raise UserError(
            f"--output {path} must be a PNG file, NAME.png, in a directory that exists."
        )


def inspect(options: TrainOptions, num_frames: int) -> Findings:
    """Looks through the files of a tree, or at `num_frames` frames of each split."""
    from tqdm import tqdm

    from mtl_keras.data import frames, inspection
    from mtl_keras.data.spreading import take_evenly
    from mtl_keras.workers import WorkerPool

    kinds = inspection.choose_kinds(options.data, options.tasks)
    look = functools.partial(
        inspection.inspect_frame, label_set=options.label_set, sky=options.sky
    )
    findings, listed = inspection.Findings(), {}
    used = (*options.train_split.split("+"), "train", "val", "test")
    for split in dict.fromkeys(used):
        listing = frames.find_frames(options.data, split, kinds)
        if listing.frames:
            listed[split] = listing.frames
        if fault := listing.describe_fault():
            findings.refuse(f"files of {split}", fault, 0)
    for split, files in listed.items():
        jobs = take_evenly(files, num_frames)
        bar = tqdm(total=len(jobs), unit="frame", desc=f"look at {split}")
        with WorkerPool(len(jobs)) as pool, bar:
            for job, inspected in zip(jobs, pool.map(look, jobs)):
                findings.add(split, job, inspected)
                bar.update()
    if not listed:
        raise UserError(f"{options.data} holds no frame.")
    findings.finish(listed)
    return findings


def count_rendered(problem: Problem, options: ShowOptions) -> dict[str, Tally]:
    """Counts what is in the rendered streets, by split; the problem's classes are all
    label ids."""
    import numpy as np

    from mtl_keras.data.inspection import Tally, count_batch
    from mtl_keras.data.spreading import take_evenly

    tallies = {}
    for split in ("train", "val"):
        total = problem.count_frames(split)
        tally = tallies[split] = Tally(total)
        chosen = {*take_evenly(range(total), options.frames)}
        has_ids = "instance" in problem.options.tasks
        ids = problem.load_instance_ids(split, 1) if has_ids else [None] * total
        batches = problem.make_batches(split, 1)
        for index, (batch, instance_ids) in enumerate(zip(batches, ids)):
            if index in chosen:
                _, targets, masks = batch
                targets, masks = (
                    {task: np.asarray(value) for task, value in values.items()}
                    for values in (targets, masks)
                )
                tally.add(
                    count_batch(targets, masks, instance_ids, options.label_set),
                    problem.options.image_size,
                )
    return tallies


def draw_sheet(options: ShowOptions, training: TrainOptions) -> None:
    """Draws frames of the first training batches, if the sheet is asked for."""
    if not options.sheet:
        return
    import keras
    import numpy as np

    from mtl_keras.data.batches import Batch
    from mtl_keras.experiments.problems import open_problem
    from mtl_keras.figures.contact_sheet import draw_contact_sheet
    from mtl_keras.figures.maps import Row

    keras.utils.set_random_seed(training.seed)  # as train.py does
    rows: list[Row] = []
    for images, targets, masks in open_problem(training).make_training_batches(0):
        batch = Batch([], np.asarray(images), targets, masks)
        rows += [Row.of(batch, {}, index) for index in range(len(batch.images))]
        if len(rows) >= options.shown:
            break
    draw_contact_sheet(rows[: options.shown], training.label_set, options.output)
    print(f"\nFrames of the first training batches are in {options.output}.")
