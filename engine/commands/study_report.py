"""What the runs of a study found: by run, and by arm with intervals across seeds; as JSON, table and figure."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlpheads.engine.commands.study_measures import IN_PERCENT, MEASURES, average_taps, measure_run
from rlpheads.engine.commands.study_plan import ALL_SOURCES, PlannedRun, Study
from rlpheads.engine.report.study_matching import match_paths
from rlpheads.engine.report.study_sources import spread_by_source, spread_table
from rlpheads.engine.report.study_tables import csv_text, latex_text
from rlpheads.engine.runs.environment import collect_environment
from rlpheads.engine.runs.folder import json_text, write_atomically
from rlpheads.memorization.baselines.head_only import NEAR_PERFECT_FIT
from rlpheads.memorization.figures.study_figure import ArmPoint, plot_study
from rlpheads.memorization.measures.intervals import draw_interval
from rlpheads.memorization.measures.multiplicity import holm_adjusted, paired_p_value

SIGNIFICANT = 0.05
"""p-value, for all differences of a study together, below which one is set in bold."""


def collect_study(study: Study, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """Gather what the finished runs found.

    Returns:
        `excesses`: for label and membership excess the runs with a tap beyond chance (`beyond`), all audited runs (`of`),
        and how many chance alone gives at most (`by_chance`), since a run's intervals hold at all its taps together;
        `matched`: the regularisers where audit heads are equally accurate;
        `sources`: where the study varies several sources of chance, the standard deviation over the seeds of each, by arm;
        `saturated`: probes that fit nearly every label (`of` all), which can show no excess;
        `runs`: each run's measures, a list over its taps for those that have one;
        `arms`: for each arm and measure the mean over seeds of the averages over taps (`mean`, `values`), its t interval
        (`low`, `high`; null for a single seed) and, but for the reference, the same of the differences between runs of the
        same seed (`difference`), with its p-value and the one that holds for all differences of the study together.
    """
    environment = collect_environment()
    by_run = {run.folder.name: measure_run(study, run) for run in runs}
    by_source = {
        source: {
            arm: {
                run.seed: average_taps(by_run[run.folder.name]["measures"])
                for run in runs
                if (run.arm, run.source) == (arm, source)
            }
            for arm in study.arms
        }
        for source in study.vary
    }
    values = by_source[study.vary[0]]
    arms = {
        arm: summarize_arm(values[arm], values[study.reference], arm == study.reference)
        for arm in study.arms
        if values[arm]
    }
    adjust_differences(arms)
    return {
        "study": study.name,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "reference": study.reference,
        "vary": study.vary[0] or ALL_SOURCES,
        "sources": spread_by_source({source or ALL_SOURCES: each for source, each in by_source.items()}),
        "settings": study.settings,
        "arms": {arm: {"settings": study.arms[arm], **found} for arm, found in arms.items()},
        "matched": match_paths(study.arms, values, study.reference, _summarize_seeds),
        "excesses": count_excesses(study, by_run.values()),
        "saturated": _count_saturated(by_run.values()),
        "runs": by_run,
        "environment": {name: environment[name] for name in ("packages", "system", "torch", "cuda", "git")},
    }


def count_excesses(study: Study, runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Count the runs with an excess beyond chance at some tap, by kind.

    A membership excess is where its interval leaves out 0, a label excess beyond its luck: the latter's interval is for the own
    labels as they are, which one draw of labels that mean nothing leaves too (docs/audit.md).
    """
    audited = [run for run in runs if "saturated" in run]
    if study.audit is None or not audited:
        return {}
    return {
        name: {
            "beyond": sum(any(is_beyond(run)) for run in audited),
            "of": len(audited),
            "by_chance": (1 - study.audit.level) * len(audited),
        }
        for name, is_beyond in _BEYOND.items()
    }


_BEYOND: dict[str, Callable[[Mapping[str, Any]], list[bool]]] = {
    "label_excess": lambda run: [
        abs(value) > luck for value, luck in zip(run["measures"]["label_excess"], run["label_excess_luck"], strict=True)
    ],
    "membership_excess": lambda run: [not low <= 0 <= high for low, high in run["membership_excess_intervals"]],
}
"""Whether a run's excess at each tap is beyond chance, by kind."""


def _count_saturated(runs: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    flags = [flag for run in runs for flag in run.get("saturated", ())]
    return {"probes": sum(flags), "of": len(flags)}


def print_study(found: Mapping[str, Any], console: Console) -> None:
    """Print the arms' table: means over taps and seeds, with the half-widths of 95 % intervals across seeds."""
    seeds = {run["seed"] for run in found["runs"].values()}
    table = Table(
        title=f"{found['study']}: mean over taps and {len(seeds)} seeds of {found['vary']} ± half of the 95 % interval "
        f"across seeds; bold: differs from {found['reference']} at 5 %, paired by seed, all comparisons together (Holm)",
        title_justify="left",
        padding=(0, 1),
    )
    measures = _shown_measures(found)
    table.add_column("arm")
    for title in measures.values():
        table.add_column(title, justify="right")
    for arm, summary in found["arms"].items():
        table.add_row(arm, *[_cell(name, summary.get(name)) for name in measures])
    console.print(table)
    if matched := found.get("matched"):
        console.print(_matched_table(matched, measures))
    if sources := found.get("sources"):
        console.print(spread_table(sources, measures, _shown))
    for name, counted in found["excesses"].items():
        console.print(
            f"{MEASURES[name]}: beyond chance at some tap in {counted['beyond']} of {counted['of']} runs; by chance "
            f"alone at most {counted['by_chance']:.2g}"
        )
    if (saturated := found["saturated"])["probes"]:
        console.print(
            f"{saturated['probes']} of {saturated['of']} probes fit nearly every label ({NEAR_PERFECT_FIT:.0%} or more) and "
            "can show no excess: with more images, or labels, there is room"
        )


def _matched_table(matched: Mapping[str, Any], measures: Mapping[str, str]) -> Table:
    """Return the table of the regularisers at an equal accuracy of the audit heads."""
    table = Table(
        title=f"interpolated over λ to where audit heads reach {100 * matched['level']:.2f} % (mean over seeds, 95 % interval)",
        title_justify="left",
        padding=(0, 1),
    )
    shown = {name: title for name, title in measures.items() if any(name in path for path in matched["paths"].values())}
    for title in ("regularizer.kind", *shown.values()):
        table.add_column(title, justify="right")
    for kind, summary in matched["paths"].items():
        table.add_row(kind, *[_cell(name, summary.get(name)) for name in shown])
    return table


def write_study(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """Write `study.json`, `study.csv`, `study.tex` and, where own and audit heads were measured, a figure; return the paths."""
    titles = _shown_measures(found)
    cells = {
        arm: {name: _latex_mark(name, summary.get(name)) for name in titles} for arm, summary in found["arms"].items()
    }
    paths = [folder / f"study.{suffix}" for suffix in ("json", "csv", "tex")]
    for path, text in zip(
        paths, (json_text(found, indent=2), csv_text(found), latex_text(found, titles, cells)), strict=True
    ):
        write_atomically(path, text)
    points = [
        ArmPoint(arm, {name: _mean_and_interval(summary[name]) for name in MEASURES if name in summary})
        for arm, summary in found["arms"].items()
    ]
    if not points or not all({"own_rla", "audit_rla"} <= point.measures.keys() for point in points):
        return paths
    return [*paths, *plot_study(folder / "study", points, found["reference"])]


def summarize_arm(
    values: Mapping[int, Mapping[str, float]], reference: Mapping[int, Mapping[str, float]], is_reference: bool
) -> dict[str, Any]:
    """Summarise one arm over its seeds.

    Args:
        values: the arm's averages over taps, by seed and measure.
        reference: those of the arm that it is compared with, seed by seed.
        is_reference: whether that is the arm itself, which then has no differences.
    """
    first, *others = values.values()
    names = [name for name in first if all(name in other for other in others)]  # runs of an older version may lack some
    summary: dict[str, Any] = {name: _summarize_seeds([value[name] for value in values.values()]) for name in names}
    shared = [seed for seed in values if seed in reference]
    for name in names:
        if not is_reference and shared and all(name in reference[seed] for seed in shared):
            differences = [values[seed][name] - reference[seed][name] for seed in shared]
            summary[name]["difference"] = _summarize_seeds(differences)
    return summary


def adjust_differences(arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Give every difference its p-value, and the one that holds for all differences together (null for a single seed)."""
    differences = [each["difference"] for summary in arms.values() for each in summary.values() if "difference" in each]
    p_values = [
        paired_p_value(torch.tensor(each["values"], dtype=torch.float64)) if each["low"] is not None else math.nan
        for each in differences
    ]
    for each, p_value, adjusted in zip(differences, p_values, holm_adjusted(p_values), strict=True):
        each |= {
            "p_value": None if math.isnan(p_value) else p_value,
            "p_adjusted": None if math.isnan(adjusted) else adjusted,
        }


def _shown_measures(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the titles of the measures that some arm has, by name."""
    return {name: title for name, title in MEASURES.items() if any(name in arm for arm in found["arms"].values())}


def _latex_mark(name: str, summary: Mapping[str, Any] | None) -> str:
    text = _cell(name, summary)
    return f"*{text.plain}" if text.style else text.plain


def _summarize_seeds(values: Sequence[float]) -> dict[str, Any]:
    summary: dict[str, Any] = {"mean": fmean(values), "values": list(values), "low": None, "high": None}
    if len(values) > 1 and all(map(math.isfinite, values)):  # a seed that diverged leaves no interval
        interval = draw_interval(torch.tensor(values, dtype=torch.float64))
        summary |= {"low": float(interval.low), "high": float(interval.high)}
    return summary


def _cell(name: str, summary: Mapping[str, Any] | None) -> Text:
    if summary is None:
        return Text("–")
    shown = _shown(name)
    half = (summary["high"] - summary["low"]) / 2 if summary["low"] is not None else math.nan
    text = shown(summary["mean"]) + ("" if math.isnan(half) else f" ± {shown(half)}")
    difference = summary.get("difference")
    p_adjusted = None if difference is None else difference.get("p_adjusted")
    differs = p_adjusted is not None and p_adjusted < SIGNIFICANT
    return Text(text, style="bold" if differs else "")


def _shown(name: str) -> Callable[[float], str]:
    """Return how a measure's values are written."""
    return (lambda x: f"{100 * x:.2f}") if name in IN_PERCENT else (lambda x: f"{x:.3f}")


def _mean_and_interval(summary: Mapping[str, Any]) -> tuple[float, float, float]:
    mean = summary["mean"]
    return (mean, *(summary[end] if summary[end] is not None else mean for end in ("low", "high")))
