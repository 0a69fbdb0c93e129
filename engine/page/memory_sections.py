"""Sections on the random labels: accuracy by depth and by epoch, the held-out check, bits and margins."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rlpheads.engine.page.blocks import Block, Drawing, Grid, Section, Text
from rlpheads.engine.page.facts import RunFacts
from rlpheads.engine.page.verdict import TELLING, tap_verdicts
from rlpheads.engine.report.display import percent
from rlpheads.engine.tables.run_figures import depth_caption, depth_figure, heat_map_caption, heat_map_figure
from rlpheads.memorization.figures.figure_file import inline_svg
from rlpheads.memorization.measures.intervals import HELD_OUT_LEVEL, binomial_bounds
from rlpheads.memorization.measures.pooled_draws import pool_draws

_GROUPS = ("own", "audit")
_NO_HEADS = Text("The run has no heads (heads.taps is none): nothing is measured of random labels.")


def depth_section(facts: RunFacts) -> Section:
    """Random-label accuracy by depth, with every line that it is to be read beside."""
    if not facts.taps:
        return Section("depth", "Random-label accuracy by depth", [_NO_HEADS])
    blocks: list[Block] = []
    figure = depth_figure(facts.path, facts.config)
    if figure is not None:
        caption = depth_caption(facts.path, facts.config)
        blocks.append(Drawing(inline_svg(figure, f"depth-{facts.name_key}", caption), caption))
    blocks.append(_depth_table(facts))
    return Section("depth", "Random-label accuracy by depth", blocks)


def _depth_table(facts: RunFacts) -> Grid:
    """Own heads, audit heads, refits and excess at every tap, with intervals."""
    columns = ["tap", "own heads, clean", "audit heads, clean", "refit, fresh labels", "excess over the refit, points"]
    clean = facts.hits.get("clean")
    excesses = {each.tap: each for each in tap_verdicts(facts)}
    refits, half_widths = (facts.of_clean_ledger(f"fresh_refit_{name}clean") for name in ("", "half_width_"))
    rows = []
    for position, tap in enumerate(facts.taps):
        cells = [tap]
        cells += [
            "–" if clean is None else _with_interval(clean.of(each)[position], clean.num_samples) for each in _GROUPS
        ]
        half = "" if half_widths is None else f" ± {100 * half_widths[position]:.2f}"
        cells.append("–" if refits is None else f"{percent(refits[position])}{half}")
        found = excesses.get(tap)
        cells.append("–" if found is None else f"{100 * found.excess:+.2f} ± {100 * found.half_width:.2f}")
        rows.append(cells)
    note = (
        f"Chance is {percent(1 / facts.num_labels)}. Accuracies {facts.when_clean_ledger}with 95 % intervals (over all draws; "
        f"Student's t where draws differ); excesses hold at all taps together. Excesses: {TELLING[0].lower()}{TELLING[1:]}."
    )
    return Grid("Random-label accuracy on clean training images", columns, rows, note)


def _with_interval(hits_M: NDArray[np.int64], num_samples: int) -> str:
    if not len(hits_M):
        return "–"
    pooled = pool_draws(torch.from_numpy(hits_M), num_samples)
    low, high = float(pooled.interval.low), float(pooled.interval.high)
    return f"{percent(float(pooled.accuracy))} [{percent(low)}, {percent(high)}]"


def epochs_section(facts: RunFacts) -> Section:
    """Tap against epoch, as a heat map."""
    figure = heat_map_figure(facts.path, facts.config)
    if figure is None:
        return Section("epochs", "By epoch", [])
    caption = heat_map_caption(facts.path, facts.config)
    return Section("epochs", "By epoch", [Drawing(inline_svg(figure, f"epochs-{facts.name_key}", caption), caption)])


def heldout_section(facts: RunFacts) -> Section:
    """The held-out check at every tap, all draws together."""
    heldout = facts.hits.get("heldout")
    if heldout is None or not facts.taps:
        return Section("heldout", "Held-out check", [])
    num_trials = heldout.num_samples * heldout.hits_TM.shape[1]
    bounds = binomial_bounds(num_trials, facts.num_labels, HELD_OUT_LEVEL)
    rows = []
    for tap, hits_M in zip(facts.taps, heldout.hits_TM, strict=True):
        rate = hits_M.sum() / num_trials
        rows.append((tap, percent(rate), "inside" if bounds.contains(rate) else "OUTSIDE"))
    note = (
        f"Nobody can know a held-out image's random label: accuracy is inside {percent(float(bounds.low))} to "
        f"{percent(float(bounds.high))} in all but 1 of 10,000 cases."
    )
    return Section(
        "heldout", "Held-out check", [Grid("Held-out random labels", ("tap", "accuracy", "check"), rows, note)]
    )


def bits_section(facts: RunFacts) -> Section:
    """Bits and margins of the random labels: training images against held-out ones."""
    if facts.last("bits_per_sample_clean") is None:
        return Section("bits", "Bits and margins", [])
    names = {"bits a sample": "bits_per_sample_", "margin, median": "margin_median_", "margin, 95 %": "margin_p95_"}
    columns, values = ["tap"], []
    for words, name in names.items():
        for phase, whose in (("clean", "training"), ("heldout", "held-out")):
            columns.append(f"{words}, {whose}")
            values.append(facts.last(f"{name}{phase}") or [None] * len(facts.taps))
    rows = [
        [tap, *("–" if column[position] is None else f"{column[position]:.4f}" for column in values)]
        for position, tap in enumerate(facts.taps)
    ]
    note = (
        f"Bits: log2 K + log2 p(label); {np.log2(facts.num_labels):.3f} where every label is known, negative where a head is "
        "overconfident. Own heads, averages over draws."
    )
    return Section("bits", "Bits and margins", [Grid("Training images against held-out images", columns, rows, note)])
