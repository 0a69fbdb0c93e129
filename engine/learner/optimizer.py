"""Optimizers from timm's factory, fused where torch has a fused step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

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


def is_elementwise(optim: OptimConfig) -> bool:
    """Whether ranges of a weight learn what they would in the whole: neither optimizer nor clipping looks at more."""
    return optim.name in ELEMENTWISE and optim.clip_agc is None


_HOOKS_ON_ALL = (torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks)
_ADAM_STATES = ("exp_avg", "exp_avg_sq", "step")
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


class FusedAdamStep:
    """Takes the steps of a fused Adam or AdamW, with what it keeps of every weight looked up once.

    `optimizer.step()` looks through all weights and their states in Python anew, for each of timm's groups, which takes a
    tenth of a small network's step. The numbers are its own, and so are hooks on it and its name in traces.

    Args:
        optimizer: one that `suits`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = optimizer
        self._watched_step = optimizer.profile_hook_step(_step_groups)
        self._found_in: Any = None
        self._begun: list[list[tuple[Tensor, tuple[Tensor, ...]]]] = []
        self._not_begun: list[Tensor] = []

    @staticmethod
    def suits(optimizer: torch.optim.Optimizer) -> bool:
        """Whether this is the very class, on one device and in one type, with nothing that only `step()` does."""
        groups = optimizer.param_groups
        return (
            type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
            and all(group["fused"] and not (group["amsgrad"] or group["maximize"]) for group in groups)
            and len({(each.device, each.dtype) for group in groups for each in group["params"]}) == 1
        )

    def __call__(self, left_out: Tensor | None = None, divisor: Tensor | None = None) -> None:
        """Take a step, or leave it out; see `take_step`."""
        if self._found_in is not self._optimizer.state:  # the first step, or another state was loaded
            self._find_states()
        if left_out is None or [each for each in self._not_begun if each.grad is not None]:
            self._found_in = None
            take_step(self._optimizer, left_out, divisor)  # which begins states
            return
        rows = [[(each, each.grad, *kept) for each, kept in group if each.grad is not None] for group in self._begun]
        step = self._watched_step if _is_watched(self._optimizer) else _step_groups
        step(self._optimizer, rows, left_out, divisor)

    def _find_states(self) -> None:
        state = self._found_in = self._optimizer.state
        groups = [group["params"] for group in self._optimizer.param_groups]
        self._begun = [
            [(each, tuple(state[each][name] for name in _ADAM_STATES)) for each in group if state.get(each)]
            for group in groups
        ]
        self._not_begun = [each for group in groups for each in group if not state.get(each)]


def _is_watched(optimizer: Any) -> bool:
    """Whether hooks on its steps, or a profiler, are to be told of them."""
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks, *_HOOKS_ON_ALL
    return any(hooks) or torch.autograd._profiler_enabled()


@torch.no_grad()
def _step_groups(
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[tuple[Tensor, ...]]],
    left_out: Tensor,
    divisor: Tensor | None,
) -> None:
    """Step weights, given by the optimizer's groups with their gradients and states, by torch's fused kernels."""
    found_inf = left_out.float()
    counted = torch.rsub(found_inf, 1)
    for group, rows in zip(optimizer.param_groups, groups, strict=True):
        if not rows:
            continue
        weights, gradients, averages, squares, steps = zip(*rows, strict=True)
        torch._foreach_add_(steps, [counted] * len(steps))
        beta1, beta2 = group["betas"]
        (torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_)(
            weights,
            gradients,
            averages,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
            found_inf=found_inf,
        )


def stepper_of(optimizer: torch.optim.Optimizer) -> Callable[[Tensor | None, Tensor | None], None]:
    """Return `take_step` for one optimizer, which is to be called as often as there are steps."""
    return FusedAdamStep(optimizer) if FusedAdamStep.suits(optimizer) else partial(take_step, optimizer)


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
