"""Nothing of a run's record is cut, changed or lost unnoticed."""

import json
from pathlib import Path

import pytest

from rlpheads.engine.runs.record_digests import METRICS, FileDigest, RecordDigests, record_problems

LEDGER = "ledger/epoch=0000/running.parquet"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    (tmp_path / METRICS).write_text("one\ntwo\n")
    (tmp_path / LEDGER).parent.mkdir(parents=True)
    (tmp_path / LEDGER).write_bytes(bytes(99))
    return tmp_path


def saved(digests: RecordDigests):
    """Digests as a checkpoint's manifest gives them back."""
    return {name: FileDigest(**digest) for name, digest in json.loads(json.dumps(digests.current())).items()}


def test_what_was_recorded_is_known_however_it_grew(recorded):
    digests = RecordDigests(recorded)
    digests.add_ledger(recorded / LEDGER)
    before = saved(digests)
    with (recorded / METRICS).open("a") as file:
        file.write("three\n")
    after = saved(digests)
    assert set(before) == {METRICS, LEDGER}
    assert not dict(record_problems(recorded, before)), "lines that were written since are no damage"
    assert not dict(record_problems(recorded, after))
    assert saved(RecordDigests(recorded, after)) == after, "a resumed run goes on with the same"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (METRICS, Path.unlink, "metrics.jsonl is missing"),
        (METRICS, lambda path: path.write_text("one\n"), "metrics.jsonl has 4 bytes and had 8"),
        (METRICS, lambda path: path.write_text("one\nsix\n"), "metrics.jsonl was changed"),
        (LEDGER, Path.unlink, f"{LEDGER} is missing"),
        (LEDGER, lambda path: path.write_bytes(bytes(98)), f"{LEDGER} has 98 bytes and had 99"),
        (LEDGER, lambda path: path.write_bytes(bytes(100)), f"{LEDGER} has 100 bytes and had 99"),
        (LEDGER, lambda path: path.write_bytes(bytes(98) + b"1"), f"{LEDGER} was changed"),
    ],
)
def test_damage_of_the_record_is_named(recorded, name, damage, message):
    digests = RecordDigests(recorded)
    digests.add_ledger(recorded / LEDGER)
    known = saved(digests)
    damage(recorded / name)
    assert dict(record_problems(recorded, known)) == {name: message}


def test_a_record_that_was_not_begun_is_not_missing(tmp_path):
    known = saved(RecordDigests(tmp_path))
    assert known[METRICS].bytes == 0
    assert not dict(record_problems(tmp_path, known))
