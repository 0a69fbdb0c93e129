"""Optimizers from timm's factory, fused where torch has a fused step."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info
from torch import Tensor, nn

from rlpheads.engine.config.learning import OptimConfig
from rlpheads.engine.config.schema import Config

FUSED = frozenset({"adam", "adamw", "sgd", "momentum"})
"""timm names whose torch optimizer has a fused step: one pass over memory and no temporary the size of a parameter. Only
these leave a step with fp16's overflows out by themselves; for others the host reads whether there were any."""

ELEMENTWISE = frozenset(
    {"adam", "adamw", "nadam", "nadamw", "adamax", "radam", "adabelief", "lion"}
    | {"sgd", "momentum", "rmsprop", "rmsproptf", "adadelta", "adagrad"}
)
"""timm names of optimizers that change every number of a weight by its own gradient and state alone, so that a range of the
classes learns what it would in the whole head. Others look at a whole matrix or its norm (muon, lamb, lars, adafactor, …)."""


OWN_KEYS = ("lr", "weight_decay", "momentum")
"""Arguments of optimizers that have keys of their own."""
_ENGINES = ("fused", "foreach", "capturable", "differentiable", "maximize")
"""Arguments that say how a step is computed, which the engine chooses, or turn it around."""


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
        **_betas(optim)
        | {name: tuple(value) if isinstance(value, list) else value for name, value in optim.args.items()},
    )


def argument_defaults(name: str) -> dict[str, Any]:
    """Return the arguments of a timm optimizer that `optim.args` may give, and what they are otherwise."""
    info = get_optimizer_info(name)
    if isinstance(info.opt_class, str):  # imported only when it is built (apex)
        return {}
    defaults = {each.name: each.default for each in inspect.signature(info.opt_class).parameters.values()}
    withheld = {"params", *OWN_KEYS, *_ENGINES}
    return {each: value for each, value in (defaults | (info.defaults or {})).items() if each not in withheld}


def prepare_to_skip(optimizer: torch.optim.Optimizer) -> None:
    """Let SGD's momentum begin at zero, where its first step would otherwise make it.

    torch's fused SGD makes it uninitialised, to be filled by the first step; a first step that is left out never does.
    From zero the first step is the same.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's own step can be left out by a number on the device; see `FUSED`."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def take_step(optimizer: torch.optim.Optimizer, left_out: Tensor | None = None, divisor: Tensor | None = None) -> None:
    """Take an optimizer step, or leave it out; without a fused step the host waits to know.

    Args:
        optimizer: takes the step.
        left_out: whether nothing changes, bool () on the device; None: the step is taken.
        divisor: what gradients are divided by in the step's own pass, float32 (); for fused steps alone.
    """
    if not can_skip_on_device(optimizer):
        if left_out is None or not left_out:
            optimizer.step()
        return
    fused: Any = optimizer
    fused.grad_scale, fused.found_inf = divisor, None if left_out is None else left_out.float()
    optimizer.step()
    del fused.grad_scale, fused.found_inf


def host_sync_warnings(config: Config) -> tuple[str, ...]:
    """Say which optimizers make the host wait for the device in every step."""
    parts = [] if config.model.frozen else [("optim", config.optim)]
    parts += [] if config.heads.taps == "none" else [("heads.optim", config.heads.optim)]
    scaled, response = config.precision == "fp16", config.stability.on_nonfinite
    needed = scaled or response != "stop"
    reason, trouble = ("precision fp16", "overflowed") if scaled else (f"on_nonfinite {response}", "are finite")
    return tuple(
        f"{key}.name {optim.name} cannot leave a step out by itself: with {reason} the host waits in every step for "
        f"whether gradients {trouble}. {', '.join(sorted(FUSED))} can"
        for key, optim in parts
        if needed and optim.name not in FUSED
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
    return (
        {} if default is None else {"betas": (optim.momentum, *default[1:])}
    )  # Adafactor has none unless they are given
