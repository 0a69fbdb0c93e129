"""The end of an epoch: evaluations, steering of λ, ledgers, metrics, summary, and the checkpoint that closes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlpheads.engine.distributed.stop_flag import StopFlag
from rlpheads.engine.learner.clean_features import CleanFeatures
from rlpheads.engine.learner.evaluation import evaluate, merge
from rlpheads.engine.learner.fresh_refit import keeps_features, refit_fresh_labels
from rlpheads.engine.learner.learner import num_audit_draws, num_parameters
from rlpheads.engine.learner.split import Split
from rlpheads.engine.model.builder import Network
from rlpheads.engine.report.display import Display
from rlpheads.engine.report.evaluation_summary import Evaluation, summarize_evaluation, summarize_ledger
from rlpheads.engine.report.label_figures import HeadSizes, label_figures
from rlpheads.engine.report.summary import write_summary
from rlpheads.engine.training.early_stopping import stop_reason
from rlpheads.engine.training.label_choice import label_source
from rlpheads.engine.training.outcome import REMEDIES, TrainingDivergedError
from rlpheads.engine.training.saving import keep_weights, save_checkpoint
from rlpheads.engine.training.steering import regularizer_figures, steer_factor
from rlpheads.engine.training.training import Training, is_due
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import LedgerMetadata


def finish_epoch(training: Training, display: Display, stop_flag: StopFlag) -> dict[str, Any]:
    """Measure, record and close the position's epoch; return its line in metrics.jsonl."""
    run, splits, epoch = training.run, training.splits, training.position.epoch
    config = run.config
    training.check_finite()
    last = epoch + 1 == config.epochs
    row: dict[str, Any] = {"kind": "epoch", "epoch": epoch, "step": training.num_updates}
    row |= {"lr": training.learner.backbone.lr, **regularizer_figures(training)}
    ledgers = {"running": splits.trained.ledger}
    if last or is_due(config.eval.every, epoch, config.epochs):
        row |= _figures(
            training, "eval", "heldout", evaluate_split(training, "held-out", splits.heldout, display, stop_flag)
        )
        row |= _evaluate_average(training, display, stop_flag)
        ledgers["heldout"] = splits.heldout.ledger
        last = last or reason_to_stop_early(training, row) is not None
    if last or is_due(config.eval.clean_every, epoch, config.epochs):
        row |= clean_pass(training, display, stop_flag)
        if (move := steer_factor(training, row)) is not None:
            display.say(move)
        ledgers["clean"] = splits.clean.ledger
    run.launch.progress.enter("end of the epoch")
    # Not before: a stop during an evaluation saves the ledger of this rank's rows alone.
    merge(splits.trained.ledger, run.launch.world_size)
    row |= _figures(training, "train", "running", summarize_ledger(splits.trained.ledger))
    row |= training.gauges.rates | training.gauges.stopwatch.lap(run.launch.world_size)
    if run.launch.is_main:
        if last or is_due(config.ledger.every, epoch, config.epochs):
            for phase, ledger in ledgers.items():
                _write_ledger(training, phase, ledger)
        run.log.append(row)
        write_summary(run.folder, config.heads, wide=config.log.summary == "wide")
    display.epoch(row, training.learner.tapped.taps)
    if run.launch.is_main:
        keep_weights(training, row, last=last)
    training.begin_next_epoch()
    if last or is_due(config.checkpoint.every, epoch, config.epochs):
        save_checkpoint(training, display)
    return row


def reason_to_stop_early(training: Training, *rows: Mapping[str, Any]) -> str | None:
    """Say why the run ends with the epochs that metrics.jsonl holds, and `rows` behind them, or return None.

    Collective where `early_stopping` is on: the main rank, which has the file, decides for all.
    """
    settings = training.run.config.early_stopping
    if settings.patience is None:
        return None
    reason = None
    if training.run.launch.is_main:
        reason = stop_reason(settings, [*training.run.folder.metrics("epoch"), *rows])
    return training.run.launch.share(reason)


def clean_pass(training: Training, display: Display, stop_flag: StopFlag) -> dict[str, Any]:
    """Measure live weights on the clean training images, and refit heads to fresh labels on the features that were read."""
    config, dims, launch = training.run.config, training.learner.dims, training.run.launch
    manifest = training.run.sources.train.manifest
    if not keeps_features(config, manifest.num_samples, dims):
        found = evaluate_split(training, "clean", training.splits.clean, display, stop_flag)
        return _figures(training, "clean", "clean", found)
    features = CleanFeatures(manifest.num_samples, dims, norm=config.heads.norm, device=launch.device)
    found = evaluate_split(training, "clean", training.splits.clean, display, stop_flag, features)
    launch.progress.enter("refit on fresh labels")
    refit_figures = None
    if launch.is_main:
        taps, advance = training.learner.tapped.taps, launch.progress.take_turn
        refit = refit_fresh_labels(features, config, manifest, taps, training.num_updates, advance)
        training.keep_refit(refit)
        refit_figures = refit.figures()
    refit_figures = launch.share(refit_figures)
    assert refit_figures is not None
    return _figures(training, "clean", "clean", found) | refit_figures


def evaluate_split(
    training: Training,
    name: str,
    split: Split,
    display: Display,
    stop_flag: StopFlag,
    features: CleanFeatures | None = None,
) -> Evaluation:
    """Measure live weights on a split, whose ledger is filled, as are `features`. Collective."""
    training.learner.train(False)
    return _evaluate(training, training.learner.bare, name, split, display, stop_flag, features)


def _evaluate(
    training: Training,
    network: Network,
    name: str,
    split: Split,
    display: Display,
    stop_flag: StopFlag,
    features: CleanFeatures | None = None,
) -> Evaluation:
    """Measure a network on a split, timed and with its progress on the display. Collective.

    Raises:
        TrainingDivergedError: its loss is not finite.
    """
    num_images, progress = split.ledger.num_samples, training.run.launch.progress
    progress.enter(f"{name} evaluation, first batch")
    with training.gauges.evaluation_clock.timing(num_images), display.evaluating(name, num_images) as advance:

        def next_batch(num_evaluated: int) -> None:
            advance(num_evaluated)
            progress.enter(f"{name} evaluation")

        totals = evaluate(
            network,
            split,
            training.step.routes.measuring(),
            training.preparation.for_evaluation,
            training.run.config.precision,
            stop_flag.agreed,
            next_batch,
            features,
        )
        found = summarize_evaluation(split, totals)
    training.preparation.check_quota(found.num_skipped)
    if not math.isfinite(found.loss):
        raise TrainingDivergedError(
            f"not finite after step {training.num_updates}: the {name} evaluation's loss is {found.loss}, with finite weights. "
            f"{training.last_checkpoint_words}; {REMEDIES} in a run with another --run.name",
            training.num_updates,
        )
    return found


def _evaluate_average(training: Training, display: Display, stop_flag: StopFlag) -> dict[str, float | None]:
    """Evaluate the moving average of the weights; the heads read live weights only."""
    ema = training.learner.ema
    if ema is None:
        return {}
    heldout = training.splits.heldout
    num_samples = training.run.sources.heldout.manifest.num_samples
    split = replace(heldout, ledger=Ledger(num_samples, 0, 1, training.run.launch.device))
    found = _evaluate(training, Network(ema.module.eval(), None, None), "average", split, display, stop_flag)
    names = ("loss", "top1", "top5", "ece")
    return {f"eval_ema_{name}": getattr(found, name) for name in names}


def _figures(training: Training, name: str, phase: str, found: Evaluation) -> dict[str, Any]:
    named = {"loss": found.loss, "top1": found.top1, "top5": found.top5, "ece": found.ece, "skipped": found.num_skipped}
    figures: dict[str, Any] = {f"{name}_{figure}": value for figure, value in named.items() if value is not None}
    if found.num_samples == 0:  # every batch of the epoch was left out: there is nothing to average
        return {f"{name}_skipped": found.num_skipped}
    num_draws, learner = training.run.config.heads.draws, training.learner
    sizes = HeadSizes(
        num_labels=training.run.config.heads.num_labels,
        num_blocks=training.run.config.heads.num_blocks(len(training.run.sources.train.manifest.classes)),
        dims=learner.dims,
        num_network_parameters=num_parameters(learner.tapped),
        joint=training.run.config.heads.joint > 0,
    )
    if learner.heads is not None:
        figures |= label_figures(found.of_draws(slice(num_draws)), phase, sizes)
    if learner.audit is not None:
        audit = label_figures(found.of_draws(slice(num_draws, None)), phase, replace(sizes, joint=False))
        figures |= {f"audit_{name}": values_T for name, values_T in audit.items()}
    return figures


def _write_ledger(training: Training, phase: str, ledger: Ledger) -> None:
    config = training.run.config
    source = training.run.sources.heldout if phase == "heldout" else training.run.sources.train
    metadata = LedgerMetadata(
        fingerprint=source.manifest.fingerprint,
        seed=config.seed,
        num_labels=config.heads.num_labels,
        taps=training.learner.tapped.taps,
        num_draws=ledger.num_draws,
        num_audit_draws=num_audit_draws(config),
        epoch=training.position.epoch,
        phase=phase,
        split=source.manifest.split,
        step=training.num_updates,
        labels=label_source(config, source.manifest),
    )
    training.run.log.write_ledger(ledger, metadata)
