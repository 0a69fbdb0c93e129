"""The cores that a control group leaves, and the threads that each rank gets of them."""

import os

import pytest

from rlpheads.engine.distributed import cores
from rlpheads.engine.distributed.cores import cpu_quota, num_threads, usable_cores


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
