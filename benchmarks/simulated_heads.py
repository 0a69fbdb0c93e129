"""Heads sharded over ranks that are simulated in one process, beside the same heads held whole; and steps of their optimizer.

The simulation (torch's LocalTensorMode) holds the memory of all ranks, so what a rank holds is counted, not measured. It sees
the operators of heads whose logits are written out, C++ and all, and nothing of the tiles, which whole heads are taken in here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from simulated_ranks import (
    GlobalBatch,
    HeadProblem,
    by_rank,
    own_rows,
    required_gradient,
    simulated_heads,
    simulated_ranks,
)

from rlpheads.kernels.loss_results import RandomLabelLosses
from rlpheads.kernels.random_label_loss import random_label_loss
from rlpheads.memorization.heads.combined_loss import combine_losses
from rlpheads.memorization.heads.head_losses import HeadLosses, HeadTerms, losses_by_tap

NUM_STEPS = 3


def measure_simulated(case: dict[str, Any]) -> dict[str, Any]:
    """Numbers that each rank holds, errors of the first step's values and gradients beside whole heads, and losses.

    Returns:
        held: numbers in each rank's weights, gradients and optimizer states, fewest and most.
        errors: largest error relative to the largest value of its kind, by kind; hits that differ.
        losses: of each step.
    """
    ranks = case["ranks"]
    rows = {"rows_per_rank": case["num_rows"] // ranks, "dims": tuple(case["dims"]), "num_draws": 1}
    problem = HeadProblem(case["num_labels"], dtype=torch.float32, **rows)
    batch = problem.batch(ranks)
    losses, gradients = _whole(problem, batch)
    with simulated_ranks(ranks) as mode:
        heads = simulated_heads(problem, mode, ranks)
        parameters = dict(heads.named_parameters())
        with mode.disable():  # an optimizer of each rank, over what it holds
            of_ranks = {name: [nn.Parameter(part) for part in by_rank(each.data)] for name, each in parameters.items()}
            optimizer = torch.optim.AdamW(
                [part for parts in of_ranks.values() for part in parts], lr=3e-3, foreach=True
            )
        means, errors = [], {}
        for step in range(NUM_STEPS):
            gathered = heads(
                [own_rows(mode, tap) for tap in batch.taps],
                own_rows(mode, batch.labels_MG, 1),
                HeadTerms(impl="batched"),
                valid_B=own_rows(mode, batch.valid_G),
            )
            loss = combine_losses(gathered, None, int(batch.valid_G.sum()), ranks).total
            loss.backward()
            with mode.disable():
                means.append(float(by_rank(loss.detach())[0]))
                for name, parts in of_ranks.items():
                    for part, gradient in zip(parts, by_rank(required_gradient(parameters[name])), strict=True):
                        part.grad = gradient
                if step == 0:
                    own = HeadLosses._make(
                        None if each is None else by_rank(each.detach())[0] for each in gathered.losses
                    )
                    errors = _errors(own, losses, of_ranks, gradients)
                    gradients.clear()  # as large as the heads
                optimizer.step()
                held = [_numbers_held([parts[rank] for parts in of_ranks.values()], optimizer) for rank in range(ranks)]
                optimizer.zero_grad()
            heads.zero_grad()
    return {"held": [min(held), max(held)], "errors": errors, "losses": means}


def _whole(problem: HeadProblem, batch: GlobalBatch) -> tuple[HeadLosses, dict[str, Tensor]]:
    """Losses and gradients of heads held whole: one after another, in tiles, so that they share their buffers."""
    heads, losses = problem.whole_heads(), []
    num_rows = int(batch.valid_G.sum())
    for head, features_GD in zip(heads.heads_at(range(len(problem.dims))), batch.taps, strict=True):
        inputs_GD = heads.head_inputs(features_GD)
        loss = random_label_loss(inputs_GD, head.weight, batch.labels_MG[0], bias_K=head.bias)
        (torch.where(batch.valid_G, loss.cross_entropy_B, 0).sum() / num_rows).backward()
        losses.append(loss._replace(cross_entropy_B=loss.cross_entropy_B.detach()))
    gradients = {name: each.grad for name, each in heads.named_parameters() if each.grad is not None}
    return losses_by_tap(RandomLabelLosses.stacked(losses), 1), gradients


def _errors(
    found: HeadLosses, expected: HeadLosses, of_ranks: dict[str, list[nn.Parameter]], gradients: dict[str, Tensor]
) -> dict[str, float]:
    """Largest errors of losses and of gradients, relative to the largest value of each; how many hits differ."""

    def error(value: Tensor, truth: Tensor) -> float:
        return float((value - truth).abs().max() / truth.abs().max())

    values = [(one, other) for one, other in zip(found, expected, strict=True) if one is not None and other is not None]
    of_parts = []
    for name, parts in of_ranks.items():
        split = gradients[name].split([len(part) for part in parts])
        scale = gradients[name].abs().max()
        of_parts += [
            float((part.grad - truth).abs().max() / scale)
            for part, truth in zip(parts, split, strict=True)
            if part.grad is not None and len(part)
        ]
    return {
        "values": max(error(one, other) for one, other in values if one.dtype != torch.bool),
        "gradients": max(of_parts),
        "hits that differ": float((found.hit_TMB != expected.hit_TMB).sum()),
    }


def _numbers_held(parts: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Numbers in weights, gradients and states of one rank."""
    states = [each for part in parts for each in optimizer.state[part].values() if each.dim()]
    gradients = [part.grad for part in parts if part.grad is not None]
    return sum(each.numel() for each in (*parts, *gradients, *states))
