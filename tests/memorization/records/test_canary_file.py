"""The file of a run's canaries: columns, round trip, and files that are not one."""

import numpy as np
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
