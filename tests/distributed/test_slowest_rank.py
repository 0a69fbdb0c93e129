"""The rank that the others wait for is named in each window: the one whose images or whose forward pass come late."""

import time
from functools import partial

import pytest
from real_runs import Runner

from rlpheads.engine.model.tapped_model import TappedModel
from rlpheads.loaders.adapters.torch_loader import TorchLoader

pytestmark = [pytest.mark.distributed, pytest.mark.long]

DELAY = 0.5
FLAGS = ["--epochs", "1", "--max_steps", "6", "--log_every", "3", "--batch_size", "32", "--data.workers", "0"]


def slow_forward(slow: int, rank: int) -> None:
    """Have a rank sleep in each forward pass of training."""
    if rank == slow:
        whole = TappedModel.forward

        def forward(self: TappedModel, *inputs: object, **named: object) -> object:
            if self.training:
                time.sleep(DELAY)
            return whole(self, *inputs, **named)

        TappedModel.forward = forward


def slow_images(slow: int, rank: int) -> None:
    """Have a rank sleep for each batch."""
    if rank == slow:
        whole = TorchLoader.__iter__

        def late(self: TorchLoader) -> object:
            for batch in whole(self):
                time.sleep(DELAY)
                yield batch

        TorchLoader.__iter__ = late


@pytest.mark.parametrize(("delay", "slow"), [(slow_forward, 1), (slow_images, 0)])
def test_the_rank_that_the_others_wait_for_is_named(runner: Runner, delay, slow):
    name = delay.__name__
    done = runner.join(runner.fork(name, *FLAGS, ranks=2, prepare=partial(delay, slow)), name)
    assert done.code == 0, done.output
    _, last = done.rows("step")  # in the first window all ranks have their first steps, which take as long as they like
    assert last["slowest_rank"] == slow
    assert last["slowest_rank_seconds"] >= DELAY
    waited = last["slowest_rank_data_wait"]
    assert waited >= DELAY if delay is slow_images else waited < last["slowest_rank_seconds"] - DELAY + 1e-6
    assert f"slowest rank {slow}: " in done.output
