"""Sections on a run as a whole: its settings, its curves, what it cost, what it left out, and what is not shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rlpheads.engine.config.schema import Config
from rlpheads.engine.page.blocks import Block, Drawing, Grid, Section, Text
from rlpheads.engine.page.facts import RunFacts
from rlpheads.engine.report.display import percent
from rlpheads.engine.report.summary import with_derived
from rlpheads.memorization.figures.class_figures import draw_class_curves
from rlpheads.memorization.figures.figure_file import inline_svg

HIDDEN = ("data.root", "data.verified", "model.checkpoint", "run.dir", "run.name", "log.wandb_project")
"""Settings that name places and people."""


def settings_section(facts: RunFacts) -> Section:
    """Settings that differ from the defaults, command, commit, versions, device and time."""
    ours, defaults = flat_settings(facts.config), flat_settings(Config())
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
            Grid("Settings that differ from the defaults", ("key", "here", "default"), rows),
        ],
    )


def flat_settings(config: Config) -> dict[str, Any]:
    """Return all settings by dotted name."""

    def flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping) and value:
                yield from flatten(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(flatten(asdict(config), ""))


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
    """What heads cost in arithmetic, parameters and time, as far as the run measured it."""
    last = facts.epochs[-1]
    rows = [("images per second, last epoch", f"{last.get('images_per_second', 0):.1f}")]
    rows += [("share of waiting for data", percent(last.get("data_wait")))]
    if last.get("mfu") is not None:
        rows += [("MFU", percent(last["mfu"])), ("MFU of the heads", percent(last["mfu_heads"]))]
    sizes = _head_parameters(facts)
    if sizes:
        rows.append(("parameters of the heads", f"{sizes:,}"))
        per_sample = 25 + 9 * len(facts.taps) * _num_draws(facts)
        rows.append(("memory of a ledger, bytes a sample", str(per_sample)))
    note = Text(
        "Time with and without heads is measured by benchmarks/step_throughput.py; one run alone cannot tell.", "note"
    )
    return Section("overhead", "Overhead of the heads", [Grid("Overhead", ("what", "value"), rows), note])


def skipped_section(facts: RunFacts) -> Section:
    """Images that could not be read, or whose batch was left out."""
    rows = [
        (str(row["epoch"]), *(str(row.get(f"{name}_skipped", 0)) for name in ("train", "clean", "eval")))
        for row in facts.epochs
        if any(row.get(f"{name}_skipped") for name in ("train", "clean", "eval"))
    ]
    blocks: list[Block] = [Grid("Skipped images", ("epoch", "training", "clean pass", "held-out"), rows)]
    if not rows:
        blocks = [Text("No image was skipped: every image of every pass was read.")]
    return Section("skipped", "Skipped images", blocks)


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
    last = with_derived(facts.epochs)[-1]
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
