"""Ranks that are threads of one process and run in turn: from one message to the next, each alone.

So they may run what is not made for threads, such as Triton's interpreter, and what does not know of simulated tensors.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlpheads.memorization.heads.class_shards import ClassShards

Result = TypeVar("Result")


class Turns:
    """Whose turn it is, and what the ranks have sent so far."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._turn = 0
        self._condition = threading.Condition()
        self._sent: list[list[Tensor]] = [[] for _ in range(world_size)]
        self._failure: BaseException | None = None

    def exchange(self, rank: int, tensor: Tensor) -> list[Tensor]:
        """Send a tensor, let the others run, and return what all have sent in their messages of this number."""
        number = len(self._sent[rank])
        self._sent[rank].append(tensor.clone())
        self._pass_on(rank)
        self._wait(rank)
        return [sent[number] for sent in self._sent]

    def run(self, rank: int, function: Callable[[], Result], results: list[Any]) -> None:
        """What the thread of a rank does."""
        try:
            self._wait(rank)
            results[rank] = function()
            self._pass_on(rank)
        except BaseException as error:
            with self._condition:
                self._failure = self._failure or error
                self._condition.notify_all()

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _pass_on(self, rank: int) -> None:
        with self._condition:
            self._turn = (rank + 1) % self._world_size
            self._condition.notify_all()

    def _wait(self, rank: int) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._turn == rank or self._failure is not None)
            self.raise_failure()


@dataclass(frozen=True)
class ShardsInTurn(ClassShards):
    """Class ranges of ranks that run in turn."""

    turns: Turns | None = None

    def gather_blocks(self, block: Tensor) -> Tensor:
        return torch.stack(self._exchange(block))

    def sum_own_rows(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        packed_GX = torch.cat(list(tensors), 1)
        own_BX = sum(self._exchange(packed_GX)).chunk(self.world_size)[self.rank]  # type: ignore[union-attr]
        return list(own_BX.split([tensor.shape[1] for tensor in tensors], 1))

    def sum_over_ranks(self, tensor: Tensor) -> None:
        tensor.copy_(sum(self._exchange(tensor)))

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        assert self.turns is not None
        return self.turns.exchange(self.rank, tensor)


def run_in_turn(world_size: int, function: Callable[[ShardsInTurn], Result]) -> list[Result]:
    """Call the function as each rank; return what it returned."""
    turns, results = Turns(world_size), [None] * world_size

    def be(rank: int) -> None:
        turns.run(rank, lambda: function(ShardsInTurn(rank, world_size, turns=turns)), results)

    threads = [threading.Thread(target=be, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    turns.raise_failure()
    return results  # type: ignore[return-value]
