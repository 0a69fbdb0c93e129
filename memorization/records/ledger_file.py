"""The ledger's Parquet file: its columns and metadata, how it is written and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.memorization.atomic_file import atomic_file
from rlpheads.memorization.json_reading import DamagedJsonError, Kind, check_kinds, parse_mapping

UNSEEN, SEEN, SKIPPED = 0, 1, 2
"""Values of `status`: not reached, recorded, and reached but left out."""


class LedgerError(ValueError):
    """A ledger file that cannot be read, or does not fit what is asked of it."""


BALANCES = ("iid", "balanced", "per_class")
"""How random labels are distributed."""


@dataclass(frozen=True)
class LabelSource:
    """Where random labels come from: `rlpheads.memorization.records.ledger_labels.ledger_labels` computes them again.

    Attributes:
        seed: what `label_table` was given.
        balance: "iid", "balanced", or "per_class" (K labels for each class).
    """

    seed: int
    balance: str


@dataclass(frozen=True)
class LedgerMetadata:
    """Metadata of a ledger file: which run, epoch and phase it is of, and what its lists mean.

    Attributes:
        fingerprint: of the dataset's manifest.
        seed: seed of the run.
        num_labels: K.
        taps: names of the taps (block numbers, or text), in the order of the lists.
        num_draws: M, audit draws included.
        epoch: epoch that the rows describe.
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
    labels: LabelSource | None = None

    @property
    def draws(self) -> dict[str, slice]:
        """The draws of the heads' own ("own") and those of the audit heads ("audit"), without groups that are empty."""
        num_own = self.num_draws - self.num_audit_draws
        groups = {"own": slice(0, num_own), "audit": slice(num_own, self.num_draws)}
        return {name: group for name, group in groups.items() if group.start < group.stop}


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
    predicted: NDArray[np.int32]
    """Class that was predicted; -1 where that is not known, as in files of versions 1 and 2."""
    confidence: NDArray[np.float32]
    """Its probability, the greatest of the softmax; NaN where that is not known."""
    hit: NDArray[np.bool_]
    """(T, M, N), as are bits and margin: strided views, the shape that `measures.label_measures` takes."""
    bits: NDArray[np.float32]
    margin: NDArray[np.float32]

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Rows that hold a measurement."""
        return self.status == SEEN


def write_ledger(path: str | Path, tensors: Mapping[str, Tensor], metadata: LedgerMetadata) -> None:
    """Write the rows of a ledger to one Parquet file, whole or not at all.

    Columns: index, status, count, target, class_loss, class_hit, predicted, confidence, and tap-major lists of T·M: hit, bits,
    margin. In rows that were not seen target and predicted class are -1, the floats are NaN and the hits False.

    Args:
        path: the file; missing folders are made, an older file is replaced.
        tensors: as `Ledger.tensors` returns them, N rows each.
        metadata: of the run, epoch and phase; stored in the file.

    Raises:
        LedgerError: `metadata` has other numbers of taps or draws than the rows.
    """
    num_samples, num_taps, num_draws = tensors["hit"].shape
    if not 0 <= metadata.num_audit_draws <= metadata.num_draws:
        raise LedgerError(f"metadata of {metadata.num_audit_draws} audit draws among {metadata.num_draws} draws")
    if (len(metadata.taps), metadata.num_draws) != (num_taps, num_draws):
        raise LedgerError(
            f"metadata of {len(metadata.taps)} taps and {metadata.num_draws} draws for a ledger of {num_taps} "
            f"taps and {num_draws} draws"
        )
    group = max(1, _LIST_ELEMENTS_PER_GROUP // max(1, num_taps * num_draws))
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, _schema(metadata), **_WRITER_OPTIONS) as writer,
    ):
        for first in range(0, num_samples, group):
            writer.write_table(_to_arrow(_host_rows(tensors, first, first + group), writer.schema))


def read_ledger(path: str | Path, *, heads: bool = True) -> LedgerTable:
    """Read a ledger file.

    Args:
        path: the file.
        heads: read what it says of the random labels too; False: as if it were of no taps, in a fraction of the time.

    Raises:
        FileNotFoundError: there is no such file.
        LedgerError: the file is truncated or damaged, is no ledger, or is of a version this code does not know. No memory is
            taken for more than its columns hold.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata, version = _read_metadata(path, file.schema_arrow)
        if not file.schema_arrow.equals(_schema(metadata, version)):
            raise LedgerError(f"{path} has other columns than a ledger: {', '.join(file.schema_arrow.names)}")
        columns = _read_columns(path, file, metadata, _columns_of(version, heads=heads))
    for name in _columns_of(_VERSION, heads=False):
        columns.setdefault(name, np.full(len(columns["index"]), _BLANKS.get(name, 0), _DTYPES[name]))
    if not heads:
        metadata = replace(metadata, taps=())
        nothing = (0, metadata.num_draws, len(columns["index"]))
        columns |= {name: np.empty(nothing, _DTYPES[name]) for name in _LISTS}
    return LedgerTable(metadata, **columns)


def read_ledger_metadata(path: str | Path) -> LedgerMetadata:
    """Read what a ledger file is of; none of its rows. Raises what `read_ledger` raises."""
    with _opened(Path(path)) as file:
        return _read_metadata(Path(path), file.schema_arrow)[0]


def read_hit_counts(path: str | Path) -> tuple[LedgerMetadata, int, NDArray[np.int64]]:
    """Count the hits of every tap and draw over the samples seen, row group by row group: a bit a sample, tap and draw is read.

    Returns:
        What the file is of, the number of samples seen, and the hits, int64 (T, M).

    Raises:
        FileNotFoundError, LedgerError: see `read_ledger`.
    """
    metadata = read_ledger_metadata(path)
    num_seen, hits_TM = 0, np.zeros((len(metadata.taps), metadata.num_draws), dtype=np.int64)
    for seen_S, hits_STM in _hit_groups(Path(path)):
        num_seen += int(seen_S.sum())
        hits_TM += np.count_nonzero(hits_STM[seen_S], axis=0)
    return metadata, num_seen, hits_TM


def read_sample_hits(path: str | Path, index_S: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the hits of some samples at every tap and draw, bool (S, T, M); all False for samples that were not seen.

    Raises:
        FileNotFoundError, LedgerError: see `read_ledger`.
    """
    metadata, first = read_ledger_metadata(path), 0
    found_STM = np.zeros((len(index_S), len(metadata.taps), metadata.num_draws), dtype=np.bool_)
    for seen_S, hits_STM in _hit_groups(Path(path)):
        inside = (index_S >= first) & (index_S < first + len(seen_S))
        found_STM[inside] = hits_STM[index_S[inside] - first]
        first += len(seen_S)
    return found_STM


def _hit_groups(path: Path) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield, for each group of rows, which were seen, (S,), and their hits, (S, T, M)."""
    with _opened(path) as file:
        metadata, _ = _read_metadata(path, file.schema_arrow)
        shape = (len(metadata.taps), metadata.num_draws)
        _check_claims(path, file.metadata, math.prod(shape))
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, ["status", "hit"])
            hits = _column_values(path, "hit", table, math.prod(shape)).reshape(table.num_rows, *shape)
            yield _column_values(path, "status", table, 1) == SEEN, hits


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a ledger file; whatever Arrow finds wrong with it is a LedgerError."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no ledger file {path}")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        raise LedgerError(
            f"{path} is no readable Parquet file (truncated, damaged, or of another kind): {' '.join(str(error).split())}"
        ) from error


_VERSION = 3
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
    "predicted": np.int32,
    "confidence": np.float32,
    "hit": np.bool_,
    "bits": np.float32,
    "margin": np.float32,
}
_SINCE = {"predicted": 3, "confidence": 3}
"""Versions from which on a column is there."""
_BLANKS = {"target": -1, "predicted": -1} | dict.fromkeys(("class_loss", "confidence", "bits", "margin"), np.nan)
"""What rows hold that were not seen, and columns that are not there."""
_WRITER_OPTIONS = {
    "compression": "zstd",
    "write_page_checksum": True,
    "use_dictionary": ["status", "count", "target", "predicted"],
    "use_byte_stream_split": ["class_loss", "confidence", "bits.list.element", "margin.list.element"],
}


def _columns_of(version: int, *, heads: bool = True) -> list[str]:
    """Names of the columns of a version, with or without those of the heads."""
    return [name for name in _DTYPES if _SINCE.get(name, 1) <= version and (heads or name not in _LISTS)]


def _schema(metadata: LedgerMetadata, version: int = _VERSION) -> pa.Schema:
    types = {name: pa.from_numpy_dtype(_DTYPES[name]) for name in _columns_of(version)}
    fields = [pa.field(name, pa.list_(kind) if name in _LISTS else kind) for name, kind in types.items()]
    text = json.dumps(
        {"version": version, **asdict(metadata), "labels": asdict(metadata.labels) if metadata.labels else {}}
    )
    return pa.schema(fields, metadata={_METADATA_KEY: text.encode()})  # equals() compares the fields alone


def _host_rows(tensors: Mapping[str, Tensor], first: int, last: int) -> dict[str, NDArray[Any]]:
    """Rows first to last as the file holds them, in the file's dtypes; (rows, T, M) for the lists."""
    rows: dict[str, NDArray[Any]] = {
        name: values[first:last].cpu().numpy().astype(_DTYPES[name]) for name, values in tensors.items()
    }
    unseen = rows["status"] != SEEN
    for name, blank in _BLANKS.items():
        rows[name][unseen] = blank
    return {"index": np.arange(first, first + len(unseen)), **rows}


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


_METADATA: dict[str, Kind] = {
    "fingerprint": "text",
    "seed": "count",
    "num_labels": "count",
    "taps": "list",
    "num_draws": "count",
    "epoch": "count",
    "phase": "text",
    "split": "text",
    "step": "count",
}
_AUDIT_DRAWS: dict[str, Kind] = {"num_audit_draws": "count"}
_LATER_METADATA: dict[int, dict[str, Kind]] = {1: {}, 2: _AUDIT_DRAWS, 3: _AUDIT_DRAWS | {"labels": "mapping"}}
"""What a version has besides."""


def _read_metadata(path: Path, schema: pa.Schema) -> tuple[LedgerMetadata, int]:
    """Return what the file is of, and its version."""
    text = (schema.metadata or {}).get(_METADATA_KEY)
    if text is None:
        raise LedgerError(f"{path} is a Parquet file, but not a ledger: it has no {_METADATA_KEY.decode()!r} metadata")
    try:
        values = parse_mapping(text, {"version": "count"})
        version = values["version"]
        if version not in _LATER_METADATA:
            raise LedgerError(f"{path} is a ledger of version {version}, and this code reads versions up to {_VERSION}")
        kinds = _METADATA | _LATER_METADATA[version]
        check_kinds(values, kinds)
        labels = _read_label_source(values.get("labels"))
    except DamagedJsonError as error:
        raise LedgerError(f"{path} is damaged: of its metadata, {error}") from error
    known = {name: values[name] for name in kinds}
    metadata = LedgerMetadata(**known | {"taps": tuple(known["taps"]), "labels": labels})
    if not all(type(tap) in (int, str) for tap in metadata.taps) or metadata.num_audit_draws > metadata.num_draws:
        raise LedgerError(f"{path} is damaged: its metadata have other taps than numbers and names, or too few draws")
    return metadata, version


def _read_label_source(found: Mapping[str, Any] | None) -> LabelSource | None:
    if not found:
        return None
    check_kinds(found, {"seed": "count", "balance": "text"})
    if found["balance"] not in BALANCES:
        raise DamagedJsonError(f"the labels' balance is {found['balance']!r}, and can be {', '.join(BALANCES)}")
    return LabelSource(found["seed"], found["balance"])


def _read_columns(
    path: Path, file: pq.ParquetFile, metadata: LedgerMetadata, names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Some columns of all row groups, into arrays of their final size, once the file is known to hold what its metadata claim.

    Raises:
        LedgerError: it does not, a value is missing, or rows are not in canonical order.
    """
    num_rows, per_row = file.metadata.num_rows, (len(metadata.taps), metadata.num_draws)
    _check_claims(path, file.metadata, math.prod(per_row))
    shapes = {name: (num_rows, *per_row) if name in _LISTS else (num_rows,) for name in names}
    arrays = {name: np.empty(shapes[name], _DTYPES[name]) for name in names}
    first = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, list(names))
        for name, array in arrays.items():
            rows = array[first : first + table.num_rows]
            rows[...] = _column_values(path, name, table, math.prod(per_row)).reshape(rows.shape)
        first += table.num_rows
    if not np.array_equal(arrays["index"], np.arange(num_rows)):
        raise LedgerError(f"{path} is damaged: its rows are not those of samples 0 to {num_rows - 1} in order")
    return {name: np.moveaxis(array, 0, -1) for name, array in arrays.items()}


def _check_claims(path: Path, found: pq.FileMetaData, elements_per_row: int) -> None:
    """Compare the lengths of the columns with what the metadata claim, before memory is taken for them."""
    groups = [found.row_group(number) for number in range(found.num_row_groups)]
    per_row = {  # an empty list counts, as 1
        name: max(1, elements_per_row) if name in _LISTS else 1 for name in found.schema.to_arrow_schema().names
    }
    for group in groups:
        lengths = {
            column.path_in_schema.split(".")[0]: column.num_values
            for column in map(group.column, range(group.num_columns))
        }
        if lengths != {name: group.num_rows * each for name, each in per_row.items()}:
            raise LedgerError(f"{path} is damaged: its columns are not as long as its metadata claim")
    if sum(group.num_rows for group in groups) != found.num_rows:
        raise LedgerError(f"{path} is damaged: it has other rows than its metadata claim")


def _column_values(path: Path, name: str, table: pa.Table, elements_per_row: int) -> NDArray[Any]:
    column = table.column(name).combine_chunks()
    values = column
    if name in _LISTS:
        lengths = pc.list_value_length(column)
        if column.null_count or not pc.all(pc.equal(lengths, elements_per_row)).as_py():
            raise LedgerError(f"{path} is damaged: a row has not {elements_per_row} values in {name}")
        values = column.flatten()
    if values.null_count:
        raise LedgerError(f"{path} is damaged: {values.null_count} values of {name} are missing")
    return values.to_numpy(zero_copy_only=False)
