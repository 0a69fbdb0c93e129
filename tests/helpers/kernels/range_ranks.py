"""Heads sharded by class over several ranks, by Triton: values, gradients and launches; for the interpreter's process."""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from kernel_problems import relative_error
from launch_counter import Launches, counted
from ranks_in_turn import ShardsInTurn, run_in_turn
from simulated_ranks import HeadProblem, HeadResults, evaluate_whole, gradient_of, required_gradient, weights_of

from rlpheads.kernels.head_gradient import HeadGradient
from rlpheads.memorization.heads.class_shards import ClassShards
from rlpheads.memorization.heads.combined_loss import TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import HeadLosses, HeadTerms
from rlpheads.memorization.heads.rlp_heads import RLPHeads
from rlpheads.memorization.heads.sharded_heads import ShardedRLPHeads


@dataclass(frozen=True)
class RankCase:
    """Heads of one module, over so many ranks."""

    world_size: int
    problem: HeadProblem
    terms: HeadTerms
    handed_over: bool = False
    """Whether gradients of weights and biases go to a consumer, as a fused update has it, which makes them here."""

    def by_triton(self, shards: ShardsInTurn) -> HeadResults:
        """What a rank finds: losses of all rows, gradients of its own range and of its own rows."""
        batch, heads = self.problem.batch(self.world_size), self.problem.own_part(shards)
        heads.consumer = keep_gradient if self.handed_over else None
        rank, dtype = shards.rank, self.problem.dtype

        def own(tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
            return tensor.chunk(self.world_size, dim)[rank].clone()

        taps = [own(tap).requires_grad_() for tap in batch.taps]
        pair = None if batch.pair is None else (own(batch.pair[0], 1), own(batch.pair[1]).to(dtype))
        gathered = heads(taps, own(batch.labels_MG, 1), replace(self.terms, impl="triton"), pair, own(batch.valid_G))
        num_rows, weights = int(batch.valid_G.sum()), weights_of(self.terms)
        combine_losses(gathered, own(batch.valid_G), num_rows, self.world_size, weights).total.backward()
        heads.sum_replicated_gradients()
        gradients = {name: required_gradient(parameter) for name, parameter in heads.named_parameters()}
        losses = HeadLosses._make(None if each is None else each.detach() for each in gathered.losses)
        return HeadResults(losses, gradients, [gradient_of(tap) / self.world_size for tap in taps])


def keep_gradient(gradient: HeadGradient) -> None:
    """Make the gradients of a head, and leave them where autograd would."""
    for parameter, made in zip(gradient.head[:2], gradient.make(), strict=True):
        parameter.grad = made


def assert_ranks_agree_with_whole_heads(case: RankCase) -> None:
    """Every loss at every rank, every gradient, as whole heads in plain PyTorch have them."""
    whole = evaluate_whole(case.problem, case.problem.batch(case.world_size), case.terms)
    of_ranks = run_in_turn(case.world_size, case.by_triton)
    for found in of_ranks:
        assert torch.equal(found.losses.hit_TMB, whole.losses.hit_TMB)
        for value, expected in zip(found.losses, whole.losses, strict=True):
            assert (value is None) == (expected is None)
            assert expected is None or relative_error(value, expected) <= 1e-5
    for name, expected in whole.gradients.items():
        parts = [found.gradients[name] for found in of_ranks]
        found = torch.cat(parts) if name.startswith("heads.") else parts[-1]
        assert relative_error(found, expected) <= 1e-5, name
    for number, expected in enumerate(whole.taps):
        assert relative_error(torch.cat([found.taps[number] for found in of_ranks]), expected) <= 1e-5, number


def launches_of_a_step(num_heads: int, kind: str | None, sharded: bool, handed_over: bool = False) -> Launches:
    """What a step's heads launch at one rank, messages left out, and updates that are handed over."""
    terms = HeadTerms(kind, tuple(range(num_heads)) if kind else (), impl="triton")
    labels_MB, valid_B = torch.randint(1000, (1, 8)), torch.ones(8, dtype=torch.bool)

    dims = (16,) * num_heads
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        shards = ClassShards(0, 1)
        heads = ShardedRLPHeads(dims, 1000, 1, seed=0, shards=shards) if sharded else RLPHeads(dims, 1000, 1, seed=0)
        heads.consumer = (lambda _: None) if handed_over else None
        taps = [torch.randn(8, 16).bfloat16().requires_grad_() for _ in range(num_heads)]
        with counted() as launches:
            losses = heads(taps, labels_MB, terms)
            combine_losses(losses, valid_B, 8, 1, TermWeights(factor=float(kind is not None))).total.backward()
    finally:
        dist.destroy_process_group()
    return launches
