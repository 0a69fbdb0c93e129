"""Figures of the classes: loss and accuracy by epoch, the dataset map, and runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rlpheads.memorization.figures.style import (
    COLOURS,
    INK,
    LINE,
    MUTED,
    PHASES,
    epoch_axis,
    finish_axes,
    legend_below,
    new_figure,
    percent_axis,
)


def draw_class_curves(
    epochs: Sequence[int],
    losses: Mapping[str, Sequence[float | None]],
    accuracies: Mapping[str, Sequence[float | None]],
    width: float = 6.4,
) -> Figure:
    """Draw class loss and class accuracy by epoch, side by side.

    Args:
        epochs: E epochs, ascending.
        losses: E losses in nats by phase (running, clean, heldout); None where not measured.
        accuracies: likewise, fractions.
        width: of the figure, in inches.
    """
    figure = new_figure((width, 0.42 * width + 0.6))
    panels = figure.subplots(1, 2)
    for axes, curves, label in zip(panels, (losses, accuracies), ("class loss, nats", "class accuracy"), strict=True):
        in_view: list[float] = []
        for phase, values in curves.items():
            known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
            if known:
                style = PHASES[phase]
                axes.plot(
                    *zip(*known, strict=True), color=style.colour, linestyle=style.linestyle, label=style.label, **LINE
                )
                in_view += [value for _, value in known]
        axes.set_ylabel(label)
        epoch_axis(axes, epochs)
        finish_axes(axes)
        if label == "class accuracy" and in_view:
            percent_axis(axes, in_view)
    legend_below(figure, panels)
    return figure


def draw_dataset_map(confidence_N: ArrayLike, variability_N: ArrayLike, width: float = 6.4) -> Figure:
    """Draw the dataset map as counts of samples: mean probability of the given class over epochs, against its deviation.

    Args:
        confidence_N: mean probability, (N,).
        variability_N: its standard deviation over the epochs, (N,).
        width: of the figure, in inches.
    """
    confidence, variability = (np.asarray(values, dtype=np.float64) for values in (confidence_N, variability_N))
    counts, x, y = np.histogram2d(variability, confidence, bins=60, range=[[0, 0.5], [0, 1]])
    figure = new_figure((width, 0.6 * width))
    axes = figure.add_subplot()
    shown = axes.imshow(
        np.where(counts.T > 0, np.log10(np.maximum(counts.T, 1)), np.nan),
        origin="lower",
        extent=(x[0], x[-1], y[0], y[-1]),
        aspect="auto",
        cmap="cividis",
        interpolation="none",
    )
    axes.set_xlabel("variability of the probability of the given class")
    axes.set_ylabel("its mean over the epochs")
    finish_axes(axes)
    bar = figure.colorbar(shown, ax=axes, pad=0.02, format=lambda value, _: f"{10**value:.0f}")
    bar.ax.set_title("images", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8.5, labelcolor=INK)
    return figure


def draw_pareto(names: Sequence[str], accuracy_R: ArrayLike, memory_R: ArrayLike, width: float = 6.4) -> Figure:
    """Draw held-out class accuracy against random-label accuracy, a point for each of R runs; up and left is better."""
    figure = new_figure((width, 0.55 * width + 0.5))
    axes = figure.add_subplot()
    points = zip(names, np.asarray(memory_R, dtype=float), np.asarray(accuracy_R, dtype=float), strict=True)
    for position, (name, memory, accuracy) in enumerate(points):
        axes.plot(memory, accuracy, "o", color=COLOURS[position % len(COLOURS)], label=name, markersize=7)
    percent_axis(axes, np.asarray(accuracy_R, dtype=float).tolist())
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    axes.set_xlabel("random-label accuracy of the audit heads (own heads without any), greatest over taps")
    axes.set_ylabel("held-out class accuracy")
    axes.grid(color=MUTED, alpha=0.2)
    legend_below(figure, [axes])
    return figure
