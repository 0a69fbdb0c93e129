"""Workers that could not hand over their batches are an error of the start, where there are workers."""

import os
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import pytest

from rlpheads.engine.checks.workers import worker_errors


@pytest.fixture
def nowhere(monkeypatch):
    """A machine with a long TMPDIR and little shared memory."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 126)
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_bavail=16, f_frsize=4096))


@pytest.mark.wrong("environment")
def test_both_are_found_before_anything_starts(nowhere, tiny):
    config = replace(tiny, data=replace(tiny.data, workers=1))
    sockets, memory = map(str, worker_errors(config, world_size=1))
    assert sockets.startswith("TMPDIR: got a folder whose path has 131 bytes")
    assert sockets.endswith(", or --data.workers 0")
    assert memory.startswith("/dev/shm: 65,536 bytes are free")
    assert memory.endswith("no worker processes at all: --data.workers 0")


@pytest.mark.parametrize("changes", [{"workers": 0}, {"workers": 1, "loader": "dali"}])
def test_a_start_without_worker_processes_needs_neither(nowhere, tiny, changes):
    assert not list(worker_errors(replace(tiny, data=replace(tiny.data, **changes)), world_size=1))
