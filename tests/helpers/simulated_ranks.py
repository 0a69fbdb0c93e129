"""Simulated ranks: N of them with real values in one process, by torch's LocalTensorMode, for heads sharded over them.

A simulated rank runs every operation of torch, but no native code of ours: use `impl="reference"`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from rlpheads.memorization.heads.class_shards import ClassShards
from rlpheads.memorization.heads.combined_loss import TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import GatheredLosses, HeadLosses, HeadTerms
from rlpheads.memorization.heads.linear_head import RandomLabelHead
from rlpheads.memorization.heads.rlp_heads import RLPHeads
from rlpheads.memorization.heads.sharded_heads import ShardedRLPHeads

try:
    from torch.distributed._local_tensor import LocalIntNode, LocalTensor, LocalTensorMode
except ImportError as error:
    raise ImportError(
        "torch.distributed._local_tensor has moved: it is private to torch, and simulated ranks are built on torch 2.14's"
    ) from error

WEIGHTS = TermWeights(factor=0.7, joint=0.3)


@contextmanager
def simulated_ranks(world_size: int) -> Iterator[LocalTensorMode]:
    """The context in which tensors have a value for each of `world_size` ranks, and messages pass between them."""
    dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    try:
        with LocalTensorMode(world_size) as mode:
            yield mode
    finally:
        dist.destroy_process_group()


def by_rank(tensor: Tensor) -> list[Tensor]:
    """The value that a tensor has at each rank."""
    assert isinstance(tensor, LocalTensor)
    return [tensor._local_tensors[rank] for rank in sorted(tensor._local_tensors)]


def own_rows(mode: LocalTensorMode, tensor: Tensor, dim: int = 0) -> Tensor:
    """Cut the rows of all ranks, along `dim`: each rank has its own."""
    return mode.rank_map(lambda rank: tensor.chunk(len(mode.ranks), dim)[rank].clone())


def own_ints(values: Iterable[int]) -> Any:
    """An int of each rank: a torch.SymInt, which goes where an int is asked for."""
    return torch.SymInt(LocalIntNode(dict(enumerate(values))))


def required_gradient(parameter: Tensor) -> Tensor:
    """What a backward pass has left, which must have reached the parameter."""
    assert parameter.grad is not None
    return parameter.grad


@dataclass(frozen=True)
class HeadProblem:
    """Heads and the batch of all ranks that they read. Rows are cut evenly; some of them are padding."""

    num_labels: int
    rows_per_rank: int
    dims: tuple[int, ...] = (6, 9, 9)
    num_draws: int = 2
    seed: int = 0
    mixed: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64

    def whole_heads(self) -> RLPHeads:
        """Heads with weights of order 1, so that every row differs."""
        heads = RLPHeads(self.dims, self.num_labels, self.num_draws, seed=self.seed, dtype=self.dtype, **self.options)
        return with_spread(heads)

    def own_part(self, shards: ClassShards) -> ShardedRLPHeads:
        """A rank's part of the same heads."""
        options = {"seed": self.seed, "dtype": self.dtype, **self.options}
        return with_spread(ShardedRLPHeads(self.dims, self.num_labels, self.num_draws, shards=shards, **options))

    def batch(self, world_size: int) -> "GlobalBatch":
        generator = torch.Generator().manual_seed(self.seed + 1)
        num_rows = self.rows_per_rank * world_size
        num_classes = self.num_labels * self.options.get("num_blocks", 1)
        taps = [torch.randn(num_rows, dim, generator=generator, dtype=self.dtype) for dim in self.dims]
        labels_MG, seconds_MG = torch.randint(num_classes, (2, self.num_draws, num_rows), generator=generator)
        weight_G = 0.5 + torch.rand(num_rows, generator=generator) / 2
        valid_G = torch.arange(num_rows) % 5 != 3
        return GlobalBatch(taps, labels_MG, (seconds_MG, weight_G) if self.mixed else None, valid_G)


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of all ranks."""

    taps: list[Tensor]
    labels_MG: Tensor
    pair: tuple[Tensor, Tensor] | None
    valid_G: Tensor


def with_spread(heads: Any) -> Any:
    """Multiply the weights so that logits have a spread of order 1, and give the biases values of their own."""
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.mul_(10)
        for head in (head for draws in heads.heads for head in draws):
            head.bias.copy_(torch.arange(head.start, head.start + len(head.bias)) % 7 / 5)
    return heads


@dataclass(frozen=True)
class HeadResults:
    """Losses of all rows, and every gradient of the combined loss, in the features and in the whole heads' parameters."""

    losses: HeadLosses
    gradients: dict[str, Tensor]
    taps: list[Tensor]


def evaluate_whole(problem: HeadProblem, batch: GlobalBatch, terms: HeadTerms) -> HeadResults:
    """The unsharded heads on the whole batch at one rank."""
    heads, taps = problem.whole_heads(), [tap.clone().requires_grad_() for tap in batch.taps]
    losses = heads(taps, batch.labels_MG, terms, batch.pair)
    num_rows = int(batch.valid_G.sum())
    combine_losses(losses, batch.valid_G, num_rows, 1, weights_of(terms)).total.backward()
    gradients = {name: required_gradient(parameter) for name, parameter in heads.named_parameters()}
    return HeadResults(_detached(losses), gradients, [gradient_of(tap) for tap in taps])


def evaluate_simulated(
    problem: HeadProblem, batch: GlobalBatch, terms: HeadTerms, mode: LocalTensorMode, world_size: int
) -> HeadResults:
    """The sharded heads over simulated ranks, each with its rows; gathered losses must be the same at every rank."""
    heads, own = simulated_heads(problem, mode, world_size), partial(own_rows, mode)
    taps = [own(tap).requires_grad_() for tap in batch.taps]
    pair = None if batch.pair is None else (own(batch.pair[0], 1), own(batch.pair[1]))
    gathered = heads(taps, own(batch.labels_MG, 1), terms, pair, own(batch.valid_G))
    num_rows = int(batch.valid_G.sum())
    terms_of_loss = combine_losses(gathered, own(batch.valid_G), num_rows, world_size, weights_of(terms))
    terms_of_loss.total.backward()
    heads.sum_replicated_gradients()
    replicated = {id(parameter) for parameter in heads.replicated_parameters()}
    of_ranks = {name: by_rank(required_gradient(parameter)) for name, parameter in heads.named_parameters()}
    gradients = {
        name: of_ranks[name][-1] if id(parameter) in replicated else torch.cat(of_ranks[name])
        for name, parameter in heads.named_parameters()
    }
    # DDP averages the backbone's gradients over the ranks, so that each rank's are scaled by their number
    of_taps = [torch.cat(by_rank(gradient_of(tap))) / world_size for tap in taps]
    return HeadResults(_same_at_all_ranks(gathered), gradients, of_taps)


def simulated_heads(problem: HeadProblem, mode: LocalTensorMode, world_size: int) -> ShardedRLPHeads:
    """Heads whose parameters have at each rank the values that the part of that rank has."""
    with mode.disable():
        parts = [problem.own_part(ClassShards(rank, world_size)) for rank in range(world_size)]
    heads = parts[0]
    heads.shards = ClassShards(own_ints(range(world_size)), world_size)
    for modules in zip(*(part.modules() for part in parts), strict=True):
        for key in list(modules[0]._parameters):
            values = {rank: module.get_parameter(key).data for rank, module in enumerate(modules)}
            setattr(modules[0], key, nn.Parameter(LocalTensor(values)))
        if of_ranks := [module for module in modules if isinstance(module, RandomLabelHead)]:
            of_ranks[0].start = own_ints(head.start for head in of_ranks)
    return heads


def weights_of(terms: HeadTerms) -> TermWeights:
    return TermWeights(WEIGHTS.factor if terms.regularizer else 0.0, WEIGHTS.joint if terms.joint else 0.0)


def _detached(losses: HeadLosses) -> HeadLosses:
    return HeadLosses._make(None if each is None else each.detach() for each in losses)


def _same_at_all_ranks(gathered: GatheredLosses) -> HeadLosses:
    parts = [None if each is None else by_rank(each.detach()) for each in gathered.losses]
    assert all(torch.equal(each[0], other) for each in parts if each is not None for other in each)
    return HeadLosses._make(None if each is None else each[0] for each in parts)


def gradient_of(tap: Tensor) -> Tensor:
    return torch.zeros_like(tap) if tap.grad is None else tap.grad
