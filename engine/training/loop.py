"""The loop of a run.

    resume from the newest checkpoint, or start
    for each epoch that is left:
        for each batch that is left of it:
            train_step(batch)                        no host synchronisation
            read the figures of the step before last; stop if a signal or max_steps says so
        evaluate held-out (and, when due, the training set without augmentation); this epoch is the last if it is no better
        write ledger, metrics, summary; then the checkpoint, which closes the epoch
    check the held-out random-label accuracy against chance, draw the figures, say how it ended

A run that is stopped saves where it stands and goes on from that very sample. A run that is killed goes on from its
last checkpoint and writes the same numbers again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

from rlpheads.engine.config.learning import RegularizerConfig
from rlpheads.engine.distributed.stop_flag import StopFlag
from rlpheads.engine.learner.evaluation import Evaluation, EvaluationInterruptedError, Split, evaluate, merge, summarize
from rlpheads.engine.learner.learner import num_audit_draws, num_parameters
from rlpheads.engine.model.builder import Network
from rlpheads.engine.report.display import Display
from rlpheads.engine.report.label_figures import Sizes, label_figures
from rlpheads.engine.runs.resume import Position
from rlpheads.engine.training.early_stopping import stop_reason
from rlpheads.engine.training.outcome import Outcome, TrainingDivergedError, TrainingStoppedError
from rlpheads.engine.training.tracing import StepTracer
from rlpheads.engine.training.wiring import Training
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import LedgerMetadata


def fit(training: Training, display: Display) -> Outcome:
    """Train from `training.position` to the end, a stop signal or `max_steps`. Collective."""
    config = training.config
    stop_flag = StopFlag(training.launch.control, training.launch.world_size)
    stop_flag.install()
    tracer = StepTracer(config.runtime.profile, training.launch, training.folder.path / "profile", display.say)
    try:
        while training.position.epoch < config.epochs:
            if training.position.consumed == 0 and (reason := _reason_to_stop_early(training)) is not None:
                return _finish(training, display, stop_flag, reason)
            if _train_epoch(training, display, stop_flag, tracer) == "max_steps":
                _save(training, display)
                reason = f"max_steps={config.max_steps} reached"
                return _finish(training, display, stop_flag, reason, closed=False)
            _finish_epoch(training, display, stop_flag)
        return _finish(training, display, stop_flag, f"all {config.epochs} epochs trained")
    except (TrainingStoppedError, EvaluationInterruptedError):
        if training.position != training.saved:
            _save(training, display)
        return Outcome("requeue", f"stopped by {stop_flag.reason} after step {training.num_updates}")
    finally:
        tracer.close()
        stop_flag.drain()


def _train_epoch(
    training: Training, display: Display, stop_flag: StopFlag, tracer: StepTracer
) -> Literal["trained", "max_steps"]:
    """Train the rest of the position's epoch, or as much of it as `max_steps` allows.

    Raises:
        TrainingStoppedError: on a stop signal.
    """
    clock = training.clock
    training.loader.set_epoch(training.position.epoch, training.position.consumed)
    training.learner.train()
    stopped = False
    clock.start()
    batches = iter(training.loader)
    while training.epoch_has_steps_left and not training.reached_max_steps and not stopped:
        with tracer.step(training.num_updates):
            with clock.waiting():
                delivered = next(batches)
            images, batch = training.prepare_training(delivered)
            training.meters.add(training.step(images, batch, training.num_updates))
            training.position = replace(training.position, consumed=training.position.consumed + batch.num_global_rows)
            clock.step(batch.num_global_rows)
            _report_window(training, display)
            if training.num_updates % training.config.log_every == 0:
                _close_window(training)
            stopped = stop_flag.agreed()
    clock.stop()
    _report_window(training, display)
    _close_window(training)
    _report_window(training, display)
    if stopped:
        raise TrainingStoppedError
    return "max_steps" if training.epoch_has_steps_left else "trained"


def _close_window(training: Training) -> None:
    rates = {f"{name}_lr": part.lr for name, part in training.learner.parts}
    training.meters.begin_read(training.num_updates, **rates)


def _report_window(training: Training, display: Display) -> None:
    """Publish the window of steps that was closed last, if it is not published yet."""
    read = training.meters.finish_read()
    if read is not None:
        _publish(training, display, *read)


def _publish(training: Training, display: Display, step: int, figures: dict[str, float]) -> None:
    clock = training.clock
    if not all(math.isfinite(value) for value in figures.values()):
        names = ", ".join(f"{name}={value}" for name, value in figures.items() if not math.isfinite(value))
        raise TrainingDivergedError(
            f"not finite at step {step}: {names}. The last checkpoint is whole; lower optim.lr or "
            "heads.optim.lr, set optim.clip_norm, or lower regularizer.factor"
        )
    row = {"kind": "step", "step": step, "epoch": training.position.epoch, **figures}
    row |= training.rates
    if training.launch.is_main:
        training.log.append(row)
    display.step(row, clock.eta_seconds(_images_left(training)))


def _images_left(training: Training) -> int:
    per_epoch = training.order.num_steps * training.config.batch_size
    return (training.config.epochs - training.position.epoch) * per_epoch - training.position.consumed


def _finish_epoch(training: Training, display: Display, stop_flag: StopFlag) -> None:
    """Measure, record and close the position's epoch."""
    config, epoch, folder = training.config, training.position.epoch, training.folder
    last = epoch + 1 == config.epochs
    row: dict[str, Any] = {"kind": "epoch", "epoch": epoch, "step": training.num_updates}
    row |= {"lr": training.learner.backbone.lr, **_factors(training)}
    recorded = {"running": training.running}
    if last or _due(config.eval.every, epoch):
        row |= _figures(training, "eval", "heldout", _evaluate(training, training.heldout, stop_flag))
        row |= _evaluate_average(training, stop_flag)
        recorded["heldout"] = training.heldout.ledger
        last = last or _reason_to_stop_early(training, row) is not None
    if last or _due(config.eval.clean_every, epoch):
        row |= _figures(training, "clean", "clean", _evaluate(training, training.clean, stop_flag))
        _steer(training, row)
        recorded["clean"] = training.clean.ledger
    merge(training.running, training.launch.world_size)  # after the last moment at which a stop would save it
    row |= _figures(training, "train", "running", summarize(training.running))
    row |= training.rates
    if training.launch.is_main:
        if last or _due(config.ledger.every, epoch):
            for phase, ledger in recorded.items():
                _write_ledger(training, phase, ledger)
        training.log.append(row)
        folder.write_summary()
    display.epoch(row, training.learner.tapped.taps)
    training.running.reset()
    training.position = Position(epoch + 1)
    if last or _due(config.checkpoint.every, epoch):
        _save(training, display)


def _reason_to_stop_early(training: Training, *rows: Mapping[str, Any]) -> str | None:
    """Say why the run ends with the epochs that metrics.jsonl holds, and `rows` behind them, or return None.

    Collective where `early_stopping` is on: the main rank, which has the file, decides for all.
    """
    settings = training.config.early_stopping
    if settings.patience is None:
        return None
    reason = None
    if training.launch.is_main:
        reason = stop_reason(settings, [*training.folder.metrics("epoch"), *rows])
    return training.launch.share(reason)


def _factors(training: Training) -> dict[str, float]:
    """Return λ as it was in this epoch, and λ/K: at chance the gradient of `unlikelihood` is proportional to 1/K."""
    weights, num_labels = training.routes.weights, training.config.heads.num_labels
    if weights.factor == 0:
        return {}
    per_label = weights.factor_per_label(num_labels)
    return {"regularizer_factor": weights.factor, "regularizer_factor_per_label": per_label}


def _steer(training: Training, row: Mapping[str, Any]) -> None:
    """Move λ towards `regularizer.target`: dual ascent on ln λ. Every rank computes the same from the merged ledgers."""
    settings, factor = training.config.regularizer, training.routes.weights.factor
    if factor == 0 or settings.target is None:
        return
    accuracy_T, baseline_T = row["audit_rla_clean"], training.baselines_T
    excess = fmean(accuracy_T[tap] - baseline_T[tap] for tap in training.routes.terms.regularized)
    training.set_factor(_steered(factor, settings, excess - settings.target))


def _steered(factor: float, settings: RegularizerConfig, too_much: float) -> float:
    """Return the next λ: at most ten times up or down at once, and within a thousand times where it started.

    Without these bounds λ would wind down by many orders of magnitude while the heads have learned nothing yet, and
    take as long to come back.
    """
    step = min(max(settings.target_rate * too_much, -math.log(10)), math.log(10))
    return min(max(factor * math.exp(step), settings.factor / 1000), settings.factor * 1000)


def _evaluate(training: Training, split: Split, stop_flag: StopFlag) -> Evaluation:
    learner = training.learner
    learner.train(False)
    return evaluate(
        learner.bare,
        split,
        training.routes.measuring(),
        training.prepare,
        training.config.precision,
        stop_flag.agreed,
    )


def _evaluate_average(training: Training, stop_flag: StopFlag) -> dict[str, float | None]:
    """Evaluate the moving average of the weights; the heads read live weights only."""
    ema = training.learner.ema
    if ema is None:
        return {}
    heldout = training.heldout
    num_samples = training.sources.heldout.manifest.num_samples
    split = replace(heldout, ledger=Ledger(num_samples, 0, 1, training.launch.device))
    precision, routes = training.config.precision, training.routes.measuring()
    found = evaluate(
        Network(ema.module.eval(), None, None), split, routes, training.prepare, precision, stop_flag.agreed
    )
    names = ("loss", "top1", "top5", "ece")
    return {f"eval_ema_{name}": getattr(found, name) for name in names}


def _figures(training: Training, name: str, phase: str, found: Evaluation) -> dict[str, Any]:
    named = {"loss": found.loss, "top1": found.top1, "top5": found.top5, "ece": found.ece, "skipped": found.num_skipped}
    figures: dict[str, Any] = {f"{name}_{figure}": value for figure, value in named.items() if value is not None}
    num_draws, learner = training.config.heads.draws, training.learner
    sizes = Sizes(
        num_labels=training.config.heads.num_labels,
        num_blocks=training.config.heads.num_blocks(len(training.sources.train.manifest.classes)),
        dims=learner.dims,
        num_network_parameters=num_parameters(learner.tapped),
        joint=training.config.heads.joint > 0,
    )
    if learner.heads is not None:
        figures |= label_figures(found.of_draws(slice(num_draws)), phase, sizes)
    if learner.audit is not None:
        audit = label_figures(found.of_draws(slice(num_draws, None)), phase, replace(sizes, joint=False))
        figures |= {f"audit_{name}": values_T for name, values_T in audit.items()}
    return figures


def _write_ledger(training: Training, phase: str, ledger: Ledger) -> None:
    source = training.sources.heldout if phase == "heldout" else training.sources.train
    metadata = LedgerMetadata(
        fingerprint=source.manifest.fingerprint,
        seed=training.config.seed,
        num_labels=training.config.heads.num_labels,
        taps=training.learner.tapped.taps,
        num_draws=ledger.num_draws,
        num_audit_draws=num_audit_draws(training.config),
        epoch=training.position.epoch,
        phase=phase,
        split=source.manifest.split,
        step=training.num_updates,
    )
    ledger.write_parquet(training.folder.ledger(training.position.epoch, phase), metadata)


def _save(training: Training, display: Display) -> None:
    training.save()
    display.note(f"checkpoint at step {training.num_updates}")


def _due(every: int, epoch: int) -> bool:
    return every > 0 and (epoch + 1) % every == 0


def _finish(training: Training, display: Display, stop_flag: StopFlag, reason: str, *, closed: bool = True) -> Outcome:
    """Check the run against chance, draw its figures and print what it found. Collective.

    `closed`: the run ends with a last epoch, whose measurements are still here if this process made them.
    """
    from rlpheads.engine.report.findings import (
        draw_figures,
        summarize_findings,
    )  # scipy and matplotlib load after training
    from rlpheads.engine.report.memory import measure_memory

    measured_now = closed and training.heldout.ledger.num_seen
    heldout = summarize(training.heldout.ledger) if measured_now else _evaluate(training, training.heldout, stop_flag)
    if not training.launch.is_main:
        return Outcome("done", reason)
    history = training.folder.metrics("epoch")
    found = summarize_findings(
        heldout, history, training.learner.tapped.taps, training.baselines_T, training.config.heads.num_labels
    )
    if found.taps:
        if closed and training.clean.ledger.num_seen:
            config, blocks = training.config.heads, training.learner.tapped.taps
            memory = measure_memory(training.clean.ledger, blocks, config.draws, config.num_labels)
            found = replace(found, memory=memory)
        draw_figures(training.folder.figures, found, history, heldout.num_samples)
    display.findings(found)
    return Outcome("done", reason, found)
