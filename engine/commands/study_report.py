"""What the runs of a study found: by run, and by arm with intervals across seeds; as JSON, table and figure."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlpheads.engine.audits.audit_run import audit_path
from rlpheads.engine.commands.study_plan import PlannedRun, Study
from rlpheads.engine.report.study_matching import match_paths
from rlpheads.engine.report.study_tables import csv_text, latex_text
from rlpheads.engine.runs.environment import collect_environment
from rlpheads.engine.runs.folder import RunFolder, write_atomically
from rlpheads.engine.runs.opened_run import RunError, open_checkpoint
from rlpheads.memorization.baselines.head_only import NEAR_PERFECT_FIT
from rlpheads.memorization.figures.study_figure import ArmPoint, plot_study
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping
from rlpheads.memorization.measures.intervals import draw_interval
from rlpheads.memorization.measures.multiplicity import holm_adjusted, paired_p_value

MEASURES = {
    "top1": "held-out top-1",
    "ece": "held-out ECE",
    "own_rla": "own heads",
    "audit_rla": "audit heads",
    "hidden": "audit − own",
    "heldout_rla": "held-out",
    "own_bits_per_sample": "own bits a sample",
    "own_refit": "refit, own labels",
    "fresh_refit": "refit, fresh labels",
    "members_refit": "refit, members",
    "nonmembers_refit": "refit, non-members",
    "label_excess": "label excess",
    "membership_excess": "membership excess",
}
"""Every measure of a run, by its name in the JSON, with its name in the table. Random-label accuracies are clean ones of
the last epoch; `hidden` is what audit heads find beyond the own ones; refit and excess are of refitted probes: members and
non-members are as many training as held-out images, whose difference is the membership excess. All but
top1 and ece (the expected calibration error of the classes) have a value for each tap."""

_METRICS = {
    "top1": "eval_top1",
    "ece": "eval_ece",
    "own_rla": "rla_clean",
    "audit_rla": "audit_rla_clean",
    "heldout_rla": "rla_heldout",
    "own_bits_per_sample": "bits_per_sample_clean",
}
"""Names of the measures of training in an epoch's line of metrics.jsonl."""

SIGNIFICANT = 0.05
"""p-value, for all differences of a study together, below which one is set in bold."""
_MEASURES_IN_BITS = {"own_bits_per_sample"}
_EXCESSES = ("label_excess", "membership_excess")


def collect_study(study: Study, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """Gather what the finished runs found.

    Returns:
        `excesses`: for label and membership excess the runs with a tap beyond its interval (`beyond`), all audited runs (`of`),
        and how many chance alone gives at most (`by_chance`), since a run's intervals hold at all its taps together;
        `matched`: the regularisers where audit heads are equally accurate;
        `saturated`: probes that fit nearly every label (`of` all), which can show no excess;
        `runs`: each run's measures, a list over its taps for those that have one;
        `arms`: for each arm and measure the mean over seeds of the averages over taps (`mean`, `values`), its t interval
        (`low`, `high`; null for a single seed) and, but for the reference, the same of the differences between runs of the
        same seed (`difference`), with its p-value and the one that holds for all differences of the study together.
    """
    environment = collect_environment()
    by_run = {run.folder.name: _run_measures(study, run) for run in runs}
    values = {
        arm: {run.seed: _average_taps(by_run[run.folder.name]["measures"]) for run in runs if run.arm == arm}
        for arm in study.arms
    }
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
        "vary": study.vary or "all",
        "settings": study.settings,
        "arms": {arm: {"settings": study.arms[arm], **found} for arm, found in arms.items()},
        "matched": match_paths(study.arms, values, study.reference, _summarize_seeds),
        "excesses": _count_excesses(study, by_run.values()),
        "saturated": _count_saturated(by_run.values()),
        "runs": by_run,
        "environment": {name: environment[name] for name in ("packages", "system", "torch", "cuda", "git")},
    }


def _count_excesses(study: Study, runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Count the runs with a tap whose interval leaves out 0, by kind of excess."""
    audited = [run for run in runs if "saturated" in run]
    if study.audit is None or not audited:
        return {}
    return {
        name: {
            "beyond": sum(any(not low <= 0 <= high for low, high in run[f"{name}_intervals"]) for run in audited),
            "of": len(audited),
            "by_chance": (1 - study.audit.level) * len(audited),
        }
        for name in _EXCESSES
    }


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
    for name, counted in found["excesses"].items():
        console.print(
            f"{MEASURES[name]}: beyond its interval at some tap in {counted['beyond']} of {counted['of']} runs; by chance "
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
        paths, (json.dumps(found, indent=2) + "\n", csv_text(found), latex_text(found, titles, cells)), strict=True
    ):
        write_atomically(path, text)
    points = [
        ArmPoint(arm, {name: _mean_and_interval(summary[name]) for name in MEASURES if name in summary})
        for arm, summary in found["arms"].items()
    ]
    if not points or not all({"own_rla", "audit_rla"} <= point.measures.keys() for point in points):
        return paths
    return [*paths, *plot_study(folder / "study", points, found["reference"])]


def _run_measures(study: Study, run: PlannedRun) -> dict[str, Any]:
    rows = RunFolder(run.folder).metrics("epoch")
    if not rows:
        raise RunError(f"{run.folder} is done without a whole epoch, which a study compares; leave max_steps out")
    with _told_of(run.folder / "metrics.jsonl"):
        measures: dict[str, Any] = {name: rows[-1][metric] for name, metric in _METRICS.items() if metric in rows[-1]}
        if measures.keys() >= {"own_rla", "audit_rla"}:
            pairs = zip(measures["audit_rla"], measures["own_rla"], strict=True)
            measures["hidden"] = [audit - own for audit, own in pairs]
        _check_measures(measures)
    path = run.folder / "environment.json"
    with _told_of(path):
        trained = parse_mapping(path.read_bytes())
    found = {"arm": run.arm, "seed": run.seed, "trained_at": trained.get("git"), "measures": measures}
    if study.audit is None:
        return found
    path = audit_path(open_checkpoint(run.folder, plugins=True), study.audit.probe)
    with _told_of(path):
        audit = parse_mapping(path.read_bytes())
        taps = [tap["found"] for tap in audit["taps"]]
        measures["own_refit"] = [fmean(tap["own_M"]) for tap in taps]
        measures["fresh_refit"] = [fmean(tap["fresh_F"]) for tap in taps]
        measures["members_refit"] = [fmean(tap["members_F"]) for tap in taps]
        measures["nonmembers_refit"] = [fmean(tap["heldout_F"]) for tap in taps]
        refits = ("own_refit", "fresh_refit", "members_refit", "nonmembers_refit")
        found["saturated"] = [
            max(each) >= NEAR_PERFECT_FIT for each in zip(*(measures[name] for name in refits), strict=True)
        ]
        for name in _EXCESSES:
            measures[name] = [float(tap[name]["value"]) for tap in taps]
            found[f"{name}_intervals"] = [[float(tap[name][end]) for end in ("low", "high")] for tap in taps]
        _check_measures(measures)
        found["label_excess_luck"] = [tap["label_excess"]["luck"] for tap in taps]
        return found | {"taps": [tap["tap"] for tap in audit["taps"]], "options": audit["options"]}


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Turn what a damaged file ends in, from its bytes or from its content, into one error that names it."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = error if isinstance(error, DamagedJsonError) else f"{type(error).__name__}: {error}"
        raise RunError(f"{path} is missing or damaged ({reason}): delete the run or the audit that it is of") from error


def _average_taps(measures: Mapping[str, Any]) -> dict[str, float]:
    """Average every measure over its taps."""
    return {name: fmean(value) if isinstance(value, list) else value for name, value in measures.items()}


def _check_measures(measures: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError unless every measure is a number, or a list of some."""
    fmean([0.0, *_average_taps(measures).values()])


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
    shown: Callable[[float], str] = (
        (lambda x: f"{x:.3f}") if name in _MEASURES_IN_BITS else (lambda x: f"{100 * x:.2f}")
    )
    half = (summary["high"] - summary["low"]) / 2 if summary["low"] is not None else math.nan
    text = shown(summary["mean"]) + ("" if math.isnan(half) else f" ± {shown(half)}")
    difference = summary.get("difference")
    p_adjusted = None if difference is None else difference.get("p_adjusted")
    differs = p_adjusted is not None and p_adjusted < SIGNIFICANT
    return Text(text, style="bold" if differs else "")


def _mean_and_interval(summary: Mapping[str, Any]) -> tuple[float, float, float]:
    mean = summary["mean"]
    return (mean, *(summary[end] if summary[end] is not None else mean for end in ("low", "high")))
