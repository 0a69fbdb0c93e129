"""The style that all figures share: colours, lines, text, axes and legends, for one width of paper.

Built on matplotlib's objects alone, without pyplot or a display, so that a training process can draw. Colours are Okabe and
Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID = "#222222", "#767676", "#E9E9E9"
COLOURS = (INK, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE: dict[str, Any] = {"linewidth": 1.7, "solid_capstyle": "round"}
MARKER: dict[str, Any] = {"markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.9}
DRAW_DOT: dict[str, Any] = {"markersize": 3.5, "markeredgewidth": 0, "alpha": 0.35}
BASELINE_LINE: dict[str, Any] = {"color": INK, "linestyle": (0, (1, 1.6)), "linewidth": 1.5, "zorder": 2}
MAX_TICKS = 16


@dataclass(frozen=True)
class PhaseStyle:
    """How the accuracies of one phase are drawn."""

    label: str
    colour: str
    marker: str
    linestyle: str


PHASES = {  # in the order they are drawn
    "clean": PhaseStyle("training set, clean pass", "#0072B2", "o", "-"),
    "audit": PhaseStyle("audit heads, clean pass", "#CC79A7", "^", "-"),
    "running": PhaseStyle("training set, running", "#D55E00", "s", "--"),
    "heldout": PhaseStyle("held-out set", "#009E73", "D", "-"),
}


def new_figure(size: tuple[float, float], title: str = "") -> Figure:
    """Return an empty figure of `size` inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.04)
    figure = Figure(figsize=size, layout=layout, facecolor="white")
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
    return figure


def finish_axes(axes: Axes) -> None:
    """Colour and size spines, ticks and labels, with a faint grid across."""
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(color=MUTED, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, fontsize=10)
    axes.yaxis.label.set(color=INK, fontsize=10)


def percent_axis(axes: Axes, in_view: Sequence[float]) -> None:
    """Percent scale around what has to be in view, from zero unless that would waste a third of the height."""
    low, high = float(np.nanmin(in_view)), float(np.nanmax(in_view))
    margin = 0.08 * max(high - low, 0.1 * high)
    axes.set_ylim(low - margin if low > high / 3 else 0.0, min(high + margin, 1.02))
    axes.yaxis.set_major_formatter(lambda accuracy, _: f"{100 * accuracy:.4g}%")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    finish_axes(axes)


def epoch_axis(axes: Axes, epochs: Sequence[int]) -> None:
    """Whole epochs along the bottom, with a little room at both ends."""
    axes.set_xlabel("epoch")
    pad = 0.03 * (epochs[-1] - epochs[0]) or 0.5
    axes.set_xlim(epochs[0] - pad, epochs[-1] + pad)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))


def legend_below(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend under all panels, each label once, measurements first; as many columns as the width holds."""
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    measured = [style.label for style in PHASES.values() if style.label in handles]
    labels = measured + [label for label in handles if label not in measured]
    if not labels:
        return
    fits = max(1, int(figure.get_figwidth() / (0.078 * max(map(len, labels)) + 0.45)))
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=min(len(labels), 3, fits),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
