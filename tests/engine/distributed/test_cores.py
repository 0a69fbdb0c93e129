"""The cores that a control group leaves, and the threads that each rank gets of them."""

import os

import pytest

from rlpheads.engine.distributed import cores
from rlpheads.engine.distributed.cores import cpu_quota, num_threads, thread_advice, usable_cores


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "400000 100000\n"}, 4.0),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        ({}, None),
    ],
)
def test_quota_of_either_version_of_control_groups(tmp_path, files, expected):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(
    ("affinity", "quota", "ranks", "usable", "threads"),
    [
        (64, None, 1, 64, None),  # torch's own choice
        (64, None, 8, 64, 8),
        (64, 4.0, 1, 4, 4),  # docker run --cpus 4
        (64, 4.0, 2, 4, 2),
        (2, 8.0, 1, 2, None),
        (64, 0.5, 4, 1, 1),
    ],
)
def test_ranks_share_the_cores_that_there_are(monkeypatch, affinity, quota, ranks, usable, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(affinity)))
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert usable_cores() == usable
    assert num_threads(ranks) == threads


@pytest.mark.parametrize(
    ("threads", "ranks", "quota", "is_set", "expected"),
    [
        (1, 2, None, True, "threads: each rank computes with 1 of 64 cores that this job may use, for 2 rank(s) here"),
        (32, 2, None, True, None),
        (32, 1, None, False, None),  # torch's own choice: a thread a physical core
        (64, 1, 4.0, False, "threads: each rank computes with 64 of 4 cores that this job may use, for 1 rank(s) here"),
        (4, 1, 4.0, True, None),
        (1, 8, 4.0, True, None),  # more ranks than cores: less than one thread there is not
    ],
)
def test_threads_that_do_not_suit_the_cores_are_told(monkeypatch, threads, ranks, quota, is_set, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(64)))
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    said = thread_advice(threads, ranks, is_set=is_set)
    assert (said or "").startswith(expected or "")
    assert (said is None) == (expected is None)
