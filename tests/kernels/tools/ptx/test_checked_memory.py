"""Races, uninitialised reads and asynchronous operations that are not waited for are errors; what is ordered is none."""

import numpy as np
import pytest

from rlpheads.kernels.tools.ptx.checked_memory import CheckedMemory, KernelError

CELLS, ZERO, ONE = np.arange(4)[None], np.array([0]), np.array([1])


def memory(written: bool = True) -> CheckedMemory:
    """64 cells of 32 threads, which thread 0 wrote before the last barrier."""
    made = CheckedMemory("shared memory", 64, np.uint8, 32)
    if written:
        made.write(np.arange(64)[None], ZERO, np.zeros((1, 64), np.uint8))
        made.barrier()
    return made


def test_reading_what_another_wrote_takes_a_barrier() -> None:
    shared = memory()
    shared.write(CELLS, ZERO, np.full((1, 4), 7, np.uint8))
    assert shared.read(CELLS, ZERO).tolist() == [[7] * 4]
    with pytest.raises(KernelError, match="race: reads"):
        shared.read(CELLS, ONE)
    shared.barrier()
    assert shared.read(CELLS, ONE).tolist() == [[7] * 4]


def test_writing_what_another_read_takes_a_barrier() -> None:
    shared = memory()
    shared.read(np.repeat(CELLS, 2, 0), np.array([0, 1]))
    with pytest.raises(KernelError, match="race: writes"):
        shared.write(CELLS, ZERO, np.ones((1, 4), np.uint8))
    shared.barrier()
    shared.write(CELLS, ZERO, np.ones((1, 4), np.uint8))


def test_two_threads_may_write_one_value_only() -> None:
    shared, both = memory(), np.repeat(CELLS, 2, 0)
    shared.write(both, np.array([0, 1]), np.full((2, 4), 9, np.uint8))
    with pytest.raises(KernelError, match="two threads write different values"):
        shared.write(both + 8, np.array([0, 1]), np.array([[1] * 4, [2] * 4], np.uint8))


def test_what_was_never_written_is_not_read() -> None:
    shared = memory(written=False)
    with pytest.raises(KernelError, match="never written"):
        shared.read(CELLS, ZERO)
    with pytest.raises(KernelError, match="never written"):
        shared.begin("mma", CELLS, ZERO, writes=False, proxy=True)


def test_an_asynchronous_write_is_hidden_until_it_is_waited_for() -> None:
    shared = memory()
    shared.fence(np.ones(32, bool))
    flight = shared.begin("copy", CELLS, ZERO, writes=True, proxy=True)
    shared.data[CELLS] = 5
    for thread in (ZERO, ONE):
        with pytest.raises(KernelError, match="not waited for: copy"):
            shared.read(CELLS, thread)
    flight.knows[0] = True
    assert shared.read(CELLS, ZERO).tolist() == [[5] * 4]
    with pytest.raises(KernelError, match="not waited for"):
        shared.read(CELLS, ONE)
    shared.barrier()
    assert shared.read(CELLS, ONE).tolist() == [[5] * 4]


def test_what_is_read_asynchronously_is_not_written() -> None:
    shared = memory()
    shared.fence(np.ones(32, bool))
    shared.begin("mma", CELLS, ZERO, writes=False, proxy=True)
    assert shared.read(CELLS, ONE).tolist() == [[0] * 4]
    with pytest.raises(KernelError, match="not waited for: mma"):
        shared.write(CELLS, ZERO, np.ones((1, 4), np.uint8))
    with pytest.raises(KernelError, match="not waited for: mma"):
        shared.begin("copy", CELLS, ZERO, writes=True, proxy=True)


def test_the_asynchronous_proxy_sees_writes_behind_a_fence() -> None:
    shared = memory()
    with pytest.raises(KernelError, match=r"without a fence.proxy.async"):
        shared.begin("mma", CELLS, ZERO, writes=False, proxy=True)
    shared.fence(np.ones(32, bool))
    shared.begin("mma", CELLS, ZERO, writes=False, proxy=True)


def test_a_fence_covers_what_its_threads_wrote() -> None:
    shared = memory()
    shared.fence(np.ones(32, bool))
    shared.write(CELLS, ONE, np.ones((1, 4), np.uint8))
    shared.fence(np.arange(32) == 0)
    shared.barrier()
    with pytest.raises(KernelError, match=r"without a fence.proxy.async"):
        shared.begin("mma", CELLS, ZERO, writes=False, proxy=True)


def test_operations_of_one_pipe_keep_their_order() -> None:
    tensor = memory()
    tensor.begin("first", CELLS, ZERO, writes=True, proxy=False, pipe="mma")
    tensor.begin("second", CELLS, ZERO, writes=True, proxy=False, pipe="mma")
    with pytest.raises(KernelError, match="not waited for"):
        tensor.begin("store", CELLS, ZERO, writes=True, proxy=False)
