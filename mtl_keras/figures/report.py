"""A report as one page: it needs no other file and makes no request."""

import base64
import contextlib
import dataclasses
import importlib.resources
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2

from mtl_keras.errors import UserError
from mtl_keras.hints import PathLike

# The first line of every report, so that no other page is ever overwritten.
MARK = "<!-- A report of mtl_keras. -->"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells are text, or numbers, which get four significant digits and align to the
    right; `None` is empty. The first column heads the rows. `best` holds the places
    `(row, column)` that are set off; cells of `scores` are not broken into lines. A
    caption that is the title of the section is not repeated."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    best: frozenset = frozenset()
    scores: bool = False


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture: SVG text or the bytes of a PNG file. A wide one keeps its size and
    scrolls in its own box on a narrow screen."""

    caption: str
    content: str | bytes
    wide: bool = False

    @property
    def png(self) -> str:
        """The address of a PNG file that holds the file itself, `""` for SVG."""
        if isinstance(self.content, str):
            return ""
        return f"data:image/png;base64,{base64.b64encode(self.content).decode()}"


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    note: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """A report: its title, a sentence or two, and its sections."""

    title: str
    summary: str
    sections: Sequence[Section]


def render_page(page: Page) -> str:
    """A page as HTML. All text is shown as it is, whatever characters it has."""
    source = importlib.resources.files("mtl_keras.figures") / "report.html.j2"
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _format_cell
    environment.tests["figure"] = lambda cell: isinstance(cell, (int, float))
    template = environment.from_string(source.read_text(encoding="utf-8"))
    return f"{MARK}\n{template.render(page=page)}\n"


def write_page(page: Page, path: PathLike) -> None:
    """Writes a page to a file, in place of an earlier report.

    Raises:
        UserError: if the file is there and is not a report, or cannot be written.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file in it.")
    unfinished = path.with_name(f".{path.name}.part")
    try:
        if path.exists():
            with open(path, encoding="utf-8", errors="replace") as file:
                if file.readline().rstrip() != MARK:
                    raise UserError(
                        f"{path} exists and is not a report; move it away or choose "
                        "another file."
                    )
        html = render_page(page)
        unfinished.write_text(html, encoding="utf-8", errors="surrogateescape")
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be written ({error.strerror}); choose another place, or "
            "make room for it."
        ) from error


def _format_cell(value):
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
