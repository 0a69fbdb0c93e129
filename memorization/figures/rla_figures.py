"""Figures of random-label accuracy (RLA) over depth and over epochs, as PNG and SVG.

Built on matplotlib's objects alone, without pyplot or a display, so that a training process can draw them. Files appear
whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from rlpheads.memorization.figures.figure_file import save_figure
from rlpheads.memorization.measures.intervals import HELD_OUT_LEVEL, binomial_bounds


@dataclass(frozen=True)
class References:
    """Reference lines of a figure: chance, held-out band and head-only baseline.

    Attributes:
        num_labels: K; chance is 1/K.
        num_heldout: held-out samples, for the band of chance around their accuracy; None draws no band.
        baseline: accuracy of a head alone, on features independent of the labels (least squares, from n, d
            and K): one for all taps, or one for each. None draws no line.
    """

    num_labels: int
    num_heldout: int | None = None
    baseline: float | Sequence[float] | None = None
    baseline_name: str = "head-only baseline"


@dataclass(frozen=True)
class _PhaseStyle:
    label: str
    colour: str
    marker: str
    linestyle: str


_PHASES = {  # in the order they are drawn; Okabe and Ito's colours, which colour-blind readers can tell apart
    "clean": _PhaseStyle("training set, clean pass", "#0072B2", "o", "-"),
    "running": _PhaseStyle("training set, running", "#D55E00", "s", "--"),
    "heldout": _PhaseStyle("held-out set", "#009E73", "D", "-"),
}
_INK, _MUTED, _GRID = "#222222", "#767676", "#E9E9E9"
_DOTTED = (0, (1, 1.6))
_MAX_TICKS = 16
_LINE: dict[str, Any] = {"linewidth": 1.7, "solid_capstyle": "round"}
_MARKER: dict[str, Any] = {"markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.9}
_DRAW_DOT: dict[str, Any] = {"markersize": 3.5, "markeredgewidth": 0, "alpha": 0.35}
_BASELINE_LINE: dict[str, Any] = {"color": _INK, "linestyle": _DOTTED, "linewidth": 1.5, "zorder": 2}


def plot_rla_by_depth(
    path: str | Path,
    taps: Sequence[int | str],
    accuracy: Mapping[str, ArrayLike],
    references: References,
    title: str = "",
) -> tuple[Path, Path]:
    """Draw random-label accuracy against the depth of the tap, at one moment of a run.

    Args:
        path: where to write; its suffix, if it is .png or .svg, gives way to both.
        taps: names of T taps in the order of depth: block numbers, drawn to scale, or text.
        accuracy: (T, M) fractions under any of "clean", "running" and "heldout". The line is the mean over the M draws;
            with several draws each is a faint dot. NaN leaves a gap.
        references: chance, held-out band and baseline.
        title: above the figure; empty for none.

    Returns:
        Paths of the PNG and of the SVG.

    Raises:
        ValueError: no phase, an unknown one, or an array of another shape.
    """
    phases = _phase_arrays(accuracy, (len(taps),))
    depths = [tap for tap in taps if isinstance(tap, int)]
    numbered = len(depths) == len(taps)
    if not numbered:
        depths = list(range(len(taps)))
    figure = _new_figure((6.4, 4.4), title)
    axes = figure.add_subplot()
    in_view = _draw_references(axes, references, phases)
    if references.baseline is not None:
        baseline_T = np.broadcast_to(np.asarray(references.baseline, dtype=float), (len(taps),))
        ends = [depths[0] - 0.4, *depths, depths[-1] + 0.4]  # across the whole panel, as chance is
        axes.plot(ends, np.pad(baseline_T, 1, mode="edge"), label=references.baseline_name, **_BASELINE_LINE)
        in_view.extend(baseline_T)
    for phase, accuracy_TM in phases.items():
        style = _PHASES[phase]
        if accuracy_TM.shape[1] > 1:
            axes.plot(depths, accuracy_TM, color=style.colour, marker="o", linestyle="none", **_DRAW_DOT)
        (line,) = axes.plot(depths, accuracy_TM.mean(1), color=style.colour, label=style.label, zorder=3, **_LINE)
        line.set(linestyle=style.linestyle, marker=style.marker, **_MARKER)
        in_view.extend(accuracy_TM.ravel())
    _finish_axes(axes, in_view)
    axes.set_xlabel("block" if numbered else "tap")
    axes.set_xlim(depths[0] - 0.4, depths[-1] + 0.4)
    shown = slice(None, None, -(-len(taps) // _MAX_TICKS))
    axes.set_xticks(depths[shown], [str(tap) for tap in taps[shown]], rotation=0 if numbered else 45)
    axes.set_ylabel("random-label accuracy")
    _legend(figure, [axes])
    return save_figure(figure, path)


def plot_rla_by_epoch(
    path: str | Path,
    epochs: Sequence[int],
    taps: Sequence[int | str],
    accuracy: Mapping[str, ArrayLike],
    references: References,
    title: str = "",
) -> tuple[Path, Path]:
    """Draw random-label accuracy against the epoch: a panel for each phase, a line for each tap, coloured by depth.

    The training panels share one scale; the held-out panel has its own, around chance.

    Args:
        path: where to write; its suffix, if it is .png or .svg, gives way to both.
        epochs: E epochs, ascending.
        taps: names of T taps in the order of depth.
        accuracy: (E, T, M) fractions under any of "clean", "running" and "heldout"; lines are means over the M draws.
            An epoch of NaN is one in which the phase was not measured: the lines pass over it.
        references: chance, held-out band and baseline.
        title: above the figure; empty for none.

    Returns:
        Paths of the PNG and of the SVG.

    Raises:
        ValueError: no phase, an unknown one, or an array of another shape.
    """
    phases = _phase_arrays(accuracy, (len(epochs), len(taps)))
    figure = _new_figure((1.7 + 2.9 * len(phases), 3.9), title)
    panels = figure.subplots(1, len(phases), squeeze=False)[0]
    colours = ListedColormap(
        matplotlib.colormaps["viridis_r"](np.linspace(1.0, 0.06, len(taps))[::-1])
    )  # the deepest is dark
    in_view: dict[bool, list[float]] = {True: [], False: []}  # held-out, and the rest
    for axes, (phase, accuracy_ETM) in zip(panels, phases.items(), strict=True):
        values = in_view[phase == "heldout"]
        values.extend(_draw_references(axes, references, {phase: accuracy_ETM}))
        if phase != "heldout" and references.baseline is not None:
            for baseline in np.unique(references.baseline):
                axes.axhline(baseline, label=references.baseline_name, **_BASELINE_LINE)
                values.append(float(baseline))
        values.extend(_draw_epochs(axes, epochs, accuracy_ETM.mean(2), colours))
        axes.set_title(_PHASES[phase].label, fontsize=10, color=_INK, pad=8)
    for axes, phase in zip(panels, phases, strict=True):
        _finish_axes(axes, in_view[phase == "heldout"])
    panels[0].set_ylabel("random-label accuracy")
    _draw_tap_colour_bar(figure, panels, taps, colours)
    _legend(figure, panels)
    return save_figure(figure, path)


def _phase_arrays(accuracy: Mapping[str, ArrayLike], shape: tuple[int, ...]) -> dict[str, NDArray[np.float64]]:
    """Return the given phases in the order they are drawn, as arrays of `shape` and the draws behind it."""
    if not accuracy or not accuracy.keys() <= _PHASES.keys():
        raise ValueError(f"accuracy needs any of {', '.join(_PHASES)}; got {', '.join(accuracy) or 'nothing'}")
    arrays = {phase: np.asarray(accuracy[phase], dtype=np.float64) for phase in _PHASES if phase in accuracy}
    for phase, array in arrays.items():
        if array.ndim != len(shape) + 1 or array.shape[:-1] != shape or 0 in array.shape:
            raise ValueError(f"accuracy[{phase!r}] has shape {array.shape}, not {(*shape, 'draws')} with nothing empty")
        if bool(((array < 0) | (array > 1)).any()):  # NaN is a gap
            raise ValueError(f"accuracy[{phase!r}] holds values outside [0, 1]; accuracies are fractions, not percent")
    return arrays


def _new_figure(size: tuple[float, float], title: str) -> Figure:
    """Return an empty figure of `size` inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.04)
    figure = Figure(figsize=size, layout=layout, facecolor="white")
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", color=_INK)
    return figure


def _draw_references(axes: Axes, references: References, phases: Mapping[str, NDArray[np.float64]]) -> list[float]:
    """Draw chance and, where held-out accuracy is, its band; return the accuracies that have to be in view."""
    chance = 1 / references.num_labels
    axes.axhline(chance, color=_MUTED, linewidth=1.1, label=f"chance (1/{references.num_labels})", zorder=1)
    if references.num_heldout is None or "heldout" not in phases:
        return [chance]
    num_draws = phases["heldout"].shape[-1]
    bounds = binomial_bounds(references.num_heldout * num_draws, references.num_labels, HELD_OUT_LEVEL)
    low, high = float(bounds.low), float(bounds.high)
    label = f"{HELD_OUT_LEVEL:.2%} range of held-out at chance"
    axes.axhspan(low, high, color=_PHASES["heldout"].colour, alpha=0.14, linewidth=0, label=label, zorder=0)
    return [chance, low, high]


def _draw_epochs(
    axes: Axes, epochs: Sequence[int], accuracy_ET: NDArray[np.float64], colours: ListedColormap
) -> NDArray[np.float64]:
    """Draw one line for each tap; return the accuracies drawn."""
    measured_E = ~np.isnan(accuracy_ET).all(axis=1)
    drawn_ET = accuracy_ET[measured_E]
    marker = "o" if len(drawn_ET) <= _MAX_TICKS else ""
    for t, accuracy_E in enumerate(drawn_ET.T):
        axes.plot(np.asarray(epochs)[measured_E], accuracy_E, color=colours(t), marker=marker, markersize=3, **_LINE)
    axes.set_xlabel("epoch")
    pad = 0.03 * (epochs[-1] - epochs[0]) or 0.5
    axes.set_xlim(epochs[0] - pad, epochs[-1] + pad)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    return drawn_ET.ravel()


def _draw_tap_colour_bar(
    figure: Figure, panels: NDArray[np.object_], taps: Sequence[int | str], colours: ListedColormap
) -> None:
    """Draw the colour bar of the taps."""
    norm = BoundaryNorm(np.arange(len(taps) + 1) - 0.5, len(taps))
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(panels), pad=0.015, aspect=24)
    shown = range(0, len(taps), -(-len(taps) // _MAX_TICKS))
    bar.set_ticks(list(shown), labels=[str(taps[t]) for t in shown])
    bar.minorticks_off()
    bar.ax.tick_params(length=0, labelsize=8.5, labelcolor=_INK)
    bar.ax.set_title("block" if all(isinstance(tap, int) for tap in taps) else "tap", fontsize=9, color=_INK, pad=6)
    bar.outline.set_visible(False)


def _finish_axes(axes: Axes, in_view: Sequence[float]) -> None:
    """Percent scale around what has to be in view, from zero unless that would waste a third of the height."""
    low, high = float(np.nanmin(in_view)), float(np.nanmax(in_view))
    margin = 0.08 * max(high - low, 0.1 * high)
    axes.set_ylim(low - margin if low > high / 3 else 0.0, min(high + margin, 1.02))
    axes.yaxis.set_major_formatter(lambda accuracy, _: f"{100 * accuracy:.4g}%")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(color=_MUTED, labelcolor=_INK, labelsize=9)
    axes.xaxis.label.set(color=_INK, fontsize=10)
    axes.yaxis.label.set(color=_INK, fontsize=10)


def _legend(figure: Figure, panels: Sequence[Axes] | NDArray[np.object_]) -> None:
    """One legend under all panels, each label once, measurements first."""
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    measured = [style.label for style in _PHASES.values() if style.label in handles]
    labels = measured + [label for label in handles if label not in measured]
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=min(len(labels), 3),
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
    )
