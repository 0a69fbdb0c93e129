"""Figure of a regulariser study: own heads against audit heads, and the excesses of refitted probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from rlpheads.memorization.figures.figure_file import save_figure
from rlpheads.memorization.figures.style import COLOURS, MUTED, new_figure

Point = tuple[float, float, float]
"""A mean with the ends of its interval."""

_EXCESSES = {"label_excess": "label excess", "membership_excess": "membership excess"}


@dataclass(frozen=True)
class ArmPoint:
    """One arm of a study: its name and its measures as fractions, by name; `own_rla` and `audit_rla` must be there."""

    name: str
    measures: Mapping[str, Point]


def plot_study(path: str | Path, arms: Sequence[ArmPoint], reference: str) -> tuple[Path, ...]:
    """Draw the own heads' accuracy against the audit heads', and both excesses by arm where they were measured.

    On the diagonal the own heads are as accurate as heads that the regulariser never saw: an arm below the reference there
    removed memory. An arm under the diagonal hid it from its own heads.

    Returns:
        Paths of the files, one of each format.
    """
    excesses = [name for name in _EXCESSES if all(name in arm.measures for arm in arms)]
    figure = new_figure((5.2 * (1 + bool(excesses)), 4.4))
    left, *right = figure.subplots(1, 1 + bool(excesses), squeeze=False)[0]
    for position, arm in enumerate(arms):
        x, y = arm.measures["audit_rla"], arm.measures["own_rla"]
        _draw_point(left, (x, y), arm, COLOURS[position % len(COLOURS)], is_reference=arm.name == reference)
    ends = [end for arm in arms for name in ("own_rla", "audit_rla") for end in arm.measures[name]]
    left.plot(
        [100 * min(ends), 100 * max(ends)], [100 * min(ends), 100 * max(ends)], color=MUTED, linestyle=":", zorder=1
    )
    left.set_xlabel("audit heads, clean random-label accuracy, %")
    left.set_ylabel("own heads, clean random-label accuracy, %")
    left.set_title("under the diagonal: hidden from the own heads", fontsize=10)
    left.legend(fontsize=8, frameon=False)
    for axes in right:
        _draw_excesses(axes, arms, excesses)
    return save_figure(figure, path)


def _draw_point(axes: Axes, point: tuple[Point, Point], arm: ArmPoint, colour: str, *, is_reference: bool) -> None:
    (x, x_low, x_high), (y, y_low, y_high) = ([100 * value for value in values] for values in point)
    x_error, y_error = [[x - x_low], [x_high - x]], [[y - y_low], [y_high - y]]
    style: dict[str, Any] = {"fmt": "D" if is_reference else "o", "color": colour, "elinewidth": 1, "capsize": 2}
    axes.errorbar([x], [y], yerr=y_error, xerr=x_error, label=arm.name, **style)


def _draw_excesses(axes: Axes, arms: Sequence[ArmPoint], excesses: Sequence[str]) -> None:
    for offset, name in enumerate(excesses):
        for position, arm in enumerate(arms):
            mean, low, high = (100 * value for value in arm.measures[name])
            x = position + 0.2 * (offset - (len(excesses) - 1) / 2)
            label = _EXCESSES[name] if position == 0 else None
            error = [[mean - low], [high - mean]]
            axes.errorbar([x], [mean], yerr=error, fmt="os"[offset], color=COLOURS[1 + offset], capsize=2, label=label)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xticks(range(len(arms)), [arm.name for arm in arms], rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("excess of refitted probes, points")
    axes.legend(fontsize=8, frameon=False)
