"""A matplotlib figure as a PNG and an SVG file."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from rlpheads.memorization.atomic_file import atomic_file


def save_figure(figure: Figure, path: str | Path) -> tuple[Path, Path]:
    """Write `figure` as PNG and SVG; equal figures give equal files."""
    path = Path(path)
    base = path.with_suffix("") if path.suffix in (".png", ".svg") else path
    png, svg = base.with_name(base.name + ".png"), base.with_name(base.name + ".svg")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": base.name}):
        with atomic_file(png) as temporary:
            figure.savefig(temporary, format="png", dpi=200)
        with atomic_file(svg) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
    return png, svg
