"""What a training that fails says in one line."""

import pytest

from rlpheads.engine.training.failure import memory_failure


@pytest.mark.wrong("environment")
@pytest.mark.parametrize(
    "before", ["", "Caught RuntimeError in DataLoader worker process 0.\nTraceback ...\nRuntimeError: "]
)
def test_shared_memory_that_is_full_is_one_line(before):
    words = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    assert memory_failure(RuntimeError(before + words)) == (
        f"no shared memory for the loader: {words}; give /dev/shm more room (docker run --shm-size 8g), or load without "
        "processes: --data.workers 0"
    )
