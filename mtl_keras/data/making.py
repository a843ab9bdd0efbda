"""Records of a builder: made once, by one process at a time, and looked at for damage
when they are opened."""

import contextlib
import io
import pathlib
import shutil
import sys
from collections.abc import Callable

import filelock
import tensorflow_datasets as tfds

from mtl_keras.data.pipelines import without_autotuning
from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike

CHECKED_BYTES = 2**31  # records up to this size are read through when they are opened
FRAMING_BYTES = 16  # that a TFRecord file adds to a record: its length, two checksums


def prepare_once(
    find_builder: Callable[[pathlib.Path, bool], tfds.core.DatasetBuilder | None],
    data_dir: PathLike,
) -> tfds.core.DatasetBuilder:
    """The builder with its records, which one process at a time makes.

    Args:
        find_builder: called with `data_dir` and whether to remove damaged records,
            which is up to the process that holds the lock; see `open_builder`.
        data_dir: where records are kept.

    Raises:
        UserError: if `data_dir` cannot be written.
    """
    data_dir = pathlib.Path(data_dir)
    try:
        builder = find_builder(data_dir, False)
        if builder is None or not builder.is_prepared():
            data_dir.mkdir(parents=True, exist_ok=True)
            with _wait_for(data_dir / "lock"):
                builder = find_builder(data_dir, True)
                assert builder is not None  # none is damaged any more
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
    except NotImplementedError as error:  # of filelock: there are no locks
        raise UserError(
            f"{path.parent} is on a file system without locks, which keep two "
            "processes from making the same records; choose another one with "
            "--data-dir (`data_dir`)."
        ) from error


def open_builder(
    builder_class: type[tfds.core.DatasetBuilder],
    config: tfds.core.BuilderConfig,
    data_dir: pathlib.Path,
    remove_damaged: bool,
) -> tfds.core.DatasetBuilder | None:
    """A builder, prepared or not; `None` if its records are damaged, unless those
    and what a killed process left behind are to be removed.

    Args:
        builder_class: one of `data.builders`.
        config: its config.
        data_dir: where records are kept.
        remove_damaged: bool.
    """
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
