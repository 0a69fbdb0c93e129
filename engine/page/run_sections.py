"""Sections on a run as a whole: its settings, its curves, what it cost, what it left out, and what is not shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.files import SHIPPED
from rlpheads.engine.config.schema import Config
from rlpheads.engine.config.values import flat_settings
from rlpheads.engine.page.blocks import Block, Drawing, Grid, Section, Text
from rlpheads.engine.page.facts import RunFacts
from rlpheads.engine.report.display import percent
from rlpheads.engine.report.summary import with_derived
from rlpheads.memorization.figures.class_figures import draw_class_curves
from rlpheads.memorization.figures.figure_file import inline_svg
from rlpheads.memorization.records.ledger_file import SKIPPED

HIDDEN = ("data.root", "data.verified", "data.stage", "model.checkpoint", "run.dir", "run.name", "log.wandb_project")
"""Settings that name places and people."""
_MOST_SKIPPED = 50


def settings_section(facts: RunFacts) -> Section:
    """Settings that differ from the shipped config that was named, command, commit, versions, device and time."""
    shipped, config = shipped_config(facts.environment.get("command", []))
    ours, defaults = flat_settings(asdict(facts.config)), flat_settings(asdict(config))
    rows = [
        (key, _shown(value), _shown(defaults.get(key)))
        for key, value in ours.items()
        if value != defaults.get(key) and not (facts.anonymous and key in HIDDEN)
    ]
    found = facts.environment
    packages = {name: version for name, version in found.get("packages", {}).items() if version}
    origin = [
        ("command", "–" if facts.anonymous else " ".join(map(str, found.get("command", [])))),
        ("commit", _commit(found.get("git"))),
        ("versions", ", ".join(f"{name} {version}" for name, version in packages.items())),
        ("device", _device(found)),
        ("epochs", str(len(facts.epochs))),
        ("time", _hours(facts)),
    ]
    return Section(
        "settings",
        "Settings",
        [
            Grid("Where the numbers come from", ("what", "value"), origin),
            Grid(f"Settings that differ from {shipped}", ("key", "here", "there"), rows),
        ],
    )


def shipped_config(command: Sequence[Any]) -> tuple[str, Config]:
    """Return the shipped configs that a command names, in words, and their settings; the defaults where it names none.

    A config that was somebody's own is passed over: what it set is a difference.
    """
    words = [str(word) for word in command]
    given = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    given += [after for word, after in pairwise(words) if word == "--config"]
    names = [name for name in (Path(each).stem for each in given) if (SHIPPED / f"{name}.yaml").is_file()]
    if not names:
        return "the defaults", Config()
    flags = [word for name in names for word in ("--config", name)]
    return f"the shipped config {' with '.join(names)}", parse_config(flags)


def curves_section(facts: RunFacts) -> Section:
    """Loss and accuracy of the classes by epoch."""
    epochs = [row["epoch"] for row in facts.epochs]
    phases = {"running": "train", "clean": "clean", "heldout": "eval"}
    losses = {phase: facts.figure_by_epoch(f"{name}_loss") for phase, name in phases.items()}
    accuracies = {phase: facts.figure_by_epoch(f"{name}_top1") for phase, name in phases.items()}
    figure = draw_class_curves(epochs, losses, accuracies)
    caption = f"Class loss (nats) and class accuracy by epoch, {facts.config.model.name}."
    alt = f"{caption} Last held-out accuracy {percent(facts.last('eval_top1'))}."
    return Section("curves", "Curves", [Drawing(inline_svg(figure, f"curves-{facts.name_key}", alt), caption)])


def overhead_section(facts: RunFacts) -> Section:
    """What heads cost in time, memory, arithmetic and parameters, as far as the run measured it."""
    if not facts.taps:
        return Section("overhead", "Overhead of the heads", [])
    last, found = facts.epochs[-1], facts.status.get("overhead")
    rows: list[tuple[str, str]] = []
    note = (
        "Steps were not timed without heads: the run is not done, had fewer than 60 steps, trained heads alone, or had "
        "eval.overhead off."
    )
    if isinstance(found, Mapping) and {*_TIMED} <= found.keys():
        rows = _timed_rows(found)
        note = (
            f"Medians of {found['num_pairs']} steps each, taken in turn at the end of the run on its last batch; loading "
            "images is not in them."
        )
    rows += [("images per second, last epoch, heads and loading included", f"{last.get('images_per_second', 0):.1f}")]
    rows += [("share of waiting for data", percent(last.get("data_wait")))]
    if last.get("mfu") is not None:
        rows += [("MFU", percent(last["mfu"])), ("MFU of the heads", percent(last["mfu_heads"]))]
    sizes = _head_parameters(facts)
    if sizes:
        rows.append(("parameters of the heads", f"{sizes:,}"))
    return Section("overhead", "Overhead of the heads", [Grid("Overhead", ("what", "value"), rows, note)])


_TIMED = ("with_seconds", "without_seconds", "num_pairs", "kept_bytes", "share")


def _timed_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("time that heads add to a step", f"{100 * found['share']:+.1f} %"),
        ("a step with heads", f"{1000 * found['with_seconds']:.1f} ms"),
        ("a step of the network alone", f"{1000 * found['without_seconds']:.1f} ms"),
        ("memory kept: weights, optimizer, labels, ledger", f"{found['kept_bytes'] / 2**20:,.1f} MiB"),
    ]
    if found.get("step_bytes") is not None:
        rows.append(("more memory at a step's peak", f"{found['step_bytes'] / 2**20:,.1f} MiB"))
    return rows


def skipped_section(facts: RunFacts) -> Section:
    """Images that could not be read, or whose batch was left out: how many by epoch, and which in the last ledgers."""
    rows = [
        (str(row["epoch"]), *(str(row.get(f"{name}_skipped", 0)) for name in ("train", "clean", "eval")))
        for row in facts.epochs
        if any(row.get(f"{name}_skipped") for name in ("train", "clean", "eval"))
    ]
    if not rows:
        words = "No image was skipped: every image of every pass was read."
        return Section("skipped", "Skipped images", [Text(words)])
    blocks: list[Block] = [Grid("Skipped images", ("epoch", "training", "clean pass", "held-out"), rows)]
    if not facts.anonymous and (named := list(_skipped_names(facts))):
        note = f"The first {_MOST_SKIPPED} of each; rlpheads verify names all." if len(named) >= _MOST_SKIPPED else ""
        blocks.append(Grid("Which, in the last ledgers", ("pass", "index", "file", "class"), named, note))
    return Section("skipped", "Skipped images", blocks)


def _skipped_names(facts: RunFacts) -> Iterator[tuple[str, str, str, str]]:
    for phase, ranker in facts.rankers.items():
        if ranker is None:
            continue
        index_S = np.flatnonzero(ranker.last.status == SKIPPED)[:_MOST_SKIPPED]
        for row in ranker.named.take(pa.array(index_S)).to_pylist() if len(index_S) else ():
            name = row["given_name"] or str(row["given_class"])
            yield phase.replace("heldout", "held-out"), str(row["index"]), row["file"] or "–", name


def caveats_section(_: RunFacts) -> Section:
    """What the measures do not show."""
    words = (
        "Random-label accuracy is of trained heads: a lower bound on what the features could tell, not a supremum over heads.",
        "A head stores labels itself. Only what is above the refit on fresh labels of the same features speaks of the network; "
        "with λ = 0 and μ = 0 the backbone holds no bits about them at all.",
        "A regulariser can fool the heads that it trains against. Compare runs by their audit heads.",
        "Held-out random labels check labels, indices and splits. They say nothing of generalisation.",
        "Rankings of images are of one run. Another seed ranks them otherwise; the reliability beside each ranking is of this "
        "run's draws or ledgers, not over seeds.",
        "An AUC of membership inference near one half does not prove privacy: stronger attacks train shadow networks.",
    )
    return Section("caveats", "What these measures do not show", [Text(each) for each in words])


def _shown(value: Any) -> str:
    return "null" if value is None else str(list(value) if isinstance(value, tuple) else value)


def _commit(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "– (installed, no checkout)"
    return f"{git.get('commit')}{' with changes' if git.get('modified') else ''}"


def _device(environment: Mapping[str, Any]) -> str:
    cuda, system = environment.get("cuda"), environment.get("system", {})
    if cuda:
        return ", ".join(sorted({str(each.get("name")) for each in cuda.get("devices", [])})) or "CUDA"
    return f"{system.get('processor', 'CPU')}, {system.get('cores', '?')} cores"


def _hours(facts: RunFacts) -> str:
    last = with_derived(facts.epochs, facts.config.heads)[-1]
    if "wall_hours" not in last:
        return "–"
    return f"{last['wall_hours']:.3g} hours, {last['device_hours']:.3g} device hours"


def _num_draws(facts: RunFacts) -> int:
    hits = next(iter(facts.hits.values()), None)
    return 0 if hits is None else hits.hits_TM.shape[1]


def _head_parameters(facts: RunFacts) -> int:
    """Return the heads' parameters, K·(D + 1) of each tap and draw, by bits per parameter; 0 where these were not measured."""
    total, per_parameter = facts.last("bits_clean"), facts.last("bits_per_head_parameter_clean")
    if not total or not per_parameter or 0 in per_parameter:
        return 0
    weights = sum(bits / each for bits, each in zip(total, per_parameter, strict=True))  # D·(K − 1) of one draw
    return round(weights * facts.num_labels / (facts.num_labels - 1) * _num_draws(facts))
