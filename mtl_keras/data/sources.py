"""Where the files of a data set are: in folders, or in zip archives as downloaded.

An archive is read in place, by every process for itself. Nothing is unpacked.

This module runs in worker processes, so it imports nothing heavy.
"""

import functools
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from mtl_keras.cityscapes import COARSE_FOLDER, FILES
from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike

FOLDERS = {COARSE_FOLDER, *(folder for folder, _ in FILES.values())}
MAX_BYTES = 2**28  # of a member; the largest of Cityscapes has 3 MB
METHODS = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
)
MAX_RATIO = 200  # of a member's size and that in the archive; of a PNG it is near 1


class Member(NamedTuple):
    """A file in an archive, with what a `pathlib.Path` offers of a file.

    Attributes:
        archive: `pathlib.Path` of the archive.
        path: str, its name in the archive, with `/` between folders.
    """

    archive: pathlib.Path
    path: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.path}"

    @property
    def name(self) -> str:
        """Its name without the folders."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> pathlib.PurePosixPath:
        """Its folder in the archive."""
        return pathlib.PurePosixPath(self.path).parent

    def read_bytes(self) -> bytes:
        """Its content.

        Raises:
            UserError: if the archive is damaged here.
        """
        try:
            return _open(self.archive).read(self.path)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(
                f"{self} is damaged ({error}); download {self.archive.name} again."
            ) from error


File: TypeAlias = pathlib.Path | Member


def find_sources(data: PathLike) -> tuple[pathlib.Path, ...]:
    """The folders and archives that `--data` names.

    Args:
        data: a folder, in which archives count that are named as on the download page,
            an archive of any name, or several of them with commas between.

    Raises:
        UserError: if one of them does not exist, or one of several holds nothing that
            is called as in Cityscapes.
    """
    names = [data] if pathlib.Path(data).exists() else str(data).split(",")
    paths = {pathlib.Path(name).resolve(): name for name in names}
    for path, name in paths.items():
        if not path.exists():
            raise UserError(
                f"There is no directory or archive {name}; name the folder that holds "
                "the data set."
            )
    sources: list[pathlib.Path] = []
    for path, name in paths.items():
        found = [path]
        if path.is_dir():
            found += sorted(
                child
                for child in _list_directory(path)
                if child.suffix.lower() == ".zip"
                and child.name.startswith(tuple(FOLDERS))
            )
        if len(paths) > 1 and not any(has_folder((*found,), f) for f in FOLDERS):
            raise UserError(
                f"{name} holds none of the folders {', '.join(sorted(FOLDERS))}; leave "
                "it out of --data, or name it alone if it is other data."
            )
        sources += found
    return tuple(dict.fromkeys(sources))


def find_files(
    sources: tuple[pathlib.Path, ...], folder: str, ending: str
) -> Iterator[File]:
    """The files `folder/CITY/*ending` of all sources, without hidden ones: a Mac
    leaves a file `._NAME`, which is not an image, beside every NAME of an archive.

    Of files with one city and name, that of the first source is taken.

    Raises:
        UserError: if two such files are not of one size.
    """
    seen: dict[tuple[str, str], File] = {}
    for source in sources:
        found = _find_in_folder if source.is_dir() else _find_in_archive
        for file in found(source, folder, ending):
            first = seen.setdefault((file.parent.name, file.name), file)
            if first is file:
                yield file
            else:
                _check_same(first, file)


def locate(sources: tuple[pathlib.Path, ...], path: str) -> File | None:
    """The file that is called `path` below a source, of the first that has it; its
    ending may be in capitals.

    Raises:
        UserError: if another source has a file of that name and another size.
    """
    found = [file for source in sources if (file := _locate(source, path))]
    for file in found[1:]:
        _check_same(found[0], file)
    return found[0] if found else None


def _locate(source, path):
    stem, dot, ending = path.rpartition(".")
    for name in (path, f"{stem}{dot}{ending.upper()}"):
        if source.is_dir():
            if is_file(source / name):
                return source / name
        elif name in list_members(source):
            return Member(source, list_members(source)[name].filename)
    return None


def _check_same(first, second):
    """Raises `UserError` for two files of one name and another size."""
    if _num_bytes(first) != _num_bytes(second):
        raise UserError(
            f"{first} and {second} are not the same; leave one of them out of --data."
        )


def fingerprint(file: File) -> str:
    """What changes with the content of a file: its size and time, or its checksum."""
    if isinstance(file, Member):
        info = _open(file.archive).getinfo(file.path)
        return f"{info.file_size} {info.CRC}"
    stat = file.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _num_bytes(file):
    if isinstance(file, Member):
        return _open(file.archive).getinfo(file.path).file_size
    try:
        return file.stat().st_size
    except OSError as error:
        raise unreadable(file, error) from error


def has_folder(sources: tuple[pathlib.Path, ...], folder: str) -> bool:
    """Whether a source has a folder, on top or in an archive."""
    for source in sources:
        if source.is_dir():
            if (source / folder).is_dir():
                return True
        elif any(path.startswith(f"{folder}/") for path in list_members(source)):
            return True
    return False


def is_file(path: pathlib.Path) -> bool:
    """Whether a path is a file; `UserError` if its directory may not be entered."""
    try:
        return path.is_file()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: File, error: OSError) -> UserError:
    """What to raise for a file that cannot be read."""
    return UserError(
        f"{path} cannot be read ({error.strerror}); see to its permissions."
    )


def list_members(archive: pathlib.Path) -> dict[str, zipfile.ZipInfo]:
    """The files of an archive by their path, from the folder of a data set on.

    Raises:
        UserError: if it is not an archive, or has members that leave it, are encrypted
            or far larger than any picture.
    """
    return _list_members(archive, _stamp(archive))


@functools.lru_cache(maxsize=16)
def _list_members(archive, stamp):
    members = {}
    for info in _open(archive).infolist():
        parts = info.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
            raise UserError(
                f"{archive} holds {info.filename!r}, which leads out of it; use the "
                "archive as it was downloaded."
            )
        if info.is_dir() or any(part.startswith(".") for part in parts):
            continue
        fault = _find_fault(info)
        if fault:
            raise UserError(
                f"{archive} holds {info.filename}, which {fault}; use the archive as "
                "it was downloaded."
            )
        start = next((i for i, p in enumerate(parts) if p in FOLDERS), 0)
        members.setdefault("/".join(parts[start:]), info)
    return members


def _find_fault(info):
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in METHODS:
        return "is compressed by a method that Python does not know"
    if info.file_size > MAX_BYTES:
        return f"claims {info.file_size / 2**20:.0f} MiB"
    if info.file_size > MAX_RATIO * max(info.compress_size, 2**12):
        return f"claims {info.file_size / 2**20:.0f} MiB of {info.compress_size} bytes"
    return ""


def _open(archive):
    """An open archive, one for each process that reads it."""
    return _open_stamped(archive, _stamp(archive))


def _stamp(archive):
    """What tells an archive from one that has taken its place."""
    try:
        stat = archive.stat()
    except OSError as error:
        raise unreadable(archive, error) from error
    return stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=16)
def _open_stamped(archive, stamp):
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{archive} is not a whole zip archive ({error}); download it again."
        ) from error
    except OSError as error:
        raise unreadable(archive, error) from error


def _find_in_folder(source, folder, ending):
    for city in _list_directory(source / folder):
        for path in _list_directory(city):
            if _ends_with(path.name, ending):
                yield path


def _find_in_archive(source, folder, ending):
    for path, info in list_members(source).items():
        place, _, name = path.rpartition("/")
        if _ends_with(name, ending) and place.rpartition("/")[0] == folder:
            yield Member(source, info.filename)


def _ends_with(name, ending):
    """Whether a name has an ending, whose own ending may be in capitals."""
    stem, dot, kind = ending.rpartition(".")
    return name.endswith((ending, f"{stem}{dot}{kind.upper()}"))


def _list_directory(path):
    """What is in a directory and not hidden; nothing if it is none. Globbing would
    pass over a directory that may not be read."""
    try:
        return [p for p in path.iterdir() if not p.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(path, error) from error
