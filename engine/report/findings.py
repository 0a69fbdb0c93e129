"""What a run found: random-label accuracies by tap beside chance, the head-only baseline and the held-out check."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpheads.engine.report.evaluation_summary import Evaluation

if TYPE_CHECKING:  # scipy is behind both
    from rlpheads.engine.report.memory import TapMemory
    from rlpheads.memorization.measures.intervals import Interval

HEAD_ALONE, FRESH_REFIT = "head-only baseline", "refit, fresh labels"
"""The line beside a trained head: the closed form for features that know nothing of the labels, or a measured one."""


@dataclass(frozen=True)
class TapFinding:
    """One tap of a finished run; accuracies in [0, 1], averaged over draws, None where not measured.

    Attributes:
        block: name of the tap: the number of the block that it reads, or text.
        running: on augmented images while the weights moved (last epoch).
        clean: on the training set without augmentation, weights at rest (last epoch that measured it).
        audit: clean, of the audit heads, whose labels the regulariser never saw.
        baseline: what a head reaches without memory of its labels; `Findings.line` says which head.
        heldout: on held-out images, where nobody can know the labels.
        baseline_half_width: half of the 95 % interval of a measured baseline, over its draws; None for a closed form.
        bits: T, bits about one labelling of the training images without augmentation, weights at rest.
        bits_per_sample: T over the images; log2 K where every label is known.
        bits_per_head_parameter: T over d·(K − 1).
        audit_bits: T of the audit heads.
        margin_p05: what one in twenty of those images' label margins is below, in units of logits; above 0 is a hit.
        margin_median: median of the margins.
        margin_p95: what one in twenty is above.
    """

    block: int | str
    running: float | None
    clean: float | None
    audit: float | None
    baseline: float
    heldout: float
    baseline_half_width: float | None = None
    bits: float | None = None
    bits_per_sample: float | None = None
    bits_per_head_parameter: float | None = None
    audit_bits: float | None = None
    margin_p05: float | None = None
    margin_median: float | None = None
    margin_p95: float | None = None


@dataclass(frozen=True)
class Findings:
    """What a run found.

    Attributes:
        top1: held-out accuracy of the classes.
        chance: 1/K.
        taps: one finding for each tap.
        heldout_bounds: least and greatest held-out accuracy over all draws of a tap that chance allows (exact binomial on
            their pooled count: draws are independent).
        strayed: (block, draw, accuracy) of every held-out accuracy outside its bounds: draw None is that of all draws; a
            single draw outside its own bounds says that the draws differ.
        draw_bounds: those of one draw.
        memory: what each tap's heads hold of one labelling; empty where no clean pass closed the run.
        line: what the taps' baseline is: heads refitted to fresh labels on the same features, or the closed form of a
            head alone.
        num_train: training images behind the accuracies.
        ece: held-out expected calibration error of the classes, in [0, 1]; None where it was not measured.
        clean_ece: that of the training images without augmentation, in the last epoch that measured it.
    """

    top1: float
    chance: float
    taps: tuple[TapFinding, ...]
    heldout_bounds: tuple[float, float]
    strayed: tuple[tuple[int | str, int | None, float], ...]
    draw_bounds: tuple[float, float]
    memory: tuple[TapMemory, ...] = ()
    line: str = HEAD_ALONE
    num_train: int = 1
    ece: float | None = None
    clean_ece: float | None = None


def summarize_findings(
    heldout: Evaluation,
    history: Sequence[Mapping[str, Any]],
    blocks: Sequence[int | str],
    baselines: Sequence[float],
    num_labels: int,
    num_train: int = 1,
) -> Findings:
    """Set the accuracies of a run beside chance and baseline.

    Args:
        heldout: evaluation of the final weights on the held-out split.
        history: the epoch lines of metrics.jsonl.
        blocks: name of every tap.
        baselines: head-only accuracy of every tap, for runs that refitted no heads to fresh labels.
        num_labels: K.
        num_train: training images.
    """
    from rlpheads.memorization.measures.intervals import binomial_bounds  # scipy loads after training

    num_draws = len(heldout.rla_TM[0]) if blocks else 1
    bounds = binomial_bounds(num_draws * heldout.num_samples, num_labels)
    draw_bounds = binomial_bounds(heldout.num_samples, num_labels)
    strayed = tuple(
        entry
        for block, rla_M in zip(blocks, heldout.rla_TM, strict=True)
        for entry in _outside(block, rla_M, heldout.num_samples, (bounds, draw_bounds))
    )
    nothing = [None] * len(blocks)
    columns: dict[str, Sequence[Any]] = {name: _last(history, row, nothing) for name, row in _ROWS.items()}
    refits = _last(history, "fresh_refit_clean", None)
    line_T = baselines if refits is None else refits
    columns |= {"block": blocks, "baseline": line_T, "heldout": heldout.rla_T}
    taps = tuple(TapFinding(**dict(zip(columns, tap, strict=True))) for tap in zip(*columns.values(), strict=True))
    return Findings(
        top1=heldout.top1,
        chance=1 / num_labels,
        taps=taps,
        heldout_bounds=(float(bounds.low), float(bounds.high)),
        strayed=strayed,
        draw_bounds=(float(draw_bounds.low), float(draw_bounds.high)),
        num_train=num_train,
        line=HEAD_ALONE if refits is None else FRESH_REFIT,
        ece=heldout.ece if heldout.ece is not None else _last(history, "eval_ece", None),
        clean_ece=_last(history, "clean_ece", None),
    )


def _outside(
    block: int | str, rla_M: Sequence[float], num_samples: int, bounds: tuple[Interval, Interval]
) -> Iterator[tuple[int | str, int | None, float]]:
    """Yield the accuracy over all draws and those of single draws that are outside what chance allows them."""
    of_all, of_one = bounds
    pooled = round(sum(rla_M) * num_samples) / (len(rla_M) * num_samples)  # whole hits, as the bounds count them
    if not of_all.contains(pooled):
        yield block, None, pooled
    if len(rla_M) > 1:
        yield from ((block, draw, rla) for draw, rla in enumerate(rla_M) if not of_one.contains(rla))


def draw_figures(folder: Path, found: Findings, history: Sequence[Mapping[str, Any]], num_heldout: int) -> None:
    """Draw random-label accuracy by depth (now) and by epoch into `folder`, as PNG and SVG.

    Args:
        folder: where the figures go.
        found: the final accuracies.
        history: the epoch lines of metrics.jsonl.
        num_heldout: held-out samples, for the band of chance.
    """
    # matplotlib loads after training
    from rlpheads.memorization.figures.rla_figures import References, plot_rla_by_depth, plot_rla_by_epoch

    blocks = [tap.block for tap in found.taps]
    references = References(round(1 / found.chance), num_heldout, [tap.baseline for tap in found.taps], found.line)
    now = {phase: [[getattr(tap, phase)] for tap in found.taps] for phase in _DRAWN}
    measured = {phase: values for phase, values in now.items() if values[0][0] is not None}
    plot_rla_by_depth(folder / "rla_by_depth", blocks, measured, references)
    if history:
        nothing = [float("nan")] * len(blocks)
        by_epoch = {
            phase: [[[value] for value in row.get(_DRAWN[phase], nothing)] for row in history] for phase in measured
        }
        plot_rla_by_epoch(folder / "rla_by_epoch", [row["epoch"] for row in history], blocks, by_epoch, references)


_DRAWN = {"running": "rla_running", "clean": "rla_clean", "audit": "audit_rla_clean", "heldout": "rla_heldout"}
"""What figures show, and where it stands in the epoch lines of metrics.jsonl."""
_ROWS = {
    "running": "rla_running",
    "clean": "rla_clean",
    "audit": "audit_rla_clean",
    "baseline_half_width": "fresh_refit_half_width_clean",
    "bits": "bits_clean",
    "bits_per_sample": "bits_per_sample_clean",
    "bits_per_head_parameter": "bits_per_head_parameter_clean",
    "audit_bits": "audit_bits_clean",
    "margin_p05": "margin_p05_clean",
    "margin_median": "margin_median_clean",
    "margin_p95": "margin_p95_clean",
}
"""Where a finding stands in the epoch lines of metrics.jsonl."""


def _last(history: Sequence[Mapping[str, Any]], name: str, otherwise: Any) -> Any:
    return next((row[name] for row in reversed(history) if name in row), otherwise)
