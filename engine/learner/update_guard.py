"""Which updates are taken: a loss or gradient that is not finite leaves updates out, decided on the device.

A backbone that is not finite leaves the whole batch out; heads leave their own update out alone, so that the backbone stays
bit-identical with and without them. The ranks share what they found by one all-reduce of a number a part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlpheads.engine.learner.parts import TrainedPart


class Verdict(NamedTuple):
    """What a part's gradients are before its update, the same at every rank.

    Attributes:
        norm: global norm of the gradient before clipping, float32 (), or a bound of it that is finite if and only if it is.
        nonfinite: whether loss or gradient, its own or the backbone's, are not finite and no loss scale explains it, bool ().
    """

    norm: Tensor
    nonfinite: Tensor


def judge(parts: Mapping[str, TrainedPart], losses: Mapping[str, Tensor], world_size: int) -> dict[str, Verdict]:
    """Look at the gradients of every part, unscaled, before its update. Collective over several ranks.

    Args:
        parts: the parts that have an optimizer, by name.
        losses: this rank's share of the loss that trains each, 0-d.
        world_size: number of ranks.
    """
    norms = {name: part.gradient_norm() for name, part in parts.items()}
    spoiled_P = torch.stack([_is_spoiled(part, losses[name], norms[name]).float() for name, part in parts.items()])
    if world_size > 1:
        dist.all_reduce(spoiled_P, dist.ReduceOp.MAX)
    if "backbone" in parts:
        spoiled_P = torch.maximum(spoiled_P, spoiled_P[list(parts).index("backbone")])
    return {name: Verdict(norms[name], spoiled > 0) for name, spoiled in zip(parts, spoiled_P.unbind(), strict=True)}


def _is_spoiled(part: TrainedPart, loss: Tensor, norm: Tensor) -> Tensor:
    """Whether loss or gradient are not finite; an overflow that a smaller loss scale can mend is none."""
    overflows = ~norm.isfinite()
    if part.loss_scale is not None:
        overflows &= part.loss_scale.factor < 1
    return ~loss.detach().isfinite() | overflows


class RunningStatistics:
    """The statistics that batch norm keeps, which a forward pass over spoiled images spoils: taken back with the update.

    Args:
        modules: whose statistics training moves.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        norms = [each for module in modules for each in module.modules() if getattr(each, "track_running_stats", False)]
        self._buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self._before = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def restore_where(self, nonfinite: Tensor) -> None:
        """Put back what they were when this was made, if `nonfinite`, a bool () on the device, is true."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(nonfinite, before, buffer))
