"""Sections on evidence beside the heads: planted images and noisy labels, audits by refitted probes, membership inference."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rlpheads.engine.page.blocks import Block, Grid, Section, Text
from rlpheads.engine.page.facts import RunFacts
from rlpheads.engine.report.display import percent
from rlpheads.engine.runs.sources import CANARIES_FILE
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping
from rlpheads.memorization.measures.canaries import auc_by_kind
from rlpheads.memorization.measures.sample_history import sample_measures
from rlpheads.memorization.records.canary_file import read_canaries


def canaries_section(facts: RunFacts) -> Section:
    """Which measure finds planted images and noisy labels."""
    ranker = facts.rankers["running"]
    if not (facts.path / CANARIES_FILE).is_file() or ranker is None:
        words = "Nothing was planted in this run; data.canaries and data.label_noise do that."
        return Section("canaries", "Canaries and noisy labels", [Text(words)])
    canaries = read_canaries(facts.path / CANARIES_FILE)
    found = auc_by_kind(sample_measures(ranker.history), canaries)
    columns = ["measure", *(f"{kind} ({count})" for kind, count in canaries.kinds.items())]
    rows = [[measure, *(_auc(kinds.get(kind)) for kind in canaries.kinds)] for measure, kinds in found.items()]
    note = (
        "AUC with its 95 % interval: the probability that a planted image has the higher value. One half is chance, 0 as good "
        "as 1. Measures of random labels: rlpheads canaries."
    )
    grid = Grid(
        f"Planted images against ordinary ones, {len(ranker.history.epochs)} running ledgers", columns, rows, note
    )
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


def _auc(found: Any) -> str:
    return "–" if found is None else f"{found.auc:.3f} [{found.low:.2f}, {found.high:.2f}]"
