"""The data sets as tfds builders: `cityscapes_frames`, `mtan_arrays` and `streets`.

All hold the same features, so that everything downstream is the same. Records
are made once, by all cores, and reused until their config changes; the name of a
config holds all that they depend on.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence

import filelock
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from mtl_keras import streets
from mtl_keras.cityscapes import COARSE_SPLIT, FILES
from mtl_keras.data import arrays, examples, frames
from mtl_keras.data.pipelines import without_autotuning
from mtl_keras.data.sources import find_sources, fingerprint
from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike, Size
from mtl_keras.tasks import TASKS
from mtl_keras.workers import WorkerPool

STREETS_SIZES = examples.STREETS_SIZES

CHECKED_BYTES = 2**31  # records up to this size are read through when they are opened
LEFT_OUT = "left_out"  # in the metadata: a sentence for each frame that is not there
FRAMING_BYTES = 16  # that a TFRecord file adds to a record: its length, two checksums


@dataclasses.dataclass(eq=False)
class FramesConfig(tfds.core.BuilderConfig):
    """What the records of a builder depend on.

    `image_size` may be `None`, for frames that keep the size of their source.
    `source` is the tree of `cityscapes_frames`, the folder of `mtan_arrays`, or the
    seed of `streets`; `splits` are those of a tree that have records, `skip_bad` says
    whether its frames that cannot be read are left out; `sizes` is the number of
    scenes per split of `streets`; `folders` the folder of each kind of file of
    `mtan_arrays`. `sky` changes no record: it says how the depth of the sky is read
    from them, as `"zero"` or `"masked"`.
    """

    image_size: tuple | None = (128, 256)
    kinds: tuple = frames.LABEL_KINDS
    source: str = ""
    splits: tuple = ()
    sizes: dict = dataclasses.field(default_factory=dict)
    skip_bad: bool = False
    folders: dict = dataclasses.field(default_factory=dict)
    sky: str = "zero"


class _FramesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # which mypy cannot see
    """Features and generation that both builders share."""

    VERSION = tfds.core.Version("1.0.0")
    notified = False  # that frames are stretched; once is enough

    def _info(self):
        height, width = self.builder_config.image_size or (None, None)
        features = {
            "id": tfds.features.Text(),
            "source_width": np.int32,
            "image": tfds.features.Image(
                shape=(height, width, 3), encoding_format="png"
            ),
        }
        for kind in self.builder_config.kinds:
            features[kind] = tfds.features.Image(
                shape=(height, width, 1),
                dtype=np.uint8 if kind == "semantic" else np.uint16,
                encoding_format="png",
            )
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # the records keep the order of the frames
            metadata=tfds.core.MetadataDict({LEFT_OUT: []}),
        )

    def _generate_examples(self, split, make_example, jobs):
        image_size = self.builder_config.image_size
        left_out = self.info.metadata[LEFT_OUT]
        is_empty = True
        bar = tqdm(total=len(jobs), unit="frame", desc=f"prepare {split}")
        with WorkerPool(len(jobs)) as pool, bar:
            for example, source_size in pool.map(make_example, jobs):
                bar.update()
                if isinstance(example, UserError):
                    left_out.append(str(example))
                    continue
                is_empty = False
                frame_id = os.fsdecode(example["id"])
                if not self.notified and _reshapes(source_size, image_size):
                    print(
                        f"Note: {frame_id} is {source_size[0]}x{source_size[1]}; "
                        "frames of another shape than "
                        f"{image_size[0]}x{image_size[1]} are stretched to it.",
                        file=sys.stderr,
                    )
                    self.notified = True
                yield example["id"], example
        if is_empty:
            raise UserError(
                f"No frame of the split {split} can be read. The first: {left_out[0]}"
            )


class CityscapesFrames(_FramesBuilder):
    """Frames of an unpacked Cityscapes tree, resized.

    References:
     - [Cityscapes](https://www.cityscapes-dataset.com/dataset-overview/)
    """

    name = "cityscapes_frames"

    def _split_generators(self, dl_manager):
        config = self.builder_config
        left_out = self.info.metadata[LEFT_OUT] if config.skip_bad else None
        listed = {
            split: frames.list_frames(config.source, split, config.kinds, left_out)
            for split in config.splits
        }
        read = (
            examples.read_example_or_error if config.skip_bad else examples.read_example
        )
        return {
            split: self._generate_examples(
                split, read, [(f, config.image_size, config.kinds) for f in files]
            )
            for split, files in listed.items()
            if files
        }


class MtanArrays(_FramesBuilder):
    """Cityscapes as the arrays of MTAN's protocol; see `data.arrays`."""

    name = "mtan_arrays"

    def _split_generators(self, dl_manager):
        config = self.builder_config
        listed = {
            split: arrays.list_arrays(config.source, split, config.folders)
            for split in arrays.SPLITS
        }
        return {
            split: self._generate_examples(
                split,
                examples.read_array_example,
                [(f, config.image_size) for f in files],
            )
            for split, files in listed.items()
            if files
        }


class Streets(_FramesBuilder):
    """Street scenes rendered by `mtl_keras.streets.scenes`."""

    name = "streets"

    def _split_generators(self, dl_manager):
        config = self.builder_config
        return {
            split: self._generate_examples(
                split,
                examples.render_example,
                [
                    (
                        streets.frame_id(index),
                        streets.scene_seed(int(config.source), split, index),
                        config.image_size,
                    )
                    for index in range(size)
                ],
            )
            for split, size in config.sizes.items()
        }


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
    builder = _prepare(functools.partial(_find_cityscapes, config), data_dir)
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
    records depend on; see `_open`."""
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
    return _open(CityscapesFrames, config, data_dir, remove_damaged)


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
    return _prepare(
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
    """The builder of some folders of arrays, prepared or not; see `_open`."""
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
    return _open(MtanArrays, config, data_dir, remove_damaged)


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
    return _prepare(functools.partial(_open, Streets, config), data_dir)


def _check_split(split, existing, source):
    """Raises `UserError` for a split that does not exist."""
    if split not in existing:
        raise UserError(
            f"{source} has no frames in the split {split!r}; it has "
            f"{', '.join(existing)}."
        )


def _prepare(open_builder, data_dir):
    """The builder with its records, which one process at a time makes.

    Args:
        open_builder: called with `data_dir` and whether to remove damaged records,
            which is up to the process that holds the lock; see `_open`.
    """
    data_dir = pathlib.Path(data_dir)
    try:
        builder = open_builder(data_dir, False)
        if builder is None or not builder.is_prepared():
            data_dir.mkdir(parents=True, exist_ok=True)
            with _wait_for(data_dir / "lock"):
                builder = open_builder(data_dir, True)
                if not builder.is_prepared():  # by the process that was waited for
                    _make_records(builder)
    except UserError:
        raise
    except Exception as error:
        if reason := _why_not_written(error, data_dir):
            raise UserError(
                f"The records cannot be kept in {data_dir.absolute()} ({reason}); make "
                "it a directory that you may write to, with room for them, or choose "
                "another directory with --data-dir (`data_dir`)."
            ) from error
        raise
    return builder


def _make_records(builder):
    """Makes the records, with a bar for each split in place of what tfds shows."""
    print(f"Making the records in {builder.data_path}; they serve later runs, too.")
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    finally:
        tfds.enable_progress_bar()


def _why_not_written(error, data_dir):
    """Why records cannot be written, `""` if the error is another one."""
    import tensorflow as tf

    cause = error.__cause__ or error  # tfds wraps those of TensorFlow
    if not isinstance(cause, (OSError, tf.errors.OpError)):
        return ""
    if data_dir.is_symlink() and not data_dir.exists():
        return f"it is a link to {data_dir.readlink()}, which does not exist"
    if data_dir.exists() and not data_dir.is_dir():
        return "it is not a directory"
    if isinstance(cause, tf.errors.OpError):
        return cause.message
    return f"{cause.strerror}: {cause.filename}" if cause.filename else str(cause)


def _wait_for(path):
    """A lock, once it is free; the end of this process, any end, lets go of it."""
    lock = filelock.FileLock(path)
    try:
        return lock.acquire(blocking=False)
    except filelock.Timeout:
        print(f"Waiting for the process that holds {path}.", file=sys.stderr)
        return lock.acquire()
    except NotImplementedError as error:
        raise UserError(
            f"{path.parent} is on a file system without locks, which keep two "
            "processes from making the same records; choose another one with "
            "--data-dir (`data_dir`)."
        ) from error


def _open(builder_class, config, data_dir, remove_damaged):
    """A builder, prepared or not; `None` if its records are damaged, unless those
    and what a killed process left behind are to be removed."""
    directory = data_dir / builder_class.name / config.name / str(builder_class.VERSION)
    if not directory.exists():
        if remove_damaged:
            for left in directory.parent.glob(f"incomplete.*_{directory.name}"):
                shutil.rmtree(left, ignore_errors=True)
        return builder_class(config=config, data_dir=data_dir)
    try:
        builder = builder_class(config=config, data_dir=data_dir)
    except OSError:
        raise
    except Exception:  # of many kinds, by what is wrong with the JSON files
        damage = f"{directory / 'dataset_info.json'} is damaged"
    else:
        damage = _find_damage(builder)
        if not damage:
            return builder
    if not remove_damaged:
        return None
    print(f"Note: {damage}; these records are made again.", file=sys.stderr)
    shutil.rmtree(directory)
    return builder_class(config=config, data_dir=data_dir)


def _find_damage(builder):
    """What is wrong with the records of a builder, `""` if nothing is."""
    import tensorflow as tf

    if not builder.is_prepared():
        return f"{builder.data_path} is incomplete"
    for split in builder.info.splits.values():
        paths = [pathlib.Path(path) for path in split.filepaths]
        for path in paths:
            if not path.is_file():
                return f"{path} is missing"
        size = sum(path.stat().st_size for path in paths)
        is_damaged = size != split.num_bytes + FRAMING_BYTES * split.num_examples
        if not is_damaged and size <= CHECKED_BYTES:
            records = tf.data.TFRecordDataset([str(path) for path in paths])
            try:
                for _ in without_autotuning(records.batch(16)):  # compares checksums
                    pass
            except tf.errors.DataLossError:
                is_damaged = True
        if is_damaged:
            return f"{builder.data_path} has damaged records of {split.name}"
    return ""


def _reshapes(source_size, image_size):
    if image_size is None:
        return False
    return source_size[0] * image_size[1] != source_size[1] * image_size[0]
