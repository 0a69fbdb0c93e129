"""Sections on classes and on membership: from memory.json, which a run writes as it ends, or else from its ledgers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlpheads.engine.page.blocks import Block, Grid, Section, Text
from rlpheads.engine.page.facts import RunFacts
from rlpheads.engine.report.display import percent
from rlpheads.memorization.measures.class_memory import ClassRows, memory_by_class
from rlpheads.memorization.measures.estimates import Estimated
from rlpheads.memorization.measures.membership import membership_inference


def classes_section(facts: RunFacts) -> Section:
    """Loss, excess over held-out images, membership and random labels by class, the smallest class first."""
    classes = facts.memory.get("classes") or _measure_classes(facts)
    if not classes:
        return Section("classes", "Classes", [])
    names = _class_names(facts, classes)
    with_labels = bool(classes[0].get("rla_T"))
    columns = ["class", "training images", "held-out images", "training loss", "held-out less training loss"]
    columns.append("membership AUC")
    if with_labels:
        tap = facts.memory["taps"][-1]
        columns += [f"random-label accuracy, tap {tap}", "that less the refit on fresh labels"]
    rows = []
    for number in sorted(range(len(classes)), key=lambda position: (classes[position]["num_train"], position)):
        each = classes[number]
        cells = [names[number], str(each["num_train"]), str(each["num_heldout"]), _number(each["loss"]["value"])]
        cells += [_interval(each["loss_excess"], "+.3f"), _interval(each["membership_auc"], ".3f")]
        if with_labels:
            cells += [_interval(each["rla_T"][-1], ".3f"), _interval(each["excess_T"][-1], "+.3f")]
        rows.append(cells)
    note = "Sorted by size, the tail first. Intervals of a column hold over all classes together."
    blocks: list[Block] = [Grid("By class", columns, rows, note)]
    blocks += [Text(line) for line in _size_lines(facts.memory.get("size_correlation", {}))]
    return Section("classes", "Classes", blocks)


def membership_section(facts: RunFacts) -> Section:
    """How well losses tell training images from held-out ones."""
    scores = facts.memory.get("membership") or _measure_membership(facts)
    if not scores:
        words = "Membership inference needs ledgers of a clean and of a held-out pass."
        return Section("membership", "Membership inference", [Text(words, "note")])
    rates = list(next(iter(scores.values()))["tpr_at_fpr"])
    columns = ["score", "AUC", *(f"true positives at {100 * float(rate):g} % false positives" for rate in rates)]
    rows = [
        [
            _SCORES.get(name, name),
            _interval(found["auc"], ".4f"),
            *(_percent_interval(found["tpr_at_fpr"][rate]) for rate in rates),
        ]
        for name, found in scores.items()
    ]
    note = (
        "With 95 % intervals. Training images without augmentation against held-out ones; an AUC of .5 tells nothing."
    )
    if facts.memory and "loss trace" not in scores:
        note += (
            f" Loss traces need more epochs with clean and held-out ledgers than {facts.memory.get('trace_epochs', 0)}."
        )
    return Section("membership", "Membership inference", [Grid("Membership inference", columns, rows, note)])


_SCORES = {"loss": "a low class loss", "loss trace": "a class loss that fell far (interquartile range over epochs)"}


def _measure_membership(facts: RunFacts) -> dict[str, Any]:
    inside, outside = (_seen(facts, phase) for phase in ("clean", "heldout"))
    if inside is None or outside is None:
        return {}
    found = membership_inference(-inside.loss_N, -outside.loss_N)
    rates = {str(rate): each._asdict() for rate, each in found.tpr_at.items()}
    return {"loss": {"auc": found.auc._asdict(), "tpr_at_fpr": rates}}


def _measure_classes(facts: RunFacts) -> list[dict[str, Any]]:
    train, heldout = _seen(facts, "clean") or _seen(facts, "running"), _seen(facts, "heldout")
    if train is None or heldout is None:
        return []
    num_classes = 1 + max(int(each.target_N.max()) for each in (train, heldout))
    return [
        {
            name: value._asdict() if isinstance(value, Estimated) else value
            for name, value in vars(each).items()
            if not isinstance(value, tuple) or isinstance(value, Estimated)
        }
        for each in memory_by_class(train, heldout, num_classes)
    ]


def _seen(facts: RunFacts, phase: str) -> ClassRows | None:
    table = facts.class_rows(phase)
    if table is None or not table.seen.any():
        return None
    target_N, loss_N = (_tensor(values[table.seen]) for values in (table.target, table.class_loss))
    return ClassRows(target_N, loss_N)


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(values)


def _class_names(facts: RunFacts, classes: Sequence[Mapping[str, Any]]) -> list[str]:
    if facts.anonymous:
        return [f"class {number}" for number in range(len(classes))]
    if "class" in classes[0]:
        return [str(each["class"]) for each in classes]
    ranker = facts.rankers["heldout"]
    known: dict[int, str | None] = {}
    if ranker is not None:
        pairs = ranker.named.select(["class", "class_name"]).group_by(["class", "class_name"]).aggregate([])
        known = dict(zip(pairs.column("class").to_pylist(), pairs.column("class_name").to_pylist(), strict=True))
    return [known.get(number) or f"class {number}" for number in range(len(classes))]


def _size_lines(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    names = {"loss_excess": "held-out less training loss", "label_excess": "random-label accuracy less the refit"}
    return [
        f"Size of the class and {names.get(name, name)}: Spearman {each['rho']:+.2f} [{each['low']:+.2f}, "
        f"{each['high']:+.2f}]; below 0, memory sits in the tail."
        for name, each in found.items()
        if each["rho"] is not None
    ]


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"


def _interval(found: Mapping[str, float | None], form: str) -> str:
    if found["value"] is None or found["value"] != found["value"]:
        return "–"
    value = f"{found['value']:{form}}"
    if found["low"] is None or found["low"] != found["low"]:
        return f"{value} (no interval)"  # of a single image, whose spread nobody knows
    return f"{value} [{found['low']:{form}}, {found['high']:{form}}]"


def _percent_interval(found: Mapping[str, float | None]) -> str:
    return f"{percent(found['value'])} [{percent(found['low'])}, {percent(found['high'])}]"
