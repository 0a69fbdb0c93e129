"""Which measure finds the samples that were planted in a run: areas under the curve by kind, from the run's ledgers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlpheads.engine.runs.sources import CANARIES_FILE
from rlpheads.memorization.measures.canaries import REPEATED, CanaryAUC, auc_by_kind, correlate_with_copies
from rlpheads.memorization.measures.rank_correlation import Correlation
from rlpheads.memorization.measures.sample_history import (
    DYNAMIC_MEASURES,
    FIRST_HIT,
    FIRST_LEARNED,
    SampleHistory,
    gather_history,
    sample_measures,
)
from rlpheads.memorization.records.canary_file import Canaries, CanaryError, read_canaries
from rlpheads.memorization.records.ledger_file import LedgerError, read_ledger


@dataclass(frozen=True)
class CanaryReport:
    """What a run's ledgers say of its canaries.

    Attributes:
        phase: which ledgers: running or clean.
        epochs: the epochs of those ledgers.
        kinds: number of planted samples by kind, copies included.
        auc: by measure, then by kind.
        spearman: by measure: correlation with the number of copies, over the repeated images.
        remarks: what is missing, and what to run for it.
    """

    phase: str
    epochs: tuple[int, ...]
    kinds: dict[str, int]
    auc: dict[str, dict[str, CanaryAUC]]
    spearman: dict[str, Correlation]
    remarks: tuple[str, ...]

    def to_json(self) -> str:
        """Return everything as JSON text: NaN is null, an area {auc, low, high}."""
        auc = {name: {kind: found._asdict() for kind, found in kinds.items()} for name, kinds in self.auc.items()}
        spearman = {
            name: {key: None if math.isnan(value) else value for key, value in found._asdict().items()}
            for name, found in self.spearman.items()
        }
        return json.dumps(asdict(self) | {"auc": auc, "spearman": spearman}, indent=2)


def collect_report(folder: Path, phase: str = "running") -> CanaryReport:
    """Read a run's canaries and its ledgers of one phase, and score every kind by every measure.

    Args:
        folder: the run folder.
        phase: "running" (augmented images, weights moving) or "clean" (a pass of its own, weights at rest).

    Raises:
        FileNotFoundError: there are no canaries, or no ledgers of this phase.
        CanaryError: the canaries are not those of the ledgers.
        LedgerError: a ledger cannot be read.
    """
    if not (folder / CANARIES_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} has no {CANARIES_FILE}: it is no run folder, or nothing was planted; "
            "train with --data.canaries.mislabelled 30 or --data.label_noise 0.2"
        )
    canaries = read_canaries(folder / CANARIES_FILE)
    paths = sorted((folder / "ledger").glob(f"epoch=*/{phase}.parquet"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no {phase} ledger yet; they are written at the end of epochs: {_flags_for_ledgers(phase)}"
        )
    history = gather_history(map(read_ledger, paths))
    if history.metadata.fingerprint != canaries.fingerprint:
        raise CanaryError(
            f"{folder / CANARIES_FILE} tells of images with fingerprint {canaries.fingerprint}, but the ledgers are of "
            f"{history.metadata.fingerprint}; run it again with --run.overwrite"
        )
    if max(*canaries.index, *canaries.original, 0) >= len(history.seen_N) or min(*canaries.original, 0) < 0:
        raise CanaryError(
            f"{folder / CANARIES_FILE} tells of other samples than the {len(history.seen_N)} of the ledgers"
        )
    try:
        measures = sample_measures(history)
        spearman = correlate_with_copies(measures, canaries)
        auc = auc_by_kind(measures, canaries)
    except ValueError as error:  # a number that no measurement gives
        raise LedgerError(f"the {phase} ledgers in {folder / 'ledger'} are damaged: {error}") from error
    return CanaryReport(
        phase=phase,
        epochs=history.epochs,
        kinds=canaries.kinds,
        auc=auc,
        spearman=spearman,
        remarks=tuple(_remarks(history, canaries, spearman)),
    )


def _remarks(history: SampleHistory, canaries: Canaries, spearman: Mapping[str, Correlation]) -> Iterator[str]:
    """Yield what could not be measured, and what to run for it."""
    phase, epochs = history.metadata.phase, history.epochs
    flags = _flags_for_ledgers(phase)
    if len(epochs) < 2:
        yield f"not measured, for want of a second {phase} ledger: {', '.join(DYNAMIC_MEASURES)}; run with {flags}"
    elif epochs[-1] + 1 > len(epochs):
        yield f"{len(epochs)} ledgers of {epochs[-1] + 1} epochs: what happened in between is not seen; {flags}"
    if not history.metadata.taps:
        yield "not measured, for want of heads: all that is about random labels; run with --heads.taps all"
    if REPEATED in canaries.kinds and not spearman:
        yield 'no correlation with one number of copies only; run with --data.canaries.repeats "[2, 4, 8]"'
    unseen = int((~history.seen_N[canaries.index]).sum())
    if unseen:
        yield f"{unseen} of the planted samples were in no ledger (a dropped partial batch), and are left out"


def _flags_for_ledgers(phase: str) -> str:
    """Return the flags of a run that writes a ledger of this phase after every epoch."""
    return "--ledger.every 1" + (" --eval.clean_every 1" if phase == "clean" else "")


def print_report(report: CanaryReport, console: Console) -> None:
    """Print the table of measures by kind, and how to read it."""
    ledgers = f"{len(report.epochs)} {report.phase} ledger(s), the last of epoch {report.epochs[-1]}"
    console.print(f"canaries against ordinary samples: {ledgers}")
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("AUC [95 % interval]")
    for kind, count in report.kinds.items():
        table.add_column(f"{kind} ({count})")
    if report.spearman:
        table.add_column("Spearman, copies (p)")
    for measure, kinds in report.auc.items():
        cells = [_auc_text(kinds.get(kind)) for kind in report.kinds]
        correlation = [_correlation_text(report.spearman[measure])] if report.spearman else []
        table.add_row(Text(measure), *cells, *correlation)
    console.print(table)
    console.print(
        "AUC: probability that a canary's value is the higher one. .5 is no better than chance, 0 as good as 1; "
        "bold: .5 is outside the interval."
    )
    if FIRST_HIT in report.auc:
        console.print(
            f"Noise and mislabelled images are learned last: read it off {FIRST_LEARNED}. {FIRST_HIT.capitalize()} takes the "
            "lucky guesses of a network that has learned nothing yet for learning."
        )
    for remark in report.remarks:
        console.print(Text(remark, style="yellow"))


def _auc_text(found: CanaryAUC | None) -> Text:
    if found is None:
        return Text("-")
    return Text(
        f"{found.auc:.3f} [{found.low:.2f}, {found.high:.2f}]", style="" if found.low <= 0.5 <= found.high else "bold"
    )


def _correlation_text(found: Correlation) -> Text:
    return Text("-" if math.isnan(found.rho) else f"{found.rho:+.2f} ({found.p_value:.2g})")
