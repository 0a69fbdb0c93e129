"""The verdict, in three sentences: what a run learned, what its heads know beyond heads alone, whether that can be trusted."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch

from rlpheads.engine.page.blocks import Section, Text
from rlpheads.engine.page.facts import RunFacts
from rlpheads.engine.report.display import percent
from rlpheads.memorization.measures.intervals import HELD_OUT_LEVEL, binomial_bounds
from rlpheads.memorization.measures.pooled_draws import pool_draws

TELLING = (
    "Audit heads where a run has them; own heads otherwise, and where the network learns their labels (heads.joint)"
)
"""Which heads are believed (`HeadsConfig.telling`), in words."""


class TapVerdict(NamedTuple):
    """The excess of one tap: accuracy of the heads that tell what is remembered less that of refits on fresh labels."""

    tap: str
    group: str
    accuracy: float
    low: float
    high: float
    refit: float
    excess: float
    half_width: float
    """Of an interval that holds at all taps together, 95 %."""


def tap_verdicts(facts: RunFacts) -> list[TapVerdict]:
    """Return the verdict of every tap by the last clean ledger; none where there is none, or its pass refitted nothing."""
    clean, refits = facts.hits.get("clean"), facts.of_clean_ledger("fresh_refit_clean")
    if clean is None or refits is None or not facts.taps:
        return []
    half_widths = facts.of_clean_ledger("fresh_refit_half_width_clean") or [0.0] * len(refits)
    group = facts.config.heads.telling(audited="audit" in clean.draws)
    sigmas = NormalDist().inv_cdf(1 - 0.025 / len(facts.taps))
    found = []
    for tap, hits_M, refit, half in zip(facts.taps, clean.of(group), refits, half_widths, strict=True):
        pooled = pool_draws(torch.from_numpy(hits_M), clean.num_samples)
        low, high = float(pooled.interval.low), float(pooled.interval.high)
        luck = math.hypot((high - low) / 2, half) / 1.96
        value = float(pooled.accuracy)
        found.append(TapVerdict(tap, group, value, low, high, refit, value - refit, sigmas * luck))
    return found


def verdict_section(facts: RunFacts) -> Section:
    """Say it in three sentences."""
    return Section("verdict", "Verdict", [Text(sentence, "verdict") for sentence in verdict_sentences(facts)])


def verdict_sentences(facts: RunFacts) -> list[str]:
    """Return the sentences: classes, memory, and the check that stands behind the numbers."""
    return [_class_sentence(facts), _memory_sentence(facts), _check_sentence(facts)]


def _class_sentence(facts: RunFacts) -> str:
    ended = facts.status.get("status", "unfinished")
    top1, rows = facts.last("eval_top1"), facts.class_rows("heldout")
    if top1 is None:
        return f"The run is {ended} after {len(facts.epochs)} epochs; held-out images were not evaluated."
    train = facts.last("clean_top1")
    beside = "" if train is None else f" (training images without augmentation: {percent(train)})"
    interval = ""
    if rows is not None and (num_seen := int(rows.seen.sum())):
        pooled = pool_draws(torch.tensor([round(top1 * num_seen)]), num_seen)
        interval = f", 95 % interval {percent(float(pooled.interval.low))} to {percent(float(pooled.interval.high))}"
    when = f"The run is {ended} after {len(facts.epochs)} epochs"
    return f"{when}, with a held-out accuracy of {percent(top1)}{interval}{beside}."


def _memory_sentence(facts: RunFacts) -> str:
    verdicts = tap_verdicts(facts)
    if not verdicts:
        why = "it has no heads" if not facts.taps else "no clean pass refitted heads to fresh labels (eval.refit)"
        return f"Whether it remembers random labels is not known: {why}."
    most = max(verdicts, key=lambda each: each.excess - each.half_width)
    heads = "audit heads, whose labels the regulariser never saw," if most.group == "audit" else "heads"
    numbers = (
        f"{facts.when_clean_ledger}at tap {most.tap} {heads} reach {percent(most.accuracy)} (95 % interval "
        f"{percent(most.low)} to {percent(most.high)}), and heads refitted to fresh labels {percent(most.refit)}; chance is "
        f"{percent(1 / facts.num_labels)}"
    )
    points = f"{100 * most.excess:+.2f} ± {100 * most.half_width:.2f} points, at all taps together"
    if most.excess > most.half_width:
        return f"Memory beyond the head is shown: {numbers} ({points})."
    where = "Below" if most.excess < -most.half_width else "Not beyond"
    return f"{where} what a head alone reaches: no memory beyond the head is shown; {numbers} ({points})."


def _check_sentence(facts: RunFacts) -> str:
    heldout = facts.hits.get("heldout")
    if heldout is None or not facts.taps:
        return "There is no held-out check, for want of held-out random labels."
    num_draws = heldout.hits_TM.shape[1]
    bounds = binomial_bounds(heldout.num_samples * num_draws, facts.num_labels, HELD_OUT_LEVEL)
    rates = heldout.hits_TM.sum(1) / (heldout.num_samples * num_draws)
    strayed = [
        f"tap {tap} with {percent(rate)}"
        for tap, rate in zip(facts.taps, rates, strict=True)
        if not bounds.contains(rate)
    ]
    limits = f"{percent(float(bounds.low))} to {percent(float(bounds.high))}"
    if strayed:
        return f"The held-out check FAILED, so do not trust these numbers: {', '.join(strayed)} outside {limits}."
    return f"The held-out check passed: random labels that nobody can know are hit by chance at every tap ({limits})."
