"""Findings of `rlpheads verify` that are damaged: one error that names the file and the remedy."""

import json

import pytest

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.sources.verification import BadFile, Verification

FOUND = Verification("0" * 64, 3, 3, {1: BadFile("damaged", "a/1.jpg", "cut short")})


def test_findings_are_read_as_they_were_written(tmp_path):
    (tmp_path / "train.json").write_text(FOUND.to_json())
    assert Verification.read(tmp_path / "train.json") == FOUND


@pytest.mark.wrong("file")
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b"\xff",
        b"[1]",
        {"num_checked": "all"},
        {"num_samples": -3},
        {"fingerprint": None},
        {"complaints": [1]},
        {"complaints": {"1": "damaged"}},
        {"complaints": {"3": {"status": "damaged", "name": "a", "reason": "b"}}},
        {"complaints": {"1": {"status": "fine", "name": "a", "reason": "b"}}},
        {"complaints": {"1": {"status": "damaged", "name": 1, "reason": "b"}}},
    ],
)
def test_damaged_findings_are_one_error_that_says_what_to_do(tmp_path, content):
    if isinstance(content, dict):
        content = json.dumps(json.loads(FOUND.to_json()) | content).encode()
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read .*: delete it and run rlpheads verify again") as caught:
        Verification.read(path)
    assert "\n" not in str(caught.value)
