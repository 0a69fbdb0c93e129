"""Optimizers from timm's factory, fused where torch has a fused step."""

from __future__ import annotations

import inspect

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info
from torch import nn

from rlpheads.engine.config.learning import OptimConfig
from rlpheads.engine.config.schema import Config

FUSED = frozenset({"adam", "adamw", "sgd", "momentum"})
"""timm names whose torch optimizer has a fused step: one pass over memory and no temporary the size of a parameter. Only
these leave a step with fp16's overflows out by themselves; for others the host reads whether there were any."""


def build_optimizer(module: nn.Module, optim: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """Build the optimizer of a module's parameters, with timm's groups: no weight decay for biases and norms."""
    return create_optimizer_v2(
        # the network itself, which tells timm its layers, and what of it must not decay (position embeddings, class token)
        getattr(module, "backbone", module),
        opt=optim.name,
        lr=lr,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        layer_decay=optim.layer_decay,
        **({"fused": True} if optim.name in FUSED else {}),
        **_betas(optim),
    )


def host_sync_warnings(config: Config) -> tuple[str, ...]:
    """Say which optimizers make the host wait for the device in every step."""
    parts = [] if config.model.frozen else [("optim", config.optim)]
    parts += [] if config.heads.taps == "none" else [("heads.optim", config.heads.optim)]
    return tuple(
        f"{key}.name {optim.name} cannot leave a step out by itself: with precision fp16 the host waits in every step for "
        f"whether gradients overflowed. {', '.join(sorted(FUSED))} can"
        for key, optim in parts
        if config.precision == "fp16" and optim.name not in FUSED
    )


def scaled_lr(optim: OptimConfig, batch_size: int) -> float:
    """Return the peak learning rate for a global batch."""
    if optim.base_batch_size is None:
        return optim.lr
    ratio = batch_size / optim.base_batch_size
    return optim.lr * (ratio if optim.batch_scaling == "linear" else ratio**0.5)


def _betas(optim: OptimConfig) -> dict[str, tuple[float, ...]]:
    """Return the optimizer's own betas with the momentum as the first, where it has betas."""
    info = get_optimizer_info(optim.name)
    if not info.has_betas:
        return {}
    if isinstance(info.opt_class, str):  # imported only when it is built (apex)
        return {"betas": (optim.momentum, 0.999)}
    default = inspect.signature(info.opt_class).parameters["betas"].default
    return {"betas": (optim.momentum, *default[1:])}
