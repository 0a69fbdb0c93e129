"""Several runs beside each other: the settings in which they differ, and accuracy against memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlpheads.engine.config.values import flat_settings
from rlpheads.engine.page.blocks import Block, Drawing, Grid, Section
from rlpheads.engine.page.facts import RunFacts
from rlpheads.engine.page.run_sections import HIDDEN
from rlpheads.engine.page.verdict import TELLING
from rlpheads.engine.report.display import percent
from rlpheads.engine.report.summary import telling_figure
from rlpheads.memorization.figures.class_figures import draw_pareto
from rlpheads.memorization.figures.figure_file import inline_svg


def comparison_section(runs: Sequence[RunFacts]) -> Section:
    """Compare runs; a section without blocks for a single one."""
    if len(runs) < 2:
        return Section("comparison", "The runs compared", [])
    settings = [flat_settings(asdict(run.config)) for run in runs]
    keys = sorted({key for each in settings for key in each})
    rows = [
        [key, *(str(each.get(key, "–")) for each in settings)]
        for key in keys
        if key not in HIDDEN and len({str(each.get(key)) for each in settings}) > 1
    ]
    names = [run.name for run in runs]
    blocks: list[Block] = [Grid("Settings in which the runs differ", ["key", *names], rows)]
    measured = [(run, run.last("eval_top1"), greatest_memory(run)) for run in runs]
    results = [
        (
            run.name,
            f"{run.last('regularizer_factor') or 0:g}",
            percent(top1),
            percent(memory),
            percent(max(run.last("fresh_refit_clean") or [], default=None)),
        )
        for run, top1, memory in measured
    ]
    columns = (
        "run",
        "λ at the end",
        "held-out accuracy",
        "random-label accuracy, greatest over taps",
        "refit there, greatest",
    )
    blocks.append(Grid("Accuracy and memory", columns, results, f"{TELLING}."))
    points = [
        (f"{run.name} (λ {run.last('regularizer_factor') or 0:g})", top1, memory)
        for run, top1, memory in measured
        if top1 is not None and memory is not None
    ]
    if len(points) > 1:
        named, accuracies, memories = zip(*points, strict=True)
        figure = draw_pareto(named, accuracies, memories)
        caption = "Held-out accuracy against random-label accuracy, a point for each run: up and left is better."
        blocks.append(Drawing(inline_svg(figure, "pareto", caption), caption))
    return Section("comparison", "The runs compared", blocks)


def greatest_memory(run: RunFacts) -> float | None:
    """Return the random-label accuracy of the heads that tell what is remembered, the greatest over the taps."""
    measured = (row for row in reversed(run.epochs) if row.get("rla_clean"))
    row: Mapping[str, Any] = next(measured, {})
    values = row.get(telling_figure(row, run.config.heads))
    return None if not values else max(values)
