"""What one run of a study found: the last epoch's figures, its refitted probes, and what it remembers of its images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from rlpheads.engine.audits.audit_run import audit_path
from rlpheads.engine.commands.study_plan import PlannedRun, Study
from rlpheads.engine.report.canaries_report import collect_report
from rlpheads.engine.runs.folder import MEMORY_FILE, RunFolder
from rlpheads.engine.runs.opened_run import RunError, open_checkpoint
from rlpheads.engine.runs.sources import CANARIES_FILE
from rlpheads.loaders.sources.canary_source import NOISY
from rlpheads.memorization.baselines.head_only import NEAR_PERFECT_FIT
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping

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
    "class_probe_gain": "class probe − network",
    "true_class_gain": "true class, probe − network",
    "membership_auc": "membership AUC",
    "noise_auc": "noise AUC",
    "tail_loss": "class size and loss excess, ρ",
    "tail_labels": "class size and RLA − refit, ρ",
}
"""Every measure of a run, by its name in the JSON, with its name in the table. Random-label accuracies are clean ones of
the last epoch; `hidden` is what audit heads find beyond the own ones; refit and excess are of refitted probes: members and
non-members are as many training as held-out images, whose difference is the membership excess. The class probe answers
held-out images, and the true class of mislabelled training images. Membership AUC is that of the loss; noise AUC that of the
class loss averaged over the epochs, for images whose class is wrong; ρ is Spearman's over the classes. Those four, top1 and
ece (the expected calibration error of the classes) have one value a run, the others one for each tap."""

_METRICS = {
    "top1": "eval_top1",
    "ece": "eval_ece",
    "own_rla": "rla_clean",
    "audit_rla": "audit_rla_clean",
    "heldout_rla": "rla_heldout",
    "own_bits_per_sample": "bits_per_sample_clean",
}
"""Names of the measures of training in an epoch's line of metrics.jsonl."""

_REFITS = {
    "own_refit": "own_M",
    "fresh_refit": "fresh_F",
    "members_refit": "members_F",
    "nonmembers_refit": "heldout_F",
}
"""Names of the accuracies of refitted probes in an audit's file."""

IN_PERCENT = MEASURES.keys() - {"own_bits_per_sample", "membership_auc", "tail_loss", "tail_labels", "noise_auc"}
"""Measures that are shares, shown in percent; the others are bits, areas under a curve and rank correlations."""
EXCESSES = ("label_excess", "membership_excess")


def measure_run(study: Study, run: PlannedRun) -> dict[str, Any]:
    """Read what a finished run found: its `measures`, by name, and whatever says how far to trust them.

    Raises:
        RunError: a file of it is missing or damaged, or it has no whole epoch.
    """
    rows = RunFolder(run.folder).metrics("epoch")
    if not rows:
        raise RunError(f"{run.folder} is done without a whole epoch, which a study compares; leave max_steps out")
    with _told_of(run.folder / "metrics.jsonl"):
        measures: dict[str, Any] = {name: rows[-1][metric] for name, metric in _METRICS.items() if metric in rows[-1]}
        if measures.keys() >= {"own_rla", "audit_rla"}:
            pairs = zip(measures["audit_rla"], measures["own_rla"], strict=True)
            measures["hidden"] = [audit - own for audit, own in pairs]
        _check_measures(measures)
    measures |= _memory_measures(run.folder) | _noise_measures(run.folder)
    path = run.folder / "environment.json"
    with _told_of(path):
        trained = parse_mapping(path.read_bytes())
    found = {"arm": run.arm, "seed": run.seed, "trained_at": trained.get("git"), "measures": measures}
    if study.audit is None:
        return found
    return found | _audit_measures(audit_path(open_checkpoint(run.folder, plugins=True), study.audit), measures)


def _audit_measures(path: Path, measures: dict[str, Any]) -> dict[str, Any]:
    """Add the measures of a run's audit, and return what else it says."""
    with _told_of(path):
        audit = parse_mapping(path.read_bytes())
        taps = [tap["found"] for tap in audit["taps"]]
        measures |= {name: [fmean(tap[key]) for tap in taps] for name, key in _REFITS.items()}
        found: dict[str, Any] = {
            "saturated": [
                max(each) >= NEAR_PERFECT_FIT for each in zip(*(measures[name] for name in _REFITS), strict=True)
            ]
        }
        for name in EXCESSES:
            measures[name] = [float(tap[name]["value"]) for tap in taps]
            found[f"{name}_intervals"] = [[float(tap[name][end]) for end in ("low", "high")] for tap in taps]
        for name, key in (("class_probe_gain", "heldout_gain"), ("true_class_gain", "true_class_gain")):
            gains = [tap["classes"][key]["value"] for tap in audit["taps"] if "classes" in tap]
            if gains and None not in gains:
                measures[name] = gains
        _check_measures(measures)
        found["label_excess_luck"] = [tap["label_excess"]["luck"] for tap in taps]
        return found | {"taps": [tap["tap"] for tap in audit["taps"]], "options": audit["options"]}


def _memory_measures(folder: Path) -> dict[str, float]:
    """Return what a run's memory.json says; nothing where the run has none."""
    path = folder / MEMORY_FILE
    if not path.exists():
        return {}
    with _told_of(path):
        memory = parse_mapping(path.read_bytes())
        found = {"membership_auc": memory["membership"].get("loss", {}).get("auc", {}).get("value")}
        for name, key in (("tail_loss", "loss_excess"), ("tail_labels", "label_excess")):
            found[name] = memory["size_correlation"].get(key, {}).get("rho")
        found = {name: value for name, value in found.items() if value is not None}
        _check_measures(found)
        return found


def _noise_measures(folder: Path) -> dict[str, float]:
    """Return how well the class loss finds the images whose class is wrong; nothing where none is, or without ledgers."""
    if not (folder / CANARIES_FILE).exists() or not any(folder.glob("ledger/*/running.parquet")):
        return {}
    areas = collect_report(folder).auc["class loss"]
    return {"noise_auc": areas[NOISY].auc} if NOISY in areas else {}


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Turn what a damaged file ends in, from its bytes or from its content, into one error that names it."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = error if isinstance(error, DamagedJsonError) else f"{type(error).__name__}: {error}"
        raise RunError(f"{path} is missing or damaged ({reason}): delete the run or the audit that it is of") from error


def average_taps(measures: Mapping[str, Any]) -> dict[str, float]:
    """Average every measure over its taps."""
    return {name: fmean(value) if isinstance(value, list) else value for name, value in measures.items()}


def _check_measures(measures: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError unless every measure is a number, or a list of some."""
    fmean([0.0, *average_taps(measures).values()])
