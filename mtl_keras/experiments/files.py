"""Files that are whole whenever they are there."""

import os
import pathlib


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file aside, has the disk hold it, and puts it into its place.

    Args:
        path: of the file, which may exist; `.part` is added to the name of the other.
        content: bytes, or a str, written as UTF-8; a name of a file in it may hold any
            bytes.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogateescape")
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_bytes(content)
    flush(unfinished)
    unfinished.replace(path)


def flush(path: pathlib.Path) -> None:
    """Has the disk hold what was written to a file, or renamed in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
