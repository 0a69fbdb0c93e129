"""A matplotlib figure as files (PNG, SVG, PDF), or as SVG that a page holds in itself."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from rlpheads.memorization.atomic_file import atomic_file
from rlpheads.memorization.figures.style import GRID, INK, MUTED

FORMATS = ("png", "svg", "pdf")
_METADATA: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
_PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
_FONTS: Any = {"svg.fonttype": "none", "pdf.fonttype": 42}  # text stays text, which can be searched and edited


def save_figure(figure: Figure, path: str | Path, formats: Sequence[str] = FORMATS) -> tuple[Path, ...]:
    """Write a figure to one file for each format, named `path` without its suffix; equal figures give equal files."""
    path = Path(path)
    base = path.with_suffix("") if path.suffix.removeprefix(".") in FORMATS else path
    files = [base.with_name(f"{base.name}.{each}") for each in formats]
    with matplotlib.rc_context({**_FONTS, "svg.hashsalt": base.name}):
        for each, file in zip(formats, files, strict=True):
            with atomic_file(file) as temporary:
                figure.savefig(temporary, format=each, dpi=200, metadata=_METADATA[each])
    return tuple(files)


def inline_svg(figure: Figure, name: str, alt: str) -> str:
    """Return a figure as an SVG element: identifiers of its own, a title for readers of screens, the page's ink and paper.

    Args:
        figure: the figure.
        name: unique in the page; letters, digits and hyphens.
        alt: what it shows, as text.
    """
    text = io.StringIO()
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    with matplotlib.rc_context({**_FONTS, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for colour, variable in _PAGE_COLOURS.items():
        body = re.sub(re.escape(colour), variable, body, flags=re.IGNORECASE)
    body = re.sub(r'(<svg[^>]*?) (?:height|width)="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) (?:height|width)="[^"]*"', r"\1", body, count=1)
    return body.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}" focusable="false"', 1)
