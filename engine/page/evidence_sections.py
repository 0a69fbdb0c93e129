"""Sections on evidence beside the heads: planted images and noisy labels, audits by refitted probes, membership inference."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch

from rlpheads.engine.page.blocks import Block, Grid, Section, Text
from rlpheads.engine.page.facts import RunFacts
from rlpheads.engine.report.display import percent
from rlpheads.engine.runs.sources import CANARIES_FILE
from rlpheads.engine.tables.sample_table import list_ledgers
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping
from rlpheads.memorization.measures.canaries import auc_by_kind
from rlpheads.memorization.measures.membership import membership_inference
from rlpheads.memorization.measures.sample_history import gather_history, sample_measures
from rlpheads.memorization.records.canary_file import read_canaries
from rlpheads.memorization.records.ledger_file import read_ledger


def canaries_section(facts: RunFacts) -> Section:
    """Which measure finds planted images and noisy labels."""
    ledgers = list_ledgers(facts.path, "running")
    if not (facts.path / CANARIES_FILE).is_file() or not ledgers:
        words = "Nothing was planted in this run; data.canaries and data.label_noise do that."
        return Section("canaries", "Canaries and noisy labels", [Text(words)])
    canaries = read_canaries(facts.path / CANARIES_FILE)
    history = gather_history(read_ledger(path, heads=False) for path in ledgers)
    found = auc_by_kind(sample_measures(history), canaries)
    columns = ["measure", *(f"{kind} ({count})" for kind, count in canaries.kinds.items())]
    rows = [[measure, *(_auc(kinds.get(kind)) for kind in canaries.kinds)] for measure, kinds in found.items()]
    note = (
        "AUC with its 95 % interval: the probability that a planted image has the higher value. One half is chance, 0 as good "
        "as 1. Measures of random labels: rlpheads canaries."
    )
    grid = Grid(f"Planted images against ordinary ones, {len(ledgers)} running ledgers", columns, rows, note)
    return Section("canaries", "Canaries and noisy labels", [grid])


def audit_section(facts: RunFacts) -> Section:
    """Audits of the run's checkpoints by refitted probes, as rlpheads audit wrote them."""
    blocks: list[Block] = []
    for path in sorted(facts.path.glob("audit/step=*.json")):
        try:
            audit = parse_mapping(path.read_bytes(), {"taps": "list", "probe": "mapping", "step": "count"})
            blocks.append(_audit_grid(audit))
        except (OSError, DamagedJsonError, KeyError, TypeError) as error:
            blocks.append(Text(f"{path.name} cannot be read: {error}", "warning"))
    if not blocks:
        blocks = [
            Text("No audit yet: rlpheads audit RUN refits probes to frozen features and writes what it finds here.")
        ]
    return Section("audit", "Audit by refitted probes", blocks)


def _audit_grid(audit: Mapping[str, Any]) -> Grid:
    columns = (
        "tap",
        "own labels",
        "fresh labels",
        "label excess, points",
        "members",
        "non-members",
        "membership excess, points",
    )
    rows = []
    for tap in audit["taps"]:
        found = tap["found"]
        shares = {name: percent(fmean(found[name])) for name in ("own_M", "fresh_F", "members_F", "heldout_F")}
        excesses = [
            f"{100 * found[name]['value']:+.2f} ± {100 * found[name]['half_width']:.2f}"
            for name in ("label_excess", "membership_excess")
        ]
        rows.append(
            (
                tap["tap"],
                shares["own_M"],
                shares["fresh_F"],
                excesses[0],
                shares["members_F"],
                shares["heldout_F"],
                excesses[1],
            )
        )
    caption = f"Step {audit['step']}, {audit['probe']['name']} probes, {audit['num_fresh_draws']} fresh draws"
    return Grid(caption, columns, rows, "Intervals hold at all taps together.")


def membership_section(facts: RunFacts) -> Section:
    """How well the class loss tells training images from held-out ones."""
    train, heldout = facts.class_rows("clean"), facts.class_rows("heldout")
    if train is None or heldout is None or not train.seen.any() or not heldout.seen.any():
        words = "Membership inference needs ledgers of a clean and of a held-out pass."
        return Section("membership", "Membership inference", [Text(words, "note")])
    inside, outside = (-torch.from_numpy(each.class_loss[each.seen]) for each in (train, heldout))
    found = membership_inference(inside, outside)
    rows = [("AUC", f"{found.auc.value:.4f}", f"{found.auc.low:.4f} to {found.auc.high:.4f}")]
    rows += [
        (
            f"true-positive rate at {100 * rate:g} % false positives",
            percent(each.value),
            f"{percent(each.low)} to {percent(each.high)}",
        )
        for rate, each in found.tpr_at.items()
    ]
    note = f"By a low class loss: {len(inside):,} training images without augmentation against {len(outside):,} held-out ones."
    grid = Grid("Membership inference", ("figure", "value", "95 % interval"), rows, note)
    return Section("membership", "Membership inference", [grid])


def _auc(found: Any) -> str:
    return "–" if found is None else f"{found.auc:.3f} [{found.low:.2f}, {found.high:.2f}]"
