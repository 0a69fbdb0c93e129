"""What an evaluation found, read off the device: losses and accuracies, bits and margins by tap and draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean

from rlpheads.engine.learner.evaluation import ClassTotals
from rlpheads.engine.learner.split import Split
from rlpheads.loaders.sources.verification import nothing_readable
from rlpheads.memorization.quantiles import MARGIN_LEVELS
from rlpheads.memorization.records.ledger import Ledger


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        loss: mean cross-entropy of the classes, in nats.
        top1: accuracy of the classes, in [0, 1].
        rla_TM: random-label accuracy of each tap and draw, in [0, 1]; the audit heads' draws come last.
        bits_TM: bits about the random labels, summed over the samples, of each tap and draw.
        num_samples: samples seen.
        num_skipped: samples that could not be read and were left out.
        top5: share of samples whose class is among the five likeliest, in [0, 1] (1 for five classes or fewer); None
            for what a ledger alone remembers.
        ece: expected calibration error of the classes, in [0, 1]: how far the greatest probability of the softmax,
            whatever loss was trained, is from the accuracy; None likewise.
        margins_TM: quantiles of the random label's margin, in units of logits, of each tap and draw, by their names in
            `MARGIN_LEVELS`.
    """

    loss: float
    top1: float
    rla_TM: list[list[float]]
    bits_TM: list[list[float]]
    num_samples: int
    num_skipped: int = 0
    top5: float | None = None
    ece: float | None = None
    margins_TM: Mapping[str, list[list[float]]] = field(default_factory=dict)

    @property
    def rla_T(self) -> list[float]:  # noqa: N802 - shape suffix
        """Random-label accuracy of each tap, averaged over the draws."""
        return [fmean(rla_M) for rla_M in self.rla_TM]

    @property
    def bits_T(self) -> list[float]:  # noqa: N802 - shape suffix
        """Bits about the random labels of each tap, averaged over the draws."""
        return [fmean(bits_M) for bits_M in self.bits_TM]

    @property
    def margins_T(self) -> dict[str, list[float]]:  # noqa: N802 - shape suffix
        """Quantiles of the random label's margin of each tap, averaged over the draws, by name."""
        return {name: [fmean(values_M) for values_M in values_TM] for name, values_TM in self.margins_TM.items()}

    def of_draws(self, draws: slice) -> Evaluation:
        """Return the evaluation with some of the draws alone."""

        def chosen(values_TM: list[list[float]]) -> list[list[float]]:
            return [values_M[draws] for values_M in values_TM]

        margins_TM = {name: chosen(values_TM) for name, values_TM in self.margins_TM.items()}
        return replace(self, rla_TM=chosen(self.rla_TM), bits_TM=chosen(self.bits_TM), margins_TM=margins_TM)


def summarize_ledger(ledger: Ledger) -> Evaluation:
    """Return what a filled, merged ledger says of all its samples."""
    margins_QTM = ledger.label_margins_QTM(list(MARGIN_LEVELS.values()))
    return Evaluation(
        loss=ledger.class_loss,
        top1=ledger.class_accuracy,
        rla_TM=ledger.label_accuracy_TM.tolist(),
        bits_TM=ledger.label_bits_TM.tolist(),
        num_samples=ledger.num_seen,
        num_skipped=ledger.num_skipped,
        margins_TM=dict(zip(MARGIN_LEVELS, margins_QTM.tolist(), strict=True)),
    )


def summarize_evaluation(split: Split, totals: ClassTotals) -> Evaluation:
    """Return what one pass over a split found.

    Raises:
        DatasetError: every image of the split was skipped.
    """
    if split.ledger.num_seen == 0:
        raise nothing_readable(split.loader.manifest)
    found = summarize_ledger(split.ledger)
    ece = totals.calibration.error(found.num_samples).item()
    return replace(found, top5=totals.num_among_five.item() / found.num_samples, ece=ece)
