"""Which updates are taken: a loss or gradient that is not finite leaves updates out, decided on the device.

A backbone that is not finite leaves the whole batch out; heads leave their own update out alone, so that the backbone stays
bit-identical with and without them. The ranks share what they found by one all-reduce of a few numbers: whether a part is not
finite at some rank and, of heads that are sharded, what their norm and their overflows are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlpheads.engine.learner.parts import TrainedPart, is_nonfinite


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
        losses: this rank's share of the loss that trains each, 0-d, without a graph.
        world_size: number of ranks.
    """
    to_sum: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}
    spoiled: dict[str, Tensor] = {}
    for name, part in parts.items():
        spoiled[name] = is_nonfinite(losses[name])
        numbers = part.to_sum()
        if numbers is None:
            norms[name] = part.gradient_norm()
            spoiled[name] = spoiled[name] | _overflows(part, norms[name])
        else:  # looked at behind the message, alike at every rank
            to_sum[name] = numbers
    if world_size > 1 or to_sum:
        spoiled, sums = _exchange(spoiled, to_sum)
        for name, summed in sums.items():
            norms[name] = parts[name].norm_from(summed)
            spoiled[name] = spoiled[name] | _overflows(parts[name], norms[name])
    if "backbone" in parts:
        of_backbone = spoiled["backbone"]
        spoiled = {name: each if each is of_backbone else each | of_backbone for name, each in spoiled.items()}
    return {name: Verdict(norms[name], spoiled[name]) for name in parts}


def _exchange(
    spoiled: Mapping[str, Tensor], to_sum: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return whether each part is spoiled at some rank, and sums over the ranks. One message."""
    flags_P = torch.stack([each.float() for each in spoiled.values()])
    packed = torch.cat([flags_P, *to_sum.values()])
    dist.all_reduce(packed)
    spoiled_P, *sums = packed.split([len(spoiled), *(len(numbers) for numbers in to_sum.values())])
    return dict(zip(spoiled, (spoiled_P > 0).unbind(), strict=True)), dict(zip(to_sum, sums, strict=True))


def _overflows(part: TrainedPart, norm: Tensor) -> Tensor:
    """Whether a gradient is not finite; an overflow that a smaller loss scale can mend is none."""
    overflows = is_nonfinite(norm)
    return overflows if part.loss_scale is None else overflows & (part.loss_scale.factor < 1)


class RunningStatistics:
    """The statistics that batch norm keeps, which a forward pass over spoiled images spoils: taken back with the update.

    Args:
        modules: whose statistics training moves.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        norms = [each for module in modules for each in module.modules() if getattr(each, "track_running_stats", False)]
        self._buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self._before: list[Tensor] = []

    def keep(self) -> None:
        """Copy them as they are before a step."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def restore_where(self, nonfinite: Tensor) -> None:
        """Put back what was kept last, if `nonfinite`, a bool () on the device, is true."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(nonfinite, before, buffer))
