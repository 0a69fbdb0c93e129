"""One row for each sample of a run: which image it is, and what the ledgers say of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.engine.runs.sources import CANARIES_FILE, SAMPLES_FILE
from rlpheads.memorization.measures.sample_history import (
    FIRST_HIT,
    FIRST_LEARNED,
    SampleHistory,
    gather_history,
    sample_measures,
)
from rlpheads.memorization.records.canary_file import read_canaries
from rlpheads.memorization.records.ledger_file import LedgerTable, read_ledger
from rlpheads.memorization.records.sample_file import SAMPLE_SCHEMA, SampleFileError, read_samples

EPOCH_MEASURES = {"first_learned": FIRST_LEARNED, "learned_for_good": "learned for good", "first_hit": FIRST_HIT}
"""Columns that hold epochs, and the measures that they are; null where the epoch never came."""


def list_ledgers(folder: Path, phase: str) -> list[Path]:
    """Return the ledger files of a run of one phase, in the order of their epochs."""
    return sorted((folder / "ledger").glob(f"epoch=*/{phase}.parquet"))


def sample_table(folder: Path, phase: str, *, heads: bool = True) -> pa.Table:
    """Return one row for each sample of the split that a phase looks at; `RunTables.samples` says which columns."""
    ledgers = list_ledgers(folder, phase)
    if not ledgers:
        return _all_named(folder)
    last = read_ledger(ledgers[-1], heads=False)
    history = gather_history(read_ledger(path, heads=heads) for path in ledgers)
    named = named_rows(folder, last)
    for name, column in (*class_columns(named, last), *_measured_columns(history)):
        named = named.append_column(name, column)
    return named


def _all_named(folder: Path) -> pa.Table:
    path = folder / SAMPLES_FILE
    return read_samples(path).replace_schema_metadata() if path.is_file() else SAMPLE_SCHEMA.empty_table()


def named_rows(folder: Path, ledger: LedgerTable) -> pa.Table:
    """Return which image each row of a ledger is; what a run folder without samples.parquet does not know is null.

    Raises:
        SampleFileError: the file is damaged, or of other samples.
    """
    split, num_samples = ledger.metadata.split, len(ledger.index)
    if (folder / SAMPLES_FILE).is_file():
        table = _all_named(folder).filter(pc.field("split") == split)
        if table.num_rows != num_samples:
            raise SampleFileError(
                f"{folder / SAMPLES_FILE} names {table.num_rows} samples of {split}, and its ledger has {num_samples}"
            )
        return table
    canary: list[str | None] = [None] * num_samples
    true_class = [None if target < 0 else target for target in ledger.target.tolist()]
    given_class = list(true_class)
    if split == "train" and (folder / CANARIES_FILE).is_file():
        planted = read_canaries(folder / CANARIES_FILE)
        for index, kind, known in zip(planted.index, planted.kind, planted.true_class, strict=True):
            canary[index], true_class[index] = str(kind), int(known)
    nothing = [None] * num_samples
    columns = [ledger.index, [split] * num_samples, nothing, true_class, nothing, given_class, nothing, canary]
    return pa.table(columns, schema=SAMPLE_SCHEMA)


def class_columns(named: pa.Table, last: LedgerTable) -> Iterator[tuple[str, pa.Array]]:
    """Yield what a ledger says of the class of each sample, null for samples that it did not reach."""
    unseen_N = ~last.seen
    yield "predicted", pa.array(last.predicted, mask=unseen_N | (last.predicted < 0))
    yield "predicted_name", _class_names(named, last.predicted)
    yield "confidence", pa.array(last.confidence, mask=unseen_N | np.isnan(last.confidence))
    yield "last_class_loss", pa.array(last.class_loss, mask=unseen_N)
    yield "hit", pa.array(last.class_hit, mask=unseen_N)


def _class_names(named: pa.Table, class_N: NDArray[np.int32]) -> pa.Array:
    """Return the names of classes as far as the samples know them; -1 has none."""
    known: dict[int, str | None] = {-1: None}
    for number, name in (("class", "class_name"), ("given_class", "given_name")):
        pairs = named.select([number, name]).group_by([number, name]).aggregate([])
        known |= dict(zip(pairs.column(number).to_pylist(), pairs.column(name).to_pylist(), strict=True))
    numbers = range(
        -1, max([-1, *(number for number in known if number is not None), *np.unique(class_N).tolist()]) + 1
    )
    return pa.array([known.get(number) for number in numbers], pa.string()).take(pa.array(class_N.astype(np.int64) + 1))


def _measured_columns(history: SampleHistory) -> Iterator[tuple[str, pa.Array]]:
    """Yield the measures over the ledgers' epochs, null for samples that no epoch reached."""
    columns = {measure: name for name, measure in EPOCH_MEASURES.items()}
    for measure, values_N in sample_measures(history).items():
        if measure in columns:
            yield columns[measure], _epochs_of(values_N, history.epochs)
        else:
            yield _column_name(measure), _floats_of(values_N)


def _epochs_of(position_N: Tensor, epochs: Sequence[int]) -> pa.Array:
    """Return the epochs of the ledgers at some positions; one past the last is never."""
    values = np.nan_to_num(position_N.numpy(), nan=len(epochs)).astype(np.int64)
    return pa.array(np.array([*epochs, -1])[values], mask=values == len(epochs))


def _floats_of(values_N: Tensor) -> pa.Array:
    values = values_N.numpy()
    return pa.array(values.astype(np.float32), mask=np.isnan(values))


def _column_name(measure: str) -> str:
    """Return the column of a measure: "label bits, block 3" is label_bits/3."""
    name, _, tap = measure.partition(", block ")
    return name.replace(" ", "_").replace("-", "_") + (f"/{tap}" if tap else "")
