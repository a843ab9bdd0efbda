"""Directories of exports: written whole, and replaced only by one of their kind."""

import contextlib
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from mtl_keras.errors import UserError

# Lists the files of an export, so that no other is ever removed with it, and says what
# a file of another program could not.
MANIFEST = "mtl_keras_export.json"
SUBMISSION = "submission"  # the format of what is not a model


@contextlib.contextmanager
def replace_export(path: pathlib.Path, **facts: Any) -> Iterator[pathlib.Path]:
    """A directory to write an export to, which then takes the place of an earlier one.

    Args:
        path: where it appears when it is complete.
        **facts: also kept in the manifest.

    Raises:
        UserError: if `path` holds anything but an earlier export, or cannot be
            written.
    """
    path = path.absolute()
    kind = facts.get("format")
    check_replaceable(path, kind == SUBMISSION)
    with contextlib.ExitStack() as stack:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            directory = stack.enter_context(
                tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent)
            )
            new, old = pathlib.Path(directory) / "new", pathlib.Path(directory) / "old"
            new.mkdir()
        with _writing(path, new):
            yield new
        with _writing(path):
            files = [*_list_files(new), MANIFEST]
            text = json.dumps({"files": files, **facts})
            (new / MANIFEST).write_text(text, encoding="utf-8")
            # Again: the export took a while.
            check_replaceable(path, kind == SUBMISSION)
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except BaseException:
                if old.exists():
                    old.rename(path)
                raise


@contextlib.contextmanager
def _writing(path, directory=None):
    """Turns errors of writing `path` into sentences; those of files outside
    `directory`, if it is given, have other reasons."""
    try:
        yield
    except OSError as error:
        name = error.filename
        if directory and name and not str(name).startswith(str(directory)):
            raise
        raise _not_written(path, error.strerror or error) from error


def _not_written(path, reason):
    return UserError(
        f"{path} cannot be written ({reason}); export to a directory that you may "
        "write to, with room for it."
    )


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """What an export says about itself; empty if it is not one of this package's."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return manifest if {*manifest["files"]} else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def check_replaceable(path: pathlib.Path, by_submission: bool = False) -> None:
    """Raises `UserError` if a path is there and neither empty nor an earlier export,
    or, for a submission, an earlier submission."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        what = "a link" if path.is_symlink() else "a file"
        raise UserError(f"{path} is {what}, which is not replaced; export elsewhere.")
    if not path.exists() or not any(path.iterdir()):
        return
    versions = [int(child.name) for child in path.iterdir() if child.name.isdecimal()]
    if versions:
        raise UserError(
            f"{path} holds versions of a model, which are not replaced; export to "
            f"{path / str(max(versions) + 1)}."
        )
    manifest = read_manifest(path)
    if not manifest:
        raise UserError(
            f"{path} exists and is not an export of this package; remove it or export "
            "elsewhere."
        )
    if (manifest.get("format") == SUBMISSION) != by_submission:
        kinds = ("a model", "a submission")
        raise UserError(
            f"{path} holds {kinds[not by_submission]}, which {kinds[by_submission]} "
            "does not replace; choose another directory."
        )
    if others := sorted(set(_list_files(path)) - set(manifest["files"])):
        raise UserError(
            f"{path} also holds {others[0]}, which is not of the export; move that "
            "file away or export elsewhere."
        )


def _list_files(directory):
    """The files below a directory, as paths from there."""
    return [
        path.relative_to(directory).as_posix()
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    ]
