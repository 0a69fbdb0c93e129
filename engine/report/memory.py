"""Rademacher estimate of a finished run's heads, tap by tap, and how many samples are memorised beyond chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from torch import Tensor

from rlpheads.memorization.measures.intervals import mcdiarmid_half_width
from rlpheads.memorization.measures.label_measures import rademacher_estimate
from rlpheads.memorization.measures.pooled_draws import HETEROGENEITY_LEVEL, pool_draws
from rlpheads.memorization.measures.sample_scores import memorized_set
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import SEEN


@dataclass(frozen=True)
class TapMemory:
    """What the heads of one tap hold of the clean training images' random labels.

    Attributes:
        block: name of the tap.
        rademacher: R̂_K = (K·accuracy − 1)/(K − 1), averaged over the draws: 0 at chance, 1 where every label is fitted.
        low: lower end of its 95 % interval: Wilson's on the hits of all draws pooled, or Student's t across draws where
            these differ.
        high: upper end.
        mcdiarmid: half-width of McDiarmid's 95 % bound, which an exact supremum over a class of functions would keep; a
            trained head is none, and only below it.
        memorized: how many samples are hit more often than chance, at a false discovery rate of 5 %; or that the draws
            are too few to tell.
        heterogeneity: p-value of the draws' accuracies being equal; 1 for one draw.
    """

    block: int | str
    rademacher: float
    low: float
    high: float
    mcdiarmid: float
    memorized: str
    heterogeneity: float


def measure_memory(
    ledger: Ledger, blocks: Sequence[int | str], num_draws: int, num_labels: int
) -> tuple[TapMemory, ...]:
    """Measure every tap of a filled, merged ledger.

    Args:
        ledger: of the clean pass.
        blocks: name of every tap.
        num_draws: the heads' own draws, which come first.
        num_labels: K.
    """
    rows = ledger.tensors()
    hit_STM = rows["hit"][rows["status"] == SEEN][:, :, :num_draws].cpu()
    return tuple(_of_tap(block, hit_STM[:, tap].T, num_labels) for tap, block in enumerate(blocks))


def _of_tap(block: int | str, hit_MS: Tensor, num_labels: int) -> TapMemory:
    num_draws, num_samples = hit_MS.shape
    pooled = pool_draws(hit_MS.sum(1), num_samples)
    ends = (pooled.accuracy, pooled.interval.low, pooled.interval.high)
    mean, low, high = (float(rademacher_estimate(accuracy, num_labels)) for accuracy in ends)
    bound = mcdiarmid_half_width(num_samples, num_draws, num_labels)
    memorized = memorized_set(hit_MS, num_labels).describe()
    return TapMemory(block, mean, low, high, bound, memorized, pooled.heterogeneity)


def memory_table(memory: Sequence[TapMemory]) -> Table:
    """Return the table of what every tap's heads hold."""
    caption = (
        "The estimate is of the trained heads, hence a lower bound on the supremum over all such heads; McDiarmid: that "
        f"supremum is within {memory[0].mcdiarmid:.4f} of what it is on average over labellings, in 95 % of cases"
    )
    title = "memory of one labelling (clean training images)"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", padding=(0, 1))
    for name in ("tap", "Rademacher estimate", "95 % interval"):
        table.add_column(name, justify="right")
    table.add_column("samples memorised beyond chance")
    for tap in memory:
        differ = f" (draws differ, p = {tap.heterogeneity:.2g}: t)" if tap.heterogeneity < HETEROGENEITY_LEVEL else ""
        interval = f"{tap.low:.4f} to {tap.high:.4f}{differ}"
        table.add_row(str(tap.block), f"{tap.rademacher:.4f}", interval, tap.memorized)
    return table
