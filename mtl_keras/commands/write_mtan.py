"""Write a data set as the arrays that MTAN's protocol takes.

    python -m mtl_keras data write-mtan CITYSCAPES DIR
    python -m mtl_keras data write-mtan streets DIR --frames 40 --image-size 64x128

`train.py --data DIR` reads them, as does the code that others have for MTAN's folder.
"""

import csv
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tqdm import tqdm

from mtl_keras import streets
from mtl_keras.data import arrays, examples, frames
from mtl_keras.data.sources import find_sources
from mtl_keras.data.spreading import take_evenly
from mtl_keras.errors import UserError
from mtl_keras.experiments.arguments import parse_options
from mtl_keras.experiments.options import WriteMtanOptions
from mtl_keras.workers import WorkerPool

STREETS = "streets"  # the source that is rendered


class Plan(NamedTuple):
    """What is to be written: a function of a job that returns the frame's name, and the
    jobs of each split without their first two entries, directory and number."""

    write: Callable[[tuple], str]
    jobs: dict[str, list[tuple]]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the folder that the command line names."""
    options = parse_options(WriteMtanOptions, argv, positional=("source", "directory"))
    if not options.source or not options.directory:
        raise UserError(
            "Name a source, Cityscapes or the word streets, and the folder to write."
        )
    directory = pathlib.Path(options.directory)
    if directory.exists() or directory.is_symlink():
        raise UserError(
            f"{directory} exists; name another folder, or remove it before."
        )
    plan = plan_streets(options) if options.source == STREETS else plan_tree(options)
    counts = write(plan, directory)
    found = ", ".join(f"{count} frames in {split}" for split, count in counts.items())
    print(f"{directory} is complete: {found}; {arrays.FRAMES_FILE} names them.")


def plan_tree(options: WriteMtanOptions) -> Plan:
    """The frames of a Cityscapes tree.

    Raises:
        UserError: if there are none, fewer than asked for, or files are missing.
    """
    if arrays.is_array_folder(options.source):
        raise UserError(f"{options.source} is such a folder already; copy it.")
    root = ",".join(map(str, find_sources(options.source)))
    jobs = {}
    for split in arrays.SPLITS:
        listed = frames.list_frames(root, split, ("semantic", "disparity"))
        count = options.frames or len(listed)
        if not listed:
            raise UserError(
                f"{options.source} has no frames in the split {split}; both "
                f"{' and '.join(arrays.SPLITS)} are needed."
            )
        if count > len(listed):
            raise UserError(
                f"--frames asks for {count} frames, but the split {split} of "
                f"{options.source} has {len(listed)}."
            )
        jobs[split] = [
            (files, options.image_size) for files in take_evenly(listed, count)
        ]
    return Plan(examples.write_frame, jobs)


def plan_streets(options: WriteMtanOptions) -> Plan:
    """The rendered scenes that train.py learns from, or as many as asked for."""
    jobs = {
        split: [
            (
                streets.frame_id(index),
                streets.scene_seed(0, split, index),
                options.image_size,
            )
            for index in range(options.frames or examples.STREETS_SIZES[split])
        ]
        for split in arrays.SPLITS
    }
    return Plan(examples.write_scene, jobs)


def write(plan: Plan, directory: pathlib.Path) -> dict[str, int]:
    """Writes a folder of arrays, which appears when it is complete.

    Returns:
        The number of frames by split.
    """
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{directory.name}-", dir=directory.parent
    ) as aside:
        unfinished = pathlib.Path(aside) / "new"
        rows = [
            (split, number, name)
            for split in plan.jobs
            for number, name in enumerate(_write_split(plan, split, unfinished))
        ]
        with open(
            unfinished / arrays.FRAMES_FILE,
            "w",
            newline="",
            encoding="utf-8",
            errors="surrogateescape",  # names of files may hold any bytes
        ) as file:
            csv.writer(file).writerows([("split", "number", "frame"), *rows])
        if directory.exists():  # again: writing took a while
            raise UserError(f"{directory} exists by now; name another folder.")
        unfinished.rename(directory)
    return {split: len(jobs) for split, jobs in plan.jobs.items()}


def _write_split(plan, split, directory):
    """Yields the names of the frames."""
    jobs = [(str(directory / split), i, *job) for i, job in enumerate(plan.jobs[split])]
    bar = tqdm(total=len(jobs), unit="frame", desc=f"write {split}")
    with WorkerPool(len(jobs)) as pool, bar:
        for name in pool.map(plan.write, jobs):
            bar.update()
            yield name
