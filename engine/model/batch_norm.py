"""Synchronised batch norm: statistics over the images of all ranks, on any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from timm.layers.norm_act import SyncBatchNormAct
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over all ranks, all of which have it; so its gradient is summed over them, too."""

    @staticmethod
    def forward(_: Any, summand: Tensor) -> Tensor:
        summed = summand.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    @once_differentiable
    def backward(_: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed


def _sum_over_ranks(summand: Tensor) -> Tensor:
    return _SumOverRanks.apply(summand)


class SyncBatchNormCPU(_BatchNorm):
    """torch.nn.SyncBatchNorm for CPUs: torch has it for accelerators only.

    Mean and variance come from two passes (the variance of what is centred), each with an all-reduce that gradients pass
    through. Every rank has as many images.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Take maps of any number of axes."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise (B, C, …) in training by all ranks' statistics, else by the running ones."""
        if not self.training:
            return super().forward(maps)
        axes = [axis for axis in range(maps.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(maps.ndim)]
        count = maps.numel() // maps.shape[1] * dist.get_world_size()
        wide = maps.float()
        mean_C = _sum_over_ranks(wide.sum(axes)) / count
        centred = wide - mean_C.view(shape)
        variance_C = _sum_over_ranks(centred.square().sum(axes)) / count
        self._keep(mean_C.detach(), variance_C.detach() * (count / (count - 1)))
        scaled = centred * torch.rsqrt(variance_C + self.eps).view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(maps.dtype)

    def _keep(self, mean_C: Tensor, variance_C: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C, share)
        self.running_var.lerp_(variance_C, share)


class SyncBatchNormActCPU(SyncBatchNormCPU):
    """The same for timm's batch norm with dropout and activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise, drop and activate (B, C, …)."""
        return self.act(self.drop(super().forward(maps)))


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a module has a layer with running statistics of its batches."""
    return any(name.rpartition(".")[2] == "running_mean" for name, _ in module.named_buffers())


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Let every batch norm in a module use the images of all ranks of the default group, in place.

    The layers get another class and stay the objects that they are: hooks on them, and others' references, go on working.
    """
    plain, activating = (
        (SyncBatchNormCPU, SyncBatchNormActCPU) if device.type == "cpu" else (nn.SyncBatchNorm, SyncBatchNormAct)
    )
    for child in module.modules():
        if isinstance(child, _BatchNorm) and not isinstance(child, (nn.SyncBatchNorm, SyncBatchNormCPU)):
            child.__class__ = activating if isinstance(child, BatchNormAct2d) else plain
            child.process_group = None  # type: ignore[assignment]  # the default group


class RecomputedStatistics:
    """Lets batch norms that are computed again in the backward pass (activation checkpointing) keep no statistics there.

    They would take every batch into their running statistics twice, and another network would be evaluated. What is computed
    outside the model's own forward pass gets copies of the statistics, which are thrown away.
    """

    def __init__(self, model: nn.Module):
        self._is_forward = False
        self._kept: dict[nn.Module, dict[str, Tensor]] = {}
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end, always_call=True)
        for child in model.modules():
            if isinstance(child, _BatchNorm):
                child.register_forward_pre_hook(self._lend_copies)
                child.register_forward_hook(self._take_back, always_call=True)

    def _begin(self, *_: object) -> None:
        self._is_forward = True

    def _end(self, *_: object) -> None:
        self._is_forward = False

    def _lend_copies(self, norm: nn.Module, _: object) -> None:
        if norm.training and not self._is_forward:
            self._kept[norm] = kept = dict(norm.named_buffers(recurse=False))
            for name, buffer in kept.items():
                setattr(norm, name, buffer.clone())

    def _take_back(self, norm: nn.Module, *_: object) -> None:
        for name, buffer in self._kept.pop(norm, {}).items():
            setattr(norm, name, buffer)
