"""Freed memory stays with the process, unless the user has chosen malloc's settings."""

import platform
import subprocess
import sys

import pytest

from rlpheads.engine.distributed.host_memory import keeps_freed_memory

FAULTS = """
import resource
from rlpheads.engine.distributed import host_memory
host_memory.keep_freed_memory()
def fill():
    block = bytearray(40_000_000)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(env: dict[str, str]) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_a_large_block_is_used_again_without_page_faults():
    assert faults({}) < 100
    assert faults({"MALLOC_ARENA_MAX": "8"}) > 40_000  # 5 blocks of 9,766 pages: as glibc comes


def test_it_says_when_the_user_has_chosen(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keeps_freed_memory()
