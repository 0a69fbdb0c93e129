"""Fitting and scoring a probe over streamed blocks of features: L-BFGS on whole passes, and training accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.memorization.probes.feature_blocks import Features, iterate_rows

_SCORES_AT_ONCE = 2**22  # 32 MiB of scores
_GRADIENT_TOLERANCE = 1e-6
_CHANGE_TOLERANCE = 1e-12
_PASSES_AT_ONCE = 20


class ProbeHits(NamedTuple):
    """Share of the rows that each draw's probe hits, (M,), and of the draws that hit each row, (N,): fp64 on the CPU."""

    accuracy_M: Tensor
    hit_rate_N: Tensor


def score_hits(
    features: Features, labels_MN: Tensor, num_labels: int, scores: Callable[[Tensor, int], Tensor]
) -> ProbeHits:
    """Count the rows whose own label has the highest score.

    Args:
        features: features (N, D).
        labels_MN: integers (M, N).
        num_labels: K.
        scores: (rows of features in fp64 (B, D), draw) → scores (B, K).
    """
    num_draws, num_samples = labels_MN.shape
    hits_M = torch.zeros(num_draws, dtype=torch.int64)
    hits_of_rows = []
    num_rows = max(1, _SCORES_AT_ONCE // num_labels)
    with torch.no_grad():
        for block_BD, labels_MB in iterate_rows(features, labels_MN):
            for part_BD, labels_MP in zip(block_BD.split(num_rows), labels_MB.split(num_rows, dim=1), strict=True):
                hits_P = torch.zeros(len(part_BD), dtype=torch.int64, device=part_BD.device)
                counts = []
                for draw in range(num_draws):
                    hit_P = scores(part_BD, draw).argmax(1) == labels_MP[draw]
                    hits_P += hit_P
                    counts.append(hit_P.sum())
                hits_M += torch.stack(counts).cpu()
                hits_of_rows.append(hits_P.cpu())
    return ProbeHits(hits_M.double() / num_samples, torch.cat(hits_of_rows).double() / num_draws)


def minimise_lbfgs(
    parameters: Sequence[Tensor],
    features: Features,
    labels_MN: Tensor,
    loss: Callable[[Tensor, Tensor, int], Tensor],
    max_passes: int,
) -> Iterator[None]:
    """Minimise `loss(rows, labels, draw)`, summed over rows and draws, in place by L-BFGS; yield every few passes.

    The last yield is where the gradient is tiny or the passes are spent.
    """
    num_samples, num_passes = labels_MN.shape[-1], 0

    def evaluate() -> float:
        nonlocal num_passes
        num_passes += 1
        optimizer.zero_grad()
        total = 0.0
        for block_BD, labels_MB in iterate_rows(features, labels_MN):
            for draw, labels_B in enumerate(labels_MB):  # one graph at a time
                share = loss(block_BD, labels_B, draw) / num_samples
                share.backward()
                total += float(share.detach())
        return total

    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=_PASSES_AT_ONCE,
        max_eval=_PASSES_AT_ONCE,
        tolerance_grad=_GRADIENT_TOLERANCE,
        tolerance_change=_CHANGE_TOLERANCE,
        line_search_fn="strong_wolfe",
    )
    while num_passes < max_passes:
        before = num_passes
        optimizer.step(evaluate)
        yield
        if num_passes - before < _PASSES_AT_ONCE:  # converged
            return
