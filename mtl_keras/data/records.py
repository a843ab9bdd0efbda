"""The records of each data set: which there have to be, and the builder of them.

Records are made once, by all cores, and reused until their config changes; the name of
a config holds all that they depend on.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds

from mtl_keras import streets
from mtl_keras.cityscapes import COARSE_SPLIT, FILES
from mtl_keras.data import arrays, examples, frames
from mtl_keras.data.builders import (
    LEFT_OUT,
    CityscapesFrames,
    FramesConfig,
    MtanArrays,
    Streets,
)
from mtl_keras.data.making import open_builder, prepare_once
from mtl_keras.data.sources import find_sources, fingerprint
from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike, Size
from mtl_keras.tasks import TASKS

STREETS_SIZES = examples.STREETS_SIZES


def prepare(
    data: str,
    image_size: Size | None,
    tasks: Sequence[str],
    data_dir: PathLike = "data",
    label_set: str = "train_ids",
    sky: str = "zero",
    splits: Sequence[str] | None = None,
    skip_bad: bool = False,
) -> tfds.core.DatasetBuilder:
    """The builder of a Cityscapes tree or of a folder of MTAN's arrays, or of the
    rendered streets if `data` is empty.

    Args:
        data: see `prepare_cityscapes` and `prepare_arrays`.
        image_size: `(height, width)` of the records, or `None` for frames of a tree as
            large as they come.
        tasks: the tasks to be trained.
        data_dir: where records are kept.
        label_set: str, a key of `cityscapes.LABEL_SETS`, by which labels are chosen
            where there are several.
        sky: str, what the depth of the sky is: `"zero"`, a disparity of 0, or
            `"masked"`, which it always is in arrays.
        splits: the splits that are needed. Defaults to all, see `prepare_cityscapes`.
        skip_bad: bool. Whether frames of a tree that cannot be used are left out.
    """
    if not arrays.is_array_folder(data) and data:
        builder = prepare_cityscapes(
            data, image_size, tasks, data_dir, splits, skip_bad
        )
        builder.builder_config.sky = sky
        return builder
    assert image_size is not None  # the others have no size but that of the network
    if data:
        builder = prepare_arrays(data, image_size, tasks, label_set, data_dir)
        for split in splits or ():
            _check_split(split, builder.info.splits, data)
        return builder
    for split in splits or ():
        _check_split(split, STREETS_SIZES, "the rendered streets")
    sizes = {s: n for s, n in STREETS_SIZES.items() if splits is None or s in splits}
    builder = prepare_streets(image_size, sizes, data_dir=data_dir)
    builder.builder_config.sky = sky
    return builder


def prepare_cityscapes(
    root: PathLike,
    image_size: Size | None,
    tasks: Sequence[str],
    data_dir: PathLike = "data",
    splits: Sequence[str] | None = None,
    skip_bad: bool = False,
) -> tfds.core.DatasetBuilder:
    """The builder of a Cityscapes tree, with its records made if need be.

    The records are made again when the image size or any of the files (by name, size
    and time) differ. Records of more tasks serve for some of them as well.

    Args:
        root: the tree, see `sources.find_sources`.
        image_size: `(height, width)` of the records, or `None` for frames as large as
            they come.
        tasks: the tasks to be trained; only their files have to exist.
        data_dir: where records are kept.
        splits: the splits to make records of. Defaults to `"train"`, `"val"` and
            `"test"` as far as the tree has them.
        skip_bad: bool. Whether frames of which a file is missing or cannot be used are
            left out; they are listed at the end.

    Raises:
        UserError: if a split that is asked for has no frame; if a file is missing or
            broken, when nothing is kept; or if `data_dir` cannot be written.
    """
    given, root = root, ",".join(map(str, find_sources(root)))
    existing = [s for s in frames.SPLITS if frames.has_files(root, "image", [s])]
    if not existing:
        folder, ending = FILES["image"]
        frames.list_frames(root, "train", ())  # which says if it is no tree at all
        raise UserError(
            f"{given} holds no frame: there is no {folder}/SPLIT/CITY/*{ending} for "
            f"the splits {', '.join(frames.SPLITS)}."
        )
    for split in splits or ():
        _check_split(split, existing, given)
    splits = tuple(splits or (s for s in existing if s != COARSE_SPLIT))
    rows = [TASKS[task] for task in tasks]
    kinds = {kind for row in rows for kind in row.labels}
    for row in rows:
        for kind, consequence in row.optional_labels.items():
            if frames.has_files(root, kind, splits):
                kinds.add(kind)
            elif kind not in kinds and splits != ("test",):
                folder, ending = FILES[kind]
                print(
                    f"Note: {given} has no files {folder}/*{ending}, so {consequence}.",
                    file=sys.stderr,
                )
    config = FramesConfig(
        name="",  # see `_open_cityscapes`
        image_size=image_size and tuple(image_size),
        kinds=tuple(kind for kind in frames.LABEL_KINDS if kind in kinds),
        source=root,
        splits=splits,
        skip_bad=skip_bad,
    )
    builder = prepare_once(functools.partial(_find_cityscapes, config), data_dir)
    left_out = builder.info.metadata[LEFT_OUT] if builder.info.metadata else ()
    if left_out:
        sentences = "".join(f"\n  {sentence}" for sentence in left_out)
        print(
            f"Note: {len(left_out)} frames of {given} are left out:{sentences}",
            file=sys.stderr,
        )
    return builder


def _find_cityscapes(config, data_dir, remove_damaged):
    """The builder of a config, or one that is prepared and holds the same frames: with
    more kinds of labels, or made without leaving any out."""
    place = data_dir, remove_damaged
    needed = _open_cityscapes(config, *place)
    if needed and needed.is_prepared():
        return needed
    others = [kind for kind in frames.LABEL_KINDS if kind not in config.kinds]
    for skip_bad in {False, config.skip_bad}:
        for count in range(len(others) + 1):
            for added in itertools.combinations(others, count):
                kinds = {*config.kinds, *added}
                more = dataclasses.replace(
                    config,
                    kinds=tuple(kind for kind in frames.LABEL_KINDS if kind in kinds),
                    skip_bad=skip_bad,
                )
                with contextlib.suppress(UserError):  # the tree does not have them
                    builder = _open_cityscapes(more, *place)
                    if builder and builder.is_prepared():
                        return builder
    return needed


def _open_cityscapes(config, data_dir, remove_damaged):
    """The builder of a config, prepared or not, with a name that holds all that the
    records depend on; see `open_builder`."""
    digest = hashlib.sha256(os.fsencode(config.source))
    left_out = [] if config.skip_bad else None
    for split in config.splits:
        for files in frames.list_frames(config.source, split, config.kinds, left_out):
            for kind, path in sorted(files.paths.items()):
                digest.update(os.fsencode(str(path)))
                digest.update(f" {fingerprint(path)}".encode())
    size = "{}x{}".format(*config.image_size) if config.image_size else "source"
    parts = [size, *config.kinds, *config.splits, digest.hexdigest()[:12]]
    if config.skip_bad:
        parts.append("skip")
    name = "-".join([*parts, f"v{frames.VERSION}"])
    config = dataclasses.replace(config, name=name)
    return open_builder(CityscapesFrames, config, data_dir, remove_damaged)


def prepare_arrays(
    root: PathLike,
    image_size: Size,
    tasks: Sequence[str],
    label_set: str = "categories",
    data_dir: PathLike = "data",
) -> tfds.core.DatasetBuilder:
    """The builder of a folder of MTAN's arrays, with its records made if need be.

    Args:
        root: the folder, see `data.arrays`.
        image_size: `(height, width)` of the records.
        tasks: the tasks to be trained; only their files have to exist.
        label_set: str, `"categories"` or `"train_ids"`.
        data_dir: where records are kept.

    Raises:
        UserError: if a file is missing or broken, for tasks and label sets that the
            folder does not have, or if `data_dir` cannot be written.
    """
    root = str(pathlib.Path(root).resolve())
    kinds = {kind for task in tasks for kind in TASKS[task].labels}
    if "instance" in kinds:
        raise UserError(
            f"{root} holds MTAN's arrays, which do not tell objects apart; leave out "
            "the task instance: --tasks semantic,depth."
        )
    folders = {"image": "image"}
    if "semantic" in kinds:
        folders["semantic"] = arrays.find_label_folder(root, label_set)
    if "disparity" in kinds:
        folders["disparity"] = "depth"
    _note_counts(root)
    return prepare_once(
        functools.partial(_open_arrays, root, image_size, folders), data_dir
    )


@functools.cache
def _note_counts(root):
    """Says once if there are other numbers of frames than in the papers."""
    images = {"image": "image"}
    counts = {s: len(arrays.list_arrays(root, s, images)) for s in arrays.SPLITS}
    if counts != arrays.COUNTS:
        found, usual = (
            " and ".join(f"{count} {split} frames" for split, count in counted.items())
            for counted in (counts, arrays.COUNTS)
        )
        print(
            f"Note: {root} has {found}; MTAN's folder has {usual}.",
            file=sys.stderr,
        )


def _open_arrays(root, image_size, folders, data_dir, remove_damaged):
    """The builder of some folders of arrays, prepared or not; see `open_builder`."""
    kinds = tuple(kind for kind in frames.LABEL_KINDS if kind in folders)
    listed = [
        files
        for split in arrays.SPLITS
        for files in arrays.list_arrays(root, split, folders)
    ]
    if not listed:
        raise UserError(
            f"{root} holds no arrays: there is no {arrays.SPLITS[0]}/image/0.npy."
        )
    digest = hashlib.sha256(os.fsencode(root))
    for files in listed:
        for path in files.paths.values():
            digest.update(os.fsencode(str(path)))
            digest.update(f" {fingerprint(path)}".encode())
    name = "{}x{}-{}-{}-v{}.{}".format(
        *image_size,
        "-".join(kinds),
        digest.hexdigest()[:12],
        frames.VERSION,
        arrays.VERSION,
    )
    config = FramesConfig(
        name=name,
        image_size=tuple(image_size),
        kinds=kinds,
        source=root,
        folders=folders,
        sky="masked",
    )
    return open_builder(MtanArrays, config, data_dir, remove_damaged)


def prepare_streets(
    image_size: Size,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    data_dir: PathLike = "data",
) -> tfds.core.DatasetBuilder:
    """The builder of the rendered scenes, with its records made if need be.

    Args:
        image_size: `(height, width)` of the scenes.
        sizes: dict, number of scenes by split. Defaults to `STREETS_SIZES`.
        seed: int. Scenes of another seed have nothing in common.
        data_dir: where records are kept.

    Raises:
        UserError: if `data_dir` cannot be written.
    """
    sizes = dict(sizes or STREETS_SIZES)
    counts = "-".join(f"{split}{size}" for split, size in sizes.items())
    name = "{}x{}-{}-seed{}-v{}".format(*image_size, counts, seed, streets.VERSION)
    config = FramesConfig(
        name=name, image_size=tuple(image_size), source=str(seed), sizes=sizes
    )
    return prepare_once(functools.partial(open_builder, Streets, config), data_dir)


def _check_split(split, existing, source):
    """Raises `UserError` for a split that does not exist."""
    if split not in existing:
        raise UserError(
            f"{source} has no frames in the split {split!r}; it has "
            f"{', '.join(existing)}."
        )
