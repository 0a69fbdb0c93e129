"""The ledger: what happened to each training sample in one epoch, written in place by canonical index.

`Ledger` is filled on the device inside the training step, without a host synchronisation. Rows that were not seen are
zero in memory: summing the tensors of several ranks merges them. The file that it becomes is in `ledger_file`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlpheads.memorization.arguments import check_count
from rlpheads.memorization.quantiles import quantiles
from rlpheads.memorization.records.ledger_file import SEEN, SKIPPED, LedgerMetadata, write_ledger

_UNKNOWN = {"predicted": -1, "confidence": math.nan}


class Ledger:
    """Rows of N samples for T taps and M draws, on one device.

    A spare row behind the last takes the padding rows, so that every batch is written whole, whatever its index holds.
    Memory: 25 + 9·T·M bytes a sample.
    """

    LATER_COLUMNS = tuple(_UNKNOWN)
    """Rows that checkpoints of older versions lack; see `forget`."""

    def __init__(
        self, num_samples: int, num_taps: int, num_draws: int, device: torch.device | str | None = None
    ) -> None:
        self.num_samples = num_samples = check_count("num_samples", num_samples)
        self.num_taps = num_taps = check_count("num_taps", num_taps, minimum=0)
        self.num_draws = num_draws = check_count("num_draws", num_draws)

        def rows(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(num_samples + 1, *shape, dtype=dtype, device=device)

        per_head = (num_taps, num_draws)
        self._rows = {  # bools are bytes, which every communication backend can sum
            "status": rows(torch.uint8),
            "count": rows(torch.int32),
            "target": rows(torch.int64),
            "class_loss": rows(torch.float32),
            "class_hit": rows(torch.uint8),
            "predicted": rows(torch.int32),
            "confidence": rows(torch.float32),
            "hit": rows(torch.uint8, *per_head),
            "bits": rows(torch.float32, *per_head),
            "margin": rows(torch.float32, *per_head),
        }

    def record(
        self,
        index_B: Tensor,
        targets_B: Tensor,
        class_loss_B: Tensor,
        class_hit_B: Tensor,
        hit_TMB: Tensor | None = None,
        bits_TMB: Tensor | None = None,
        margin_TMB: Tensor | None = None,
        *,
        predicted_B: Tensor | None = None,
        confidence_B: Tensor | None = None,
        counts_only_B: Tensor | None = None,
        may_have_padding: bool = True,
    ) -> None:
        """Write one micro-batch; safe inside a step: no host synchronisation, nothing depends on a value.

        Args:
            index_B: int64 canonical indices, -1 for padding.
            targets_B: class targets.
            class_loss_B: class loss in nats.
            class_hit_B: bool, whether the class was predicted.
            hit_TMB: bool; with `bits_TMB` and `margin_TMB` as `HeadLosses` holds them. None where there are no heads.
            bits_TMB: bits about the random label.
            margin_TMB: margin of the random label.
            predicted_B: the class that was predicted; None where nobody knows: -1.
            confidence_B: its probability; None: NaN.
            counts_only_B: bool, rows that raise their sample's count and leave its row as it is, such as repeats within a
                batch, one of which alone is recorded, by one rank; None: no row.
            may_have_padding: False where the host knows that no index is -1, and none need be looked for.

        A sample that comes again overwrites its row, and its count goes up.
        """
        slot_B = self._slots(index_B) if may_have_padding else index_B
        self._rows["count"].index_add_(0, slot_B, torch.ones_like(slot_B, dtype=torch.int32))
        if counts_only_B is not None:
            slot_B = torch.where(counts_only_B, self.num_samples, slot_B)
        self._rows["status"].index_fill_(0, slot_B, SEEN)
        self._write(slot_B, "target", targets_B)
        self._write(slot_B, "class_loss", class_loss_B)
        self._write(slot_B, "class_hit", class_hit_B)
        for name, values_B in (("predicted", predicted_B), ("confidence", confidence_B)):
            self._write(slot_B, name, torch.full_like(class_loss_B, _UNKNOWN[name]) if values_B is None else values_B)
        for name, values_TMB in (("hit", hit_TMB), ("bits", bits_TMB), ("margin", margin_TMB)):
            if values_TMB is not None:
                self._write(slot_B, name, values_TMB.permute(2, 0, 1))
            elif self.num_taps:
                raise ValueError(f"this ledger holds {self.num_taps} taps, but {name} is missing")

    @torch.no_grad()
    def skip(self, index_B: Tensor) -> None:
        """Mark samples as skipped unless they have been recorded; -1 is ignored. Safe inside a step."""
        slot_B = self._slots(index_B)
        self._write(slot_B, "status", torch.where(self._rows["status"][slot_B] == SEEN, SEEN, SKIPPED))

    @torch.no_grad()
    def retract(self, index_B: Tensor, is_first_B: Tensor | None = None) -> None:
        """Mark samples as skipped, as if they had never been recorded: their step was not taken. -1 is ignored.

        Of rows that repeat a sample those of `is_first_B`, bool, mark it, so that one rank does; None: all do.
        """
        slot_B = self._slots(index_B)
        for values in self._rows.values():
            values.index_fill_(0, slot_B, 0)
        marked_B = slot_B if is_first_B is None else torch.where(is_first_B, slot_B, self.num_samples)
        self._rows["status"].index_fill_(0, marked_B, SKIPPED)

    def reset(self) -> None:
        """Zero every row, for the next epoch."""
        for values in self._rows.values():
            values.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """Return the rows by name, without the spare one: views, to checkpoint, load into or sum over ranks in place.

        The sum is exact because a sample is recorded by one rank, and is zero on the others.
        """
        return {name: values[: self.num_samples] for name, values in self._rows.items()}

    @torch.no_grad()
    def forget(self, names: Sequence[str]) -> None:
        """Mark predictions or confidences, by the names of their rows, as not known where a sample was recorded."""
        values = self.tensors()
        for name in names:
            values[name].masked_fill_(values["status"] == SEEN, _UNKNOWN[name])

    @property
    def num_seen(self) -> int:
        """Samples recorded so far. Reads the device, like all that follows: not for use inside a step."""
        return int((self.tensors()["status"] == SEEN).sum())

    @property
    def num_skipped(self) -> int:
        """Samples that were reached so far, but left out."""
        return int((self.tensors()["status"] == SKIPPED).sum())

    @property
    def label_accuracy_TM(self) -> Tensor:  # noqa: N802 (shape suffix)
        """Random-label accuracy over the samples seen: float64 (T, M), NaN if there are none."""
        return self._mean("hit")

    @property
    def label_bits_TM(self) -> Tensor:  # noqa: N802 (shape suffix)
        """T = Σ b_i, the total bits about the random labels over the samples seen: float64 (T, M)."""
        return self.tensors()["bits"].sum(0, dtype=torch.float64)

    def label_margins_QTM(self, levels: Sequence[float]) -> Tensor:  # noqa: N802 (shape suffix)
        """Quantiles over the samples seen of the random label's margin: float64 (Q, T, M), NaN if there are none."""
        values = self.tensors()
        seen_N = values["status"] == SEEN
        found_QTM = torch.full((len(levels), self.num_taps, self.num_draws), torch.nan, dtype=torch.float64)
        if bool(seen_N.any()):
            for tap in range(self.num_taps):  # one at a time: sorting takes three times their memory
                found_QTM[:, tap] = quantiles(values["margin"][seen_N, tap].T, levels)
        return found_QTM

    @property
    def class_accuracy(self) -> float:
        """Class accuracy over the samples seen, NaN if there are none."""
        return float(self._mean("class_hit"))

    @property
    def class_loss(self) -> float:
        """Mean class loss in nats over the samples seen, NaN if there are none."""
        return float(self._mean("class_loss"))

    def write_parquet(self, path: str | Path, metadata: LedgerMetadata) -> None:
        """Write all rows to one file, whole or not at all; see `write_ledger`, which also says what it raises."""
        write_ledger(path, self.tensors(), metadata)

    def _slots(self, index_B: Tensor) -> Tensor:
        return torch.where(index_B < 0, self.num_samples, index_B)

    def _write(self, slot_B: Tensor, name: str, values: Tensor) -> None:
        rows = self._rows[name]
        rows.index_copy_(0, slot_B, values.detach().to(rows.dtype))

    def _mean(self, name: str) -> Tensor:
        """Mean over the samples seen; the others are zero."""
        values = self.tensors()
        return values[name].sum(0, dtype=torch.float64) / (values["status"] == SEEN).sum()
