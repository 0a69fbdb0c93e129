"""The end of a run: held-out check and figures, the final status.json, and the last lines with what to run next."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from rlpheads.engine.config.learning import HeadsConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed.stop_flag import StopFlag
from rlpheads.engine.learner.learner import num_audit_draws
from rlpheads.engine.learner.sharded_part import ShardedPart
from rlpheads.engine.report.display import Display, calibration_text, percent
from rlpheads.engine.report.evaluation_summary import summarize_ledger
from rlpheads.engine.report.findings import FRESH_REFIT, Findings, TapFinding, draw_figures, summarize_findings
from rlpheads.engine.runs.checkpoint import weights_sha256
from rlpheads.engine.runs.folder import MEMORY_FILE, RunFolder
from rlpheads.engine.runs.weights_files import LAST_AVERAGED_WEIGHTS, LAST_WEIGHTS
from rlpheads.engine.terminal.text import shell_word
from rlpheads.engine.training.epoch_end import clean_pass, evaluate_split, reason_to_stop_early
from rlpheads.engine.training.outcome import Outcome
from rlpheads.engine.training.training import Training


def conclude(training: Training, display: Display, stop_flag: StopFlag, reason: str, *, closed: bool = True) -> Outcome:
    """Check the run against chance, draw its figures and print what it found. Collective.

    `closed`: the run ends with a last epoch, whose measurements are still here if this process made them, and are made again
    where it did not.
    """
    if closed and training.learner.tapped.taps and not training.splits.clean.ledger.num_seen:
        clean_pass(training, display, stop_flag)  # another process made the last one, and ended before its last figures
    if closed and training.splits.heldout.ledger.num_seen:
        heldout = summarize_ledger(training.splits.heldout.ledger)
    else:
        heldout = evaluate_split(training, "held-out", training.splits.heldout, display, stop_flag)
    training.run.launch.progress.enter("last figures")
    if not training.run.launch.is_main:
        return Outcome("done", reason)
    history = training.run.folder.metrics("epoch")
    found = summarize_findings(
        heldout,
        history,
        training.learner.tapped.taps,
        training.baselines_T,
        training.run.config.heads.num_labels,
        training.run.sources.train.manifest.num_samples,
    )
    if found.taps:
        if closed and training.splits.clean.ledger.num_seen:
            from rlpheads.engine.report.memory import measure_memory  # scipy loads after training

            config, blocks = training.run.config.heads, training.learner.tapped.taps
            memory = measure_memory(training.splits.clean.ledger, blocks, config.draws, config.num_labels)
            found = replace(found, memory=memory)
        if closed:
            from rlpheads.engine.tables.run_figures import draw_run_figures  # matplotlib loads after training

            drawn = draw_run_figures(training.run.folder.path, training.run.config)
            training.run.log.show(training.num_updates, drawn)
        else:  # there is no ledger of the epoch that was cut short
            draw_figures(training.run.folder.figures, found, history, heldout.num_samples)
    display.findings(found)
    if closed and training.splits.clean.ledger.num_seen and training.splits.heldout.ledger.num_seen:
        _record_memory(training, display)
    return Outcome("done", reason, found)


def forget_earlier_end(training: Training) -> None:
    """Delete what an earlier end left in the folder of a run that goes on from there (epochs or max_steps raised). Collective.

    It is of weights that are trained further: whoever reads the folder before the next end would take it for the present.
    """
    has_steps = training.position.epoch < training.run.config.epochs and not training.reached_max_steps
    if not has_steps or reason_to_stop_early(training) is not None or not training.run.launch.is_main:
        return
    folder = training.run.folder
    for path in (folder.path / MEMORY_FILE, folder.weights / LAST_WEIGHTS, folder.weights / LAST_AVERAGED_WEIGHTS):
        path.unlink(missing_ok=True)


def _record_memory(training: Training, display: Display) -> None:
    """Write and print what the run remembers of its training images beyond what it says of held-out ones."""
    from rlpheads.engine.report.run_memory import measure_run_memory  # scipy loads after training

    run, splits = training.run, training.splits
    memory = measure_run_memory(
        splits.clean.ledger,
        splits.heldout.ledger,
        run.folder,
        run.sources.train.manifest.classes,
        training.learner.tapped.taps,
        run.config.heads.draws,
        training.refit,
    )
    run.folder.write_json(MEMORY_FILE, memory.content())
    display.memory(memory)


def close_run(training: Training, outcome: Outcome, display: Display, warnings: tuple[str, ...]) -> None:
    """Write the final status.json and print the last lines, at the main rank. Collective."""
    hashes = _weight_hashes(training)
    overhead = training.time_heads() if outcome.status == "done" else None
    if not training.run.launch.is_main:
        return
    facts: dict[str, Any] = {"step": training.num_updates, "weights_sha256": hashes, "warnings": warnings}
    facts["skipped"] = _skipped_in_last_epoch(training.run.folder)
    known = training.run.folder.status().get("overhead")
    if overhead is not None:
        facts["overhead"] = {**asdict(overhead), "share": overhead.share}
    elif known is not None:  # of the process that trained it to its end
        facts["overhead"] = known
    training.run.folder.write_status(outcome.status, outcome.reason, **facts, **_found_facts(outcome.findings))
    for name, digest in hashes.items():
        display.note(f"{name} weights sha256 {digest}")
    if overhead is not None:
        display.say(overhead.describe())
    for line in closing_lines(outcome, training.run.config, training.run.folder.path):
        display.say(line.text, line.command)


def _weight_hashes(training: Training) -> dict[str, str]:
    """Hash the weights at the main rank; the others help where they hold a part of them. Collective."""
    parts = training.learner.parts
    is_main = training.run.launch.is_main
    modules = {name: part.module for name, part in parts.items() if is_main or isinstance(part, ShardedPart)}
    if is_main and training.learner.ema is not None:
        modules["ema"] = training.learner.ema.module
    return {name: weights_sha256(module) for name, module in modules.items()}


def _skipped_in_last_epoch(folder: RunFolder) -> dict[str, int]:
    """Return how many images each pass of the last finished epoch left out, where it left any out."""
    last: dict[str, Any] = next(reversed(folder.metrics("epoch")), {})
    return {name: count for name, count in last.items() if name.endswith("_skipped") and count}


def _found_facts(found: Findings | None) -> dict[str, Any]:
    """Return what status.json holds of the findings."""
    if found is None:
        return {}
    facts: dict[str, Any] = {"top1": found.top1, "ece": found.ece, "clean_ece": found.clean_ece}
    if found.taps:
        facts["heldout_check"] = "failed" if found.strayed else "passed"
        facts["memory"] = [asdict(tap) for tap in found.memory]
    return facts


class ClosingLine(NamedTuple):
    """One of the last lines, and the command in it that is to be copied, if there is one."""

    text: str
    command: str = ""


def closing_lines(outcome: Outcome, config: Config, folder: Path) -> Iterator[ClosingLine]:
    """Yield the last lines that a run of these settings prints about itself.

    Args:
        outcome: how the run ended.
        config: its settings.
        folder: the run folder.
    """
    yield ClosingLine(f"{outcome.status}: {outcome.reason}; everything is in {folder}")
    if outcome.status == "requeue":
        yield ClosingLine("next: the same command again, which goes on from this very sample")
    if outcome.findings is not None:
        yield ClosingLine(f"learned: {_summary(outcome.findings, config)}")
        if (meaning := _meaning(outcome.findings, config)) is not None:
            yield ClosingLine(f"means: {meaning}")
        yield ClosingLine(*_figure_paths(outcome.findings, config, folder))
    if config.log.wandb == "offline":
        yield _next(f"wandb sync {shell_word(folder / 'wandb')}/offline-run-*", "sends the figures to W&B")
    if outcome.findings is not None:
        yield from _next_commands(outcome.findings, folder)


def _summary(found: Findings, config: Config) -> str:
    text = f"held-out top-1 {percent(found.top1)}{calibration_text(found)}"
    measured = [(value, tap) for tap in found.taps if (value := _telling_accuracy(tap, config.heads)) is not None]
    if not measured:
        return text
    value, tap = max(measured, key=lambda pair: pair[0])
    beside = f"{found.line}: {percent(tap.baseline)}; chance: {percent(found.chance)}"
    return f"{text}; random-label accuracy at most {percent(value)}, at tap {tap.block} ({beside})"


def _meaning(found: Findings, config: Config) -> str | None:
    """Say what the trained heads' accuracies mean beside the line; None where nothing was measured.

    An accuracy is beyond the line where it is by more than chance explains at all taps together (5 %): that of the labels,
    a(1 − a)/(N·M), and that of the refits' draws.
    """
    heads = config.heads
    measured = [(value, tap) for tap in found.taps if (value := _telling_accuracy(tap, heads)) is not None]
    if not measured:
        return None
    value, tap = max(measured, key=lambda pair: pair[0] - pair[1].baseline)
    excess, sigmas = value - tap.baseline, NormalDist().inv_cdf(1 - 0.025 / len(measured))
    group = heads.telling(audited=tap.audit is not None)
    num_trials = found.num_train * (num_audit_draws(config) if group == "audit" else heads.draws)
    luck = math.hypot((tap.baseline_half_width or 0) / 1.96, math.sqrt(value * (1 - value) / num_trials))
    reference = "heads refitted to fresh labels reach" if found.line == FRESH_REFIT else "a head alone reaches"
    if excess > sigmas * luck:
        points = f"{100 * excess:.2f} ± {100 * sigmas * luck:.2f} points"
        found_more = (
            f"at tap {tap.block} heads know {points} more of their labels than {reference}: memory beyond the head"
        )
        return found_more + (_by_depth(found) if heads.joint > 0 else "")
    return (
        f"no tap beyond what {reference}: what heads know here is their own capacity; rlpheads audit compares by refits"
    )


def _by_depth(found: Findings) -> str:
    """Say how the own heads' accuracies change with depth, and what audit heads find where the network learns labels too."""
    first, last = found.taps[0], found.taps[-1]
    if first is last or first.clean is None or last.clean is None:
        return ""
    text = f"; from {percent(first.clean)} at tap {first.block} to {percent(last.clean)} at tap {last.block}"
    audited = [tap.audit for tap in found.taps if tap.audit is not None]
    if audited:
        text += f", and audit heads, on labels that the network never learned, at most {percent(max(audited))}"
    return text


def _telling_accuracy(tap: TapFinding, heads: HeadsConfig) -> float | None:
    """Return the accuracy of the heads that tell what is remembered, on clean images where it was measured."""
    if heads.telling(audited=tap.audit is not None) == "audit":
        return tap.audit
    return tap.clean if tap.clean is not None else tap.running


def _next(command: str, meaning: str) -> ClosingLine:
    return ClosingLine(f"next: {command} {meaning}", command)


def _figure_paths(found: Findings, config: Config, folder: Path) -> tuple[str, str]:
    """Return the line on figures and curves, and the command in it."""
    places, command = [], ""
    if found.taps:
        places.append(f"{folder / 'figures' / 'rla_by_depth.png'} and rla_by_epoch.png")
    summary = folder / "summary.csv"
    places.append(f"by epoch {summary}" if summary.exists() else f"by step {folder / 'metrics.jsonl'}")
    if config.log.tensorboard:
        command = f"tensorboard --logdir {shell_word(folder / 'tensorboard')}"
        places.append(f"curves: {command}")
    return f"figures: {'; '.join(places)}", command


def _next_commands(found: Findings, folder: Path) -> Iterator[ClosingLine]:
    if found.taps:
        yield _next(f"rlpheads audit {shell_word(folder)}", "says what the frozen features hold, with intervals")
    if (folder / "canaries.parquet").exists():
        yield _next(f"rlpheads canaries {shell_word(folder)}", "says which measure finds the planted images")
