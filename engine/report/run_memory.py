"""What a finished run remembers of its training images: membership inference and memory by class, as memory.json and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from rlpheads.engine.learner.fresh_refit import FreshRefit
from rlpheads.engine.runs.folder import RunFolder, finite_or_none
from rlpheads.memorization.measures.class_memory import (
    ClassMemory,
    ClassRows,
    RandomLabelHits,
    memory_by_class,
    size_correlation,
)
from rlpheads.memorization.measures.estimates import Estimated
from rlpheads.memorization.measures.membership import MembershipInference, membership_inference
from rlpheads.memorization.measures.rank_correlation import Correlation
from rlpheads.memorization.measures.sample_dynamics import loss_trace_iqr
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import SEEN, read_ledger

LEAST_TRACE = 4
"""Epochs with both a clean and a held-out ledger from which on traces of the loss have quartiles."""
LONG_TAIL = 2
"""How many times the smallest class the largest one must be before memory is compared with the classes' sizes."""
MOST_CLASSES = 20
"""Classes whose table is printed; of more, the file alone has all."""


@dataclass(frozen=True)
class RunMemory:
    """What a run remembers, from its clean and held-out passes at the end.

    Attributes:
        membership: by score: "loss" (a low loss speaks for membership) and "loss trace" (so does one that fell far).
        trace_epochs: epochs of the loss traces; too few where that score is missing.
        class_names: of every class.
        taps: names of the taps.
        classes: memory of every class.
        size: correlation over the classes of their loss excess ("loss_excess") and of their mean excess over the refit
            ("label_excess") with their number of training images; empty where all classes are about as large.
    """

    membership: dict[str, MembershipInference]
    trace_epochs: int
    class_names: tuple[str, ...]
    taps: tuple[int | str, ...]
    classes: tuple[ClassMemory, ...]
    size: dict[str, Correlation]

    def content(self) -> dict[str, Any]:
        """Return everything as memory.json holds it; an interval is {value, low, high}."""
        return {
            "membership": {
                name: {
                    "auc": found.auc._asdict(),
                    "tpr_at_fpr": {str(rate): each._asdict() for rate, each in found.tpr_at.items()},
                }
                for name, found in self.membership.items()
            },
            "trace_epochs": self.trace_epochs,
            "taps": self.taps,
            "classes": [
                {"class": name} | finite_or_none(asdict(each))
                for name, each in zip(self.class_names, self.classes, strict=True)
            ],
            "size_correlation": {name: found._asdict() for name, found in self.size.items()},
        }


def measure_run_memory(
    train: Ledger,
    heldout: Ledger,
    folder: RunFolder,
    class_names: Sequence[str],
    taps: Sequence[int | str],
    num_draws: int,
    refit: FreshRefit | None,
) -> RunMemory:
    """Measure what a run remembers.

    Args:
        train: filled, merged ledger of the last clean pass.
        heldout: that of the last held-out pass.
        folder: the run folder, with the ledgers of the epochs.
        class_names: of every class.
        taps: names of the taps, in the ledgers' order; empty without heads.
        num_draws: the heads' own draws, which come first.
        refit: heads refitted to fresh labels on the features of that clean pass; None where there are none.
    """
    seen_N, members = _seen_rows(train)
    _, others = _seen_rows(heldout)
    membership = {"loss": membership_inference(-members.loss_N, -others.loss_N)}
    traces = _loss_traces(folder)
    if len(traces) >= LEAST_TRACE:
        inside, outside = (loss_trace_iqr(torch.stack(losses)) for losses in zip(*traces, strict=True))
        membership["loss trace"] = membership_inference(inside, outside)
    hits = None
    if taps:
        hit_TMN = train.tensors()["hit"][seen_N][:, :, :num_draws].permute(1, 2, 0).cpu()
        refitted = {} if refit is None else {"refit_rate_TN": refit.hit_rate_TN[:, seen_N.cpu()]}
        hits = RandomLabelHits(hit_TMN, **refitted, refit_draws=0 if refit is None else refit.num_draws)
    classes = memory_by_class(members, others, len(class_names), hits)
    return RunMemory(
        membership=membership,
        trace_epochs=len(traces),
        class_names=tuple(class_names),
        taps=tuple(taps),
        classes=classes,
        size=_size_correlations(classes),
    )


def _seen_rows(ledger: Ledger) -> tuple[Tensor, ClassRows]:
    rows = ledger.tensors()
    seen_N = rows["status"] == SEEN
    return seen_N, ClassRows(rows["target"][seen_N].cpu(), rows["class_loss"][seen_N].cpu())


def _loss_traces(folder: RunFolder) -> list[tuple[Tensor, Tensor]]:
    """Return the losses of the training and the held-out images in each epoch that has both ledgers.

    An image that one of them did not see has no trace, and is left out of all.
    """
    found = []
    for path in sorted(folder.path.glob("ledger/epoch=*/clean.parquet")):
        other = path.with_name("heldout.parquet")
        if other.is_file():
            found.append(tuple(torch.from_numpy(read_ledger(each, heads=False).class_loss) for each in (path, other)))
    whole = [torch.stack(losses).isfinite().all(0) for losses in zip(*found, strict=True)]
    return [(members[whole[0]], others[whole[1]]) for members, others in found]


def _size_correlations(classes: tuple[ClassMemory, ...]) -> dict[str, Correlation]:
    sizes = [each.num_train for each in classes]
    if max(sizes) < LONG_TAIL * min(sizes):
        return {}
    values = {"loss_excess": [each.loss_excess.value for each in classes]}
    if classes[0].excess_T:
        values["label_excess"] = [_mean_excess(each) for each in classes]
    return {name: size_correlation(classes, values_C) for name, values_C in values.items()}


def _mean_excess(found: ClassMemory) -> float:
    return sum(each.value for each in found.excess_T) / len(found.excess_T)


def membership_table(memory: RunMemory) -> Table:
    """Return the table of how well each score tells training images from held-out ones."""
    rates = next(iter(memory.membership.values())).tpr_at
    caption = (
        "AUC .5: nothing tells them apart; found at a rate of false positives: a useless score finds just that share"
    )
    if "loss trace" not in memory.membership:
        caption += (
            f"; loss traces need {LEAST_TRACE} epochs with clean and held-out ledgers, and there are "
            f"{memory.trace_epochs}: eval.every, eval.clean_every and ledger.every say which"
        )
    table = Table(
        title="membership: training images against held-out ones (95 % intervals)",
        title_justify="left",
        caption=caption,
        caption_justify="left",
        padding=(0, 1),
    )
    for name in ("score", "AUC", *(f"found at {rate:.1%} false positives" for rate in rates)):
        table.add_column(name, justify="right" if name != "score" else "left")
    for name, found in memory.membership.items():
        shares = (
            f"{100 * each.value:.1f}% [{100 * each.low:.1f}, {100 * each.high:.1f}]" for each in found.tpr_at.values()
        )
        table.add_row(name, _interval(found.auc), *shares)
    return table


def class_table(memory: RunMemory) -> Table:
    """Return the table of memory by class; random labels at the last tap."""
    with_labels = bool(memory.classes[0].rla_T)
    caption = "intervals hold over all classes together; full file: memory.json"
    columns = ["class", "training images", "loss", "held-out loss − loss", "membership AUC"]
    if with_labels:
        columns += [f"RLA, tap {memory.taps[-1]}", "RLA − refit on fresh labels"]
    table = Table(
        title="memory by class", title_justify="left", caption=caption, caption_justify="left", padding=(0, 1)
    )
    for name in columns:
        table.add_column(name, justify="right")
    for name, found in zip(memory.class_names, memory.classes, strict=True):
        cells = [name, str(found.num_train), *map(_interval, (found.loss, found.loss_excess, found.membership_auc))]
        if with_labels:
            cells += [_interval(found.rla_T[-1]), _interval(found.excess_T[-1])]
        table.add_row(*cells)
    return table


def size_lines(memory: RunMemory) -> Iterator[str]:
    """Yield what the classes' sizes have to do with their memory; nothing where all are of one size, or remembered alike."""
    names = {"loss_excess": "held-out loss − loss", "label_excess": "RLA − refit"}
    for name, found in memory.size.items():
        if found.rho != found.rho:
            continue
        where = "in the small classes" if found.high < 0 else "in the large ones" if found.low > 0 else "in neither end"
        yield (
            f"size of the class and {names[name]}: Spearman {found.rho:+.2f} [{found.low:+.2f}, {found.high:+.2f}]; memory "
            f"sits {where}, as far as {len(memory.classes)} classes tell"
        )


def _interval(found: Estimated) -> str:
    if found.value != found.value:
        return "–"
    if found.low != found.low:
        return f"{found.value:.3f} (no interval)"  # of a single image, whose spread nobody knows
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
