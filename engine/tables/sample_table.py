"""One row for each sample of a run: which image it is, and what the ledgers say of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from rlpheads.engine.runs.sources import CANARIES_FILE, SAMPLES_FILE
from rlpheads.memorization.measures.sample_dynamics import HITS_IN_A_ROW
from rlpheads.memorization.measures.sample_history import (
    FIRST_HIT,
    FIRST_LEARNED,
    SampleHistory,
    gather_history,
    sample_measures,
)
from rlpheads.memorization.records.canary_file import read_canaries
from rlpheads.memorization.records.ledger_file import LedgerTable, read_ledger
from rlpheads.memorization.records.sample_file import SAMPLE_SCHEMA, read_samples

EPOCH_MEASURES = {"first_learned": FIRST_LEARNED, "learned_for_good": "learned for good", "first_hit": FIRST_HIT}
"""Columns that hold epochs, and the measures that they are; null where the epoch never came."""
NUM_HITS_TO_LEARN = HITS_IN_A_ROW


def list_ledgers(folder: Path, phase: str) -> list[Path]:
    """Return the ledger files of a run of one phase, in the order of their epochs."""
    return sorted((folder / "ledger").glob(f"epoch=*/{phase}.parquet"))


def sample_table(folder: Path, phase: str, *, heads: bool = True) -> pa.Table:
    """Return one row for each sample of the split that a phase looks at; `RunTables.samples` says which columns."""
    ledgers = list_ledgers(folder, phase)
    if not ledgers:
        return _named_rows(folder, None, None)
    last = read_ledger(ledgers[-1], heads=False)
    history = gather_history(read_ledger(path, heads=heads) for path in ledgers)
    named = _named_rows(folder, last, history.metadata.split)
    for name, column in _measured_columns(history, last):
        named = named.append_column(name, column)
    return named


def _named_rows(folder: Path, ledger: LedgerTable | None, split: str | None) -> pa.Table:
    """Return which image each row is; what a run folder without samples.parquet does not know is null."""
    if (folder / SAMPLES_FILE).is_file():
        table = read_samples(folder / SAMPLES_FILE).replace_schema_metadata()
        return table if split is None else table.filter(pc.field("split") == split)
    if ledger is None:
        return SAMPLE_SCHEMA.empty_table()
    num_samples = len(ledger.index)
    canary: list[str | None] = [None] * num_samples
    true_class = [None if target < 0 else target for target in ledger.target.tolist()]
    given_class = list(true_class)
    if ledger.metadata.split == "train" and (folder / CANARIES_FILE).is_file():
        planted = read_canaries(folder / CANARIES_FILE)
        for index, kind, known in zip(planted.index, planted.kind, planted.true_class, strict=True):
            canary[index], true_class[index] = str(kind), int(known)
    nothing = [None] * num_samples
    columns = [ledger.index, [ledger.metadata.split] * num_samples, nothing, true_class, nothing, given_class, nothing]
    return pa.table([*columns, canary], schema=SAMPLE_SCHEMA)


def _measured_columns(history: SampleHistory, last: LedgerTable) -> Iterator[tuple[str, pa.Array]]:
    """Yield the columns of what was measured, null for samples that no epoch reached."""
    unseen_N = ~last.seen
    yield "last_class_loss", pa.array(last.class_loss, mask=unseen_N)
    yield "hit", pa.array(last.class_hit, mask=unseen_N)
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
