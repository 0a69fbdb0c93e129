"""The file of a run's canaries: columns, round trip, and files that are not one."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlpheads.memorization.records.canary_file import Canaries, CanaryError, read_canaries, write_canaries

CANARIES = Canaries(
    "f" * 64,
    np.array([3, 7, 90]),
    np.array(["noisy", "near_duplicate", "near_duplicate"]),
    np.array([3, 7, 7]),
    np.zeros(3, dtype=np.int64),
)


def test_round_trip(tmp_path):
    write_canaries(tmp_path / "run" / "canaries.parquet", CANARIES)
    read = read_canaries(tmp_path / "run" / "canaries.parquet")
    assert read.fingerprint == CANARIES.fingerprint
    assert read.kinds == {"noisy": 1, "near_duplicate": 2}
    for name in ("index", "kind", "original", "true_class"):
        np.testing.assert_array_equal(getattr(read, name), getattr(CANARIES, name))
    assert pq.read_table(tmp_path / "run" / "canaries.parquet").column_names == [
        "index",
        "kind",
        "original",
        "true_class",
    ]


def test_damaged_and_other_files_are_refused(tmp_path):
    path = tmp_path / "canaries.parquet"
    with pytest.raises(FileNotFoundError, match="no file of canaries"):
        read_canaries(path)
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(CanaryError, match="no readable Parquet file"):
        read_canaries(path)
    write_canaries(path, CANARIES)
    pq.write_table(pq.read_table(path).drop_columns("kind"), path)
    with pytest.raises(CanaryError, match="of version 1"):
        read_canaries(path)


@pytest.mark.wrong("ledger")
@pytest.mark.parametrize(
    "text",
    [
        b"[1]",
        b"{",
        b"\xff",
        b"[" * 200_000,
        b'{"version": 1}',
        b'{"version": 1, "fingerprint": 3}',
        b'{"version": "1"}',
    ],
)
def test_crafted_metadata_are_a_canary_error(tmp_path, text):
    path = tmp_path / "canaries.parquet"
    write_canaries(path, CANARIES)
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"rlpheads.canaries": text}), path)
    with pytest.raises(CanaryError, match=r"no file of canaries of version 1|no readable Parquet file"):
        read_canaries(path)


@pytest.mark.wrong("ledger")
def test_rows_without_a_value_or_out_of_order_are_refused(tmp_path):
    path = tmp_path / "canaries.parquet"
    write_canaries(path, CANARIES)
    table = pq.read_table(path)
    for values, reason in (
        ([3, None, 90], "rows without a value"),
        ([90, 7, 3], "not in order"),
        ([-1, 7, 90], "not in order"),
    ):
        pq.write_table(table.set_column(0, table.schema.field(0), pa.array(values, pa.int64())), path)
        with pytest.raises(CanaryError, match=reason):
            read_canaries(path)
