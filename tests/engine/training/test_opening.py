"""The first lines of a run."""

import pytest
import torch

from rlpheads.engine.distributed import cores
from rlpheads.engine.training.opening import opening_lines


@pytest.mark.long
def test_threads_are_told_once_where_they_do_not_suit_the_cores(build, tiny, monkeypatch):
    training = build(tiny)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for available, expected in ((8, 1), (torch.get_num_threads(), 0)):
        monkeypatch.setattr(cores, "usable_cores", lambda available=available: available)
        lines = list(opening_lines(training, fresh=True))
        assert sum(line.startswith("threads: ") for line in lines) == expected
