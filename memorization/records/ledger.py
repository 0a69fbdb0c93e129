"""The ledger: what happened to each training sample in one epoch, written in place by canonical index.

`Ledger` is filled on the device inside the training step, without a host synchronisation, and becomes one Parquet file
for each epoch and phase. Rows that were not seen are zero in memory: summing the tensors of several ranks merges them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.memorization.arguments import check_count
from rlpheads.memorization.atomic_file import atomic_file
from rlpheads.memorization.quantiles import quantiles

UNSEEN, SEEN, SKIPPED = 0, 1, 2
"""Values of `status`: not reached, recorded, and reached but left out."""


class LedgerError(ValueError):
    """A ledger file that cannot be read, or does not fit what is asked of it."""


@dataclass(frozen=True)
class LedgerMetadata:
    """What a ledger file says about itself.

    Attributes:
        fingerprint: of the dataset's manifest.
        seed: seed of the run, hence of the random labels.
        num_labels: K.
        taps: names of the taps (block numbers, or text), in the order of the lists.
        num_draws: M, audit draws included.
        epoch: number of the epoch that the rows tell of.
        phase: "running", "clean" or "heldout".
        split: name of the split the random labels were drawn for.
        step: optimizer steps taken when the file was written.
        num_audit_draws: how many of the M draws, the last ones, were learned by audit heads alone. Files of version 1 do
            not say: 0, as if all were the heads' own.
    """

    fingerprint: str
    seed: int
    num_labels: int
    taps: tuple[int | str, ...]
    num_draws: int
    epoch: int
    phase: str
    split: str
    step: int
    num_audit_draws: int = 0

    @property
    def draws(self) -> dict[str, slice]:
        """The draws of the heads' own ("own") and those of the audit heads ("audit"), without groups that are empty."""
        num_own = self.num_draws - self.num_audit_draws
        groups = {"own": slice(0, num_own), "audit": slice(num_own, self.num_draws)}
        return {name: group for name, group in groups.items() if group.start < group.stop}


class Ledger:
    """Rows of N samples for T taps and M draws, on one device.

    A spare row behind the last takes the padding rows, so that every batch is written whole, whatever its index holds.
    Memory: 17 + 9·T·M bytes a sample.
    """

    def __init__(
        self, num_samples: int, num_taps: int, num_draws: int, device: torch.device | str | None = None
    ) -> None:
        check_count("num_samples", num_samples)
        check_count("num_taps", num_taps, least=0)
        check_count("num_draws", num_draws)
        self.num_samples = num_samples
        self.num_taps = num_taps
        self.num_draws = num_draws

        def rows(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(num_samples + 1, *shape, dtype=dtype, device=device)

        per_head = (num_taps, num_draws)
        self._rows = {  # bools are bytes, which every communication backend can sum
            "status": rows(torch.uint8),
            "count": rows(torch.int32),
            "target": rows(torch.int64),
            "class_loss": rows(torch.float32),
            "class_hit": rows(torch.uint8),
            "hit": rows(torch.uint8, *per_head),
            "bits": rows(torch.float32, *per_head),
            "margin": rows(torch.float32, *per_head),
        }

    @torch.no_grad()
    def record(
        self,
        index_B: Tensor,
        targets_B: Tensor,
        class_loss_B: Tensor,
        class_hit_B: Tensor,
        hit_TMB: Tensor | None = None,
        bits_TMB: Tensor | None = None,
        margin_TMB: Tensor | None = None,
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

        A sample that comes again overwrites its row, and its count goes up.
        """
        slot_B = self._slots(index_B)
        self._rows["count"].index_add_(0, slot_B, torch.ones_like(slot_B, dtype=torch.int32))
        self._write(slot_B, "status", torch.full_like(slot_B, SEEN))
        self._write(slot_B, "target", targets_B)
        self._write(slot_B, "class_loss", class_loss_B)
        self._write(slot_B, "class_hit", class_hit_B)
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

    def reset(self) -> None:
        """Forget every row, for the next epoch."""
        for values in self._rows.values():
            values.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """Return the rows by name, without the spare one: views, to checkpoint, load into or sum over ranks in place.

        The sum is exact because a sample is recorded by one rank, and is zero on the others.
        """
        return {name: values[: self.num_samples] for name, values in self._rows.items()}

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
        """Write all rows to one file, whole or not at all.

        Columns: index, status, count, target, class_loss, class_hit, and tap-major lists of T·M: hit, bits, margin. In
        rows that were not seen the target is -1, the floats are NaN and the hits False.

        Raises:
            LedgerError: `metadata` tells of other taps or draws than the ledger has.
        """
        if not 0 <= metadata.num_audit_draws <= metadata.num_draws:
            raise LedgerError(f"metadata of {metadata.num_audit_draws} audit draws among {metadata.num_draws} draws")
        if (len(metadata.taps), metadata.num_draws) != (self.num_taps, self.num_draws):
            raise LedgerError(
                f"metadata of {len(metadata.taps)} taps and {metadata.num_draws} draws for a ledger of {self.num_taps} "
                f"taps and {self.num_draws} draws"
            )
        group = max(1, _LIST_ELEMENTS_PER_GROUP // max(1, self.num_taps * self.num_draws))
        with (
            atomic_file(path) as temporary,
            pq.ParquetWriter(temporary, _schema(metadata), **_WRITER_OPTIONS) as writer,
        ):
            for first in range(0, self.num_samples, group):
                writer.write_table(_to_arrow(self._host_rows(first, first + group), writer.schema))

    def _slots(self, index_B: Tensor) -> Tensor:
        return torch.where(index_B < 0, self.num_samples, index_B)

    def _write(self, slot_B: Tensor, name: str, values: Tensor) -> None:
        rows = self._rows[name]
        rows.index_copy_(0, slot_B, values.to(rows.dtype))

    def _host_rows(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """Rows first to last as the file holds them, in the file's dtypes; (rows, T, M) for the lists."""
        rows: dict[str, NDArray[Any]] = {
            name: values[first:last].cpu().numpy().astype(_DTYPES[name]) for name, values in self.tensors().items()
        }
        unseen = rows["status"] != SEEN
        for name, blank in (("target", -1), ("class_loss", np.nan), ("bits", np.nan), ("margin", np.nan)):
            rows[name][unseen] = blank
        return {"index": np.arange(first, first + len(unseen)), **rows}

    def _mean(self, name: str) -> Tensor:
        """Mean over the samples seen; the others are zero."""
        values = self.tensors()
        return values[name].sum(0, dtype=torch.float64) / (values["status"] == SEEN).sum()


@dataclass(frozen=True)
class LedgerTable:
    """A ledger file in memory: NumPy arrays over N samples, in canonical order."""

    metadata: LedgerMetadata
    index: NDArray[np.int64]
    status: NDArray[np.uint8]
    count: NDArray[np.int32]
    target: NDArray[np.int64]
    class_loss: NDArray[np.float32]
    class_hit: NDArray[np.bool_]
    hit: NDArray[np.bool_]
    """(T, M, N), as are bits and margin: strided views, the shape that `measures.label_measures` takes."""
    bits: NDArray[np.float32]
    margin: NDArray[np.float32]

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Rows that hold a measurement."""
        return self.status == SEEN


def read_ledger(path: str | Path) -> LedgerTable:
    """Read a ledger file.

    Raises:
        FileNotFoundError: there is no such file.
        LedgerError: the file is truncated or damaged, is no ledger, or is of a version this code does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no ledger file {path}")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = _read_metadata(path, file.schema_arrow)
            if not file.schema_arrow.equals(_schema(metadata)):
                raise LedgerError(f"{path} has other columns than a ledger: {', '.join(file.schema_arrow.names)}")
            return LedgerTable(metadata, **_read_columns(file, len(metadata.taps), metadata.num_draws))
    except (pa.ArrowException, OSError) as error:
        raise LedgerError(
            f"{path} is no readable Parquet file (truncated, damaged, or of another kind): {error}"
        ) from error


_VERSION = 2
_READABLE_VERSIONS = (1, 2)  # version 1 has no num_audit_draws
_METADATA_KEY = b"rlpheads.ledger"
_LIST_ELEMENTS_PER_GROUP = 2**21  # a row group costs about 20 MB of memory while it is written or read
_LISTS = ("hit", "bits", "margin")
_DTYPES = {
    "index": np.int64,
    "status": np.uint8,
    "count": np.int32,
    "target": np.int64,
    "class_loss": np.float32,
    "class_hit": np.bool_,
    "hit": np.bool_,
    "bits": np.float32,
    "margin": np.float32,
}
_WRITER_OPTIONS = {
    "compression": "zstd",
    "write_page_checksum": True,
    "use_dictionary": ["status", "count", "target"],
    "use_byte_stream_split": ["class_loss", "bits.list.element", "margin.list.element"],
}


def _schema(metadata: LedgerMetadata) -> pa.Schema:
    types = {name: pa.from_numpy_dtype(dtype) for name, dtype in _DTYPES.items()}
    fields = [pa.field(name, pa.list_(kind) if name in _LISTS else kind) for name, kind in types.items()]
    text = json.dumps({"version": _VERSION, **asdict(metadata)})
    return pa.schema(fields, metadata={_METADATA_KEY: text.encode()})  # equals() compares the fields alone


def _to_arrow(rows: dict[str, NDArray[Any]], schema: pa.Schema) -> pa.Table:
    num_rows = len(rows["index"])
    columns = []
    for name in schema.names:
        values = pa.array(rows[name].reshape(-1))
        if name in _LISTS:
            offsets = np.arange(num_rows + 1, dtype=np.int32) * (len(values) // num_rows)
            values = pa.ListArray.from_arrays(pa.array(offsets), values)
        columns.append(values)
    return pa.Table.from_arrays(columns, schema=schema)


def _read_metadata(path: Path, schema: pa.Schema) -> LedgerMetadata:
    text = (schema.metadata or {}).get(_METADATA_KEY)
    if text is None:
        raise LedgerError(f"{path} is a Parquet file, but not a ledger: it has no {_METADATA_KEY.decode()!r} metadata")
    values = json.loads(text)
    version = values.pop("version", None)
    if version not in _READABLE_VERSIONS:
        raise LedgerError(f"{path} is a ledger of version {version}, and this code reads versions up to {_VERSION}")
    return LedgerMetadata(**{**values, "taps": tuple(values["taps"])})


def _read_columns(file: pq.ParquetFile, num_taps: int, num_draws: int) -> dict[str, NDArray[Any]]:
    """All row groups, into arrays of their final size."""
    num_rows = file.metadata.num_rows
    shapes = {name: (num_rows, num_taps, num_draws) if name in _LISTS else (num_rows,) for name in _DTYPES}
    arrays = {name: np.empty(shapes[name], dtype) for name, dtype in _DTYPES.items()}
    first = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        for name, array in arrays.items():
            column = table.column(name).combine_chunks()
            values = column.flatten() if name in _LISTS else column
            rows = array[first : first + table.num_rows]
            rows[...] = values.to_numpy(zero_copy_only=False).reshape(rows.shape)
        first += table.num_rows
    return {name: np.moveaxis(array, 0, -1) for name, array in arrays.items()}
