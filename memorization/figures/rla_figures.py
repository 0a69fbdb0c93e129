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
from numpy.typing import ArrayLike, NDArray

from rlpheads.memorization.figures.figure_file import save_figure
from rlpheads.memorization.figures.style import (
    BASELINE_LINE,
    DRAW_DOT,
    INK,
    LINE,
    MARKER,
    MAX_TICKS,
    MUTED,
    PHASES,
    epoch_axis,
    legend_below,
    new_figure,
    percent_axis,
)
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
    baseline_half_width: Sequence[float] | None = None
    """Half of the interval of a measured baseline, at each tap: a band around it."""


def plot_rla_by_depth(path: str | Path, *arguments: Any, **options: Any) -> tuple[Path, ...]:
    """Write `draw_rla_by_depth` to files named `path` with the suffix of each format; return their paths."""
    return save_figure(draw_rla_by_depth(*arguments, **options), path)


def plot_rla_by_epoch(path: str | Path, *arguments: Any, **options: Any) -> tuple[Path, ...]:
    """Write `draw_rla_by_epoch` to files named `path` with the suffix of each format; return their paths."""
    return save_figure(draw_rla_by_epoch(*arguments, **options), path)


def draw_rla_by_depth(
    taps: Sequence[int | str],
    accuracy: Mapping[str, ArrayLike],
    references: References,
    title: str = "",
    width: float = 6.4,
) -> Figure:
    """Draw random-label accuracy against the depth of the tap, at one moment of a run.

    Args:
        taps: names of T taps in the order of depth: block numbers, drawn to scale, or text.
        accuracy: (T, M) fractions under any of "clean", "audit", "running" and "heldout". The line is the mean over
            the M draws; with several draws each is a faint dot. NaN leaves a gap.
        references: chance, held-out band and baseline.
        title: above the figure; empty for none.
        width: of the figure, in inches.

    Raises:
        ValueError: no phase, an unknown one, or an array of another shape.
    """
    phases = _phase_arrays(accuracy, (len(taps),))
    depths = [tap for tap in taps if isinstance(tap, int)]
    numbered = len(depths) == len(taps)
    if not numbered:
        depths = list(range(len(taps)))
    figure = new_figure((width, 0.45 * width + 1.5), title)
    axes = figure.add_subplot()
    in_view = _draw_references(axes, references, phases)
    if references.baseline is not None:
        baseline_T = np.broadcast_to(np.asarray(references.baseline, dtype=float), (len(taps),))
        ends = [depths[0] - 0.4, *depths, depths[-1] + 0.4]  # across the whole panel, as chance is
        axes.plot(ends, np.pad(baseline_T, 1, mode="edge"), label=references.baseline_name, **BASELINE_LINE)
        in_view.extend(baseline_T)
        if references.baseline_half_width is not None:
            half_T = np.pad(np.asarray(references.baseline_half_width, dtype=float), 1, mode="edge")
            middle = np.pad(baseline_T, 1, mode="edge")
            axes.fill_between(ends, middle - half_T, middle + half_T, color=INK, alpha=0.1, linewidth=0, zorder=1)
    for phase, accuracy_TM in phases.items():
        style = PHASES[phase]
        if accuracy_TM.shape[1] > 1:
            axes.plot(depths, accuracy_TM, color=style.colour, marker="o", linestyle="none", **DRAW_DOT)
        (line,) = axes.plot(depths, accuracy_TM.mean(1), color=style.colour, label=style.label, zorder=3, **LINE)
        line.set(linestyle=style.linestyle, marker=style.marker, **MARKER)
        in_view.extend(accuracy_TM.ravel())
    percent_axis(axes, in_view)
    axes.set_xlabel("block" if numbered else "tap")
    axes.set_xlim(depths[0] - 0.4, depths[-1] + 0.4)
    shown = slice(None, None, -(-len(taps) // MAX_TICKS))
    axes.set_xticks(depths[shown], [str(tap) for tap in taps[shown]], rotation=0 if numbered else 45)
    axes.set_ylabel("random-label accuracy")
    legend_below(figure, [axes])
    return figure


def draw_rla_by_epoch(
    epochs: Sequence[int],
    taps: Sequence[int | str],
    accuracy: Mapping[str, ArrayLike],
    references: References,
    title: str = "",
    width: float | None = None,
) -> Figure:
    """Draw random-label accuracy against the epoch: a panel for each phase, a line for each tap, coloured by depth.

    The training panels share one scale; the held-out panel has its own, around chance.

    Args:
        epochs: E epochs, ascending.
        taps: names of T taps in the order of depth.
        accuracy: (E, T, M) fractions under any of "clean", "audit", "running" and "heldout"; lines are means over the M draws.
            An epoch of NaN is one in which the phase was not measured: the lines pass over it.
        references: chance, held-out band and baseline.
        title: above the figure; empty for none.
        width: of the figure, in inches.

    Raises:
        ValueError: no phase, an unknown one, or an array of another shape.
    """
    phases = _phase_arrays(accuracy, (len(epochs), len(taps)))
    whole = 1.7 + 2.9 * len(phases) if width is None else width
    num_rows = max(1, round(len(phases) * 2.4 / whole)) if width is not None else 1  # narrow paper: one below the other
    num_columns = -(-len(phases) // num_rows)
    figure = new_figure((whole, 3.0 * num_rows + 0.9), title)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for unused in panels[len(phases) :]:
        unused.remove()
    panels = panels[: len(phases)]
    colours = ListedColormap(
        matplotlib.colormaps["viridis_r"](np.linspace(1.0, 0.06, len(taps))[::-1])
    )  # the deepest is dark
    in_view: dict[bool, list[float]] = {True: [], False: []}  # held-out, and the rest
    for axes, (phase, accuracy_ETM) in zip(panels, phases.items(), strict=True):
        values = in_view[phase == "heldout"]
        values.extend(_draw_references(axes, references, {phase: accuracy_ETM}))
        if phase != "heldout" and references.baseline is not None:
            for baseline in np.unique(references.baseline):
                axes.axhline(baseline, label=references.baseline_name, **BASELINE_LINE)
                values.append(float(baseline))
        values.extend(_draw_epochs(axes, epochs, accuracy_ETM.mean(2), colours))
        axes.set_title(PHASES[phase].label, fontsize=10, color=INK, pad=8)
    for axes, phase in zip(panels, phases, strict=True):
        percent_axis(axes, in_view[phase == "heldout"])
    panels[0].set_ylabel("random-label accuracy")
    _draw_tap_colour_bar(figure, panels, taps, colours)
    legend_below(figure, panels)
    return figure


def draw_rla_heat_map(
    epochs: Sequence[int],
    taps: Sequence[int | str],
    accuracy_ET: ArrayLike,
    num_labels: int,
    title: str = "",
    width: float = 6.4,
) -> Figure:
    """Draw random-label accuracy over epochs and taps as a map, the deepest tap on top.

    Args:
        epochs: E epochs, ascending.
        taps: names of T taps in the order of depth.
        accuracy_ET: (E, T) fractions; NaN leaves a blank.
        num_labels: K; the scale begins at chance, 1/K.
        title: above the figure; empty for none.
        width: of the figure, in inches.
    """
    values_ET = np.asarray(accuracy_ET, dtype=np.float64)
    figure = new_figure((width, 1.3 + 0.22 * max(4, len(taps))), title)
    axes = figure.add_subplot()
    low = min(1 / num_labels, float(np.nanmin(values_ET)))
    shown = axes.imshow(
        values_ET.T,
        origin="lower",
        aspect="auto",
        cmap="cividis",
        interpolation="none",
        vmin=low,
        vmax=np.nanmax(values_ET),
    )
    for axis, names in ((axes.xaxis, epochs), (axes.yaxis, taps)):
        places = range(0, len(names), -(-len(names) // MAX_TICKS))
        axis.set_ticks(list(places), [str(names[place]) for place in places])
    axes.set_xlabel("epoch")
    axes.set_ylabel("block" if all(isinstance(tap, int) for tap in taps) else "tap")
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[:].set_visible(False)
    axes.tick_params(color=MUTED, labelcolor=INK, labelsize=9)
    bar = figure.colorbar(shown, ax=axes, pad=0.02, format=lambda value, _: f"{100 * value:.4g}%")
    bar.ax.tick_params(labelsize=8.5, labelcolor=INK)
    bar.outline.set_visible(False)
    return figure


def _phase_arrays(accuracy: Mapping[str, ArrayLike], shape: tuple[int, ...]) -> dict[str, NDArray[np.float64]]:
    """Return the given phases in the order they are drawn, as arrays of `shape` and the draws behind it."""
    if not accuracy or not accuracy.keys() <= PHASES.keys():
        raise ValueError(f"accuracy needs any of {', '.join(PHASES)}; got {', '.join(accuracy) or 'nothing'}")
    arrays = {phase: np.asarray(accuracy[phase], dtype=np.float64) for phase in PHASES if phase in accuracy}
    for phase, array in arrays.items():
        if array.ndim != len(shape) + 1 or array.shape[:-1] != shape or 0 in array.shape:
            raise ValueError(f"accuracy[{phase!r}] has shape {array.shape}, not {(*shape, 'draws')} with nothing empty")
        if bool(((array < 0) | (array > 1)).any()):  # NaN is a gap
            raise ValueError(f"accuracy[{phase!r}] holds values outside [0, 1]; accuracies are fractions, not percent")
    return arrays


def _draw_references(axes: Axes, references: References, phases: Mapping[str, NDArray[np.float64]]) -> list[float]:
    """Draw chance and, where held-out accuracy is, its band; return the accuracies that have to be in view."""
    chance = 1 / references.num_labels
    axes.axhline(chance, color=MUTED, linewidth=1.1, label=f"chance (1/{references.num_labels})", zorder=1)
    if references.num_heldout is None or "heldout" not in phases:
        return [chance]
    num_draws = phases["heldout"].shape[-1]
    bounds = binomial_bounds(references.num_heldout * num_draws, references.num_labels, HELD_OUT_LEVEL)
    low, high = float(bounds.low), float(bounds.high)
    label = f"{HELD_OUT_LEVEL:.2%} range of held-out at chance"
    axes.axhspan(low, high, color=PHASES["heldout"].colour, alpha=0.14, linewidth=0, label=label, zorder=0)
    return [chance, low, high]


def _draw_epochs(
    axes: Axes, epochs: Sequence[int], accuracy_ET: NDArray[np.float64], colours: ListedColormap
) -> NDArray[np.float64]:
    """Draw one line for each tap; return the accuracies drawn."""
    measured_E = ~np.isnan(accuracy_ET).all(axis=1)
    drawn_ET = accuracy_ET[measured_E]
    marker = "o" if len(drawn_ET) <= MAX_TICKS else ""
    for t, accuracy_E in enumerate(drawn_ET.T):
        axes.plot(np.asarray(epochs)[measured_E], accuracy_E, color=colours(t), marker=marker, markersize=3, **LINE)
    epoch_axis(axes, epochs)
    return drawn_ET.ravel()


def _draw_tap_colour_bar(
    figure: Figure, panels: NDArray[np.object_], taps: Sequence[int | str], colours: ListedColormap
) -> None:
    """Draw the colour bar of the taps."""
    norm = BoundaryNorm(np.arange(len(taps) + 1) - 0.5, len(taps))
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(panels), pad=0.015, aspect=24)
    shown = range(0, len(taps), -(-len(taps) // MAX_TICKS))
    bar.set_ticks(list(shown), labels=[str(taps[t]) for t in shown])
    bar.minorticks_off()
    bar.ax.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    bar.ax.set_title("block" if all(isinstance(tap, int) for tap in taps) else "tap", fontsize=9, color=INK, pad=6)
    bar.outline.set_visible(False)
