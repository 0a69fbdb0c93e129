"""How much of a study's figures each source of chance moves: standard deviations over seeds of one source, the others held."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from rich.table import Table

from rlpheads.memorization.measures.estimates import Estimated, spread_estimate

ByArm = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Measures of the runs that vary one source, by arm, seed and name."""


def spread_by_source(found: Mapping[str, ByArm]) -> dict[str, dict[str, dict[str, Estimated]]]:
    """Return the standard deviation over seeds by arm, source and measure; nothing where only one source is varied.

    Variances of sources that act independently add up to that of all together; what is beyond them is their interaction.
    """
    if len(found) < 2:
        return {}
    arms = next(iter(found.values()))
    return {arm: {source: _spreads(by_arm[arm]) for source, by_arm in found.items()} for arm in arms}


def _spreads(by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, Estimated]:
    runs = list(by_seed.values())
    shared = [
        name for name in (runs[0] if runs else ()) if all(name in run and math.isfinite(run[name]) for run in runs)
    ]
    values = {name: torch.tensor([run[name] for run in runs], dtype=torch.float64) for name in shared}
    return {name: spread_estimate(values_S) for name, values_S in values.items() if len(values_S) > 1}


def spread_table(
    found: Mapping[str, Mapping[str, Mapping[str, Estimated]]],
    titles: Mapping[str, str],
    shown: Callable[[str], Callable[[float], str]],
) -> Table:
    """Return a row for each arm and source.

    Args:
        found: from `spread_by_source`.
        titles: of the measures' columns.
        shown: for a measure's name, how its values are written.
    """
    table = Table(
        title="standard deviation over the seeds of one source of chance, the others held [95 % interval of normal values]",
        title_justify="left",
        padding=(0, 1),
    )
    for title in ("arm", "source", *titles.values()):
        table.add_column(title, justify="right" if title in titles.values() else "left")
    for arm, sources in found.items():
        for source, spreads in sources.items():
            table.add_row(arm, source, *(_cell(spreads.get(name), shown(name)) for name in titles))
    return table


def _cell(found: Estimated | None, shown: Callable[[float], str]) -> str:
    return "–" if found is None else f"{shown(found.value)} [{shown(found.low)}, {shown(found.high)}]"
