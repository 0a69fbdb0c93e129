"""What a page is made of: sections of text, figures, tables, pictures and files, which one template turns into HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Text:
    """A paragraph; `tone` says whether it is plain, a note on how to read, or a warning."""

    text: str
    tone: Literal["plain", "note", "warning", "verdict"] = "plain"
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Drawing:
    """A figure: SVG made by `rlpheads.memorization.figures.figure_file.inline_svg`, and its caption."""

    svg: str
    caption: str
    kind: str = field(default="drawing", init=False)


@dataclass(frozen=True)
class Grid:
    """A table that can be sorted by each column. Cells are text; a cell's sort key is its number where it begins with one."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    kind: str = field(default="grid", init=False)


@dataclass(frozen=True)
class Picture:
    """One image: its pixels as a data URI (empty where it cannot be read), the class to filter by, and lines about it."""

    source: str
    alt: str
    class_name: str
    lines: Sequence[str]
    sparkline: str = ""
    """Points of a polyline in a box of 100 by 24."""


@dataclass(frozen=True)
class Gallery:
    """Pictures of one ranking, which can be filtered by class."""

    title: str
    note: str
    pictures: Sequence[Picture]
    kind: str = field(default="gallery", init=False)


@dataclass(frozen=True)
class Attachment:
    """A file that the page holds."""

    name: str
    uri: str
    words: str


@dataclass(frozen=True)
class Attachments:
    """Files to be saved, and text to be copied."""

    files: Sequence[Attachment]
    snippets: Sequence[tuple[str, str]] = ()
    kind: str = field(default="attachments", init=False)


Block: TypeAlias = Text | Drawing | Grid | Gallery | Attachments


@dataclass(frozen=True)
class Section:
    """A section of the page; one without blocks is left out."""

    identity: str
    title: str
    blocks: Sequence[Block]
