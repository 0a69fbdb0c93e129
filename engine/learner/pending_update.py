"""Gradients of heads that are taken by the optimizer's step where they are made (`heads.update: fused`).

The backward pass leaves a `HeadGradient` of every large head; nothing of it is as large as the head's gradient. From these it
is known whether the gradients are finite, so that whether the step is left out is settled before a weight changes; where
clipping, a loss scale or other ranks need their norm, it is found by a pass of its own, else in that of the update. Then each
head is stepped in turn. AdamW, Adam and SGD do so in tiles where the loss runs in our C++ or by Triton, and the gradient of a
weight exists nowhere; else it is made for one head at a time, and the optimizer's own step takes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlpheads.engine.learner.optimizer import take_step
from rlpheads.kernels.head_gradient import HeadGradient, squared_norm
from rlpheads.kernels.rows.updates import AdamRule, SgdRule, UpdateRule


class PendingUpdate:
    """What the backward pass of a step left for the optimizer; empty between steps."""

    def __init__(self) -> None:
        self._gradients: list[HeadGradient] = []

    def __call__(self, gradient: HeadGradient) -> None:
        """Take a head's gradient, in the backward pass.

        Raises:
            RuntimeError: there is one of this head already.
        """
        if any(other.weight is gradient.weight for other in self._gradients):
            raise RuntimeError(
                "a second backward pass reached a head before its update; heads.update fused takes one a step: use "
                "heads.update separate"
            )
        self._gradients.append(gradient)

    def norm_bounds(self) -> list[Tensor]:
        """Return a bound of the norm of each weight's gradient, (): finite if and only if the gradient is."""
        return [gradient.norm_bound() for gradient in self._gradients]

    def survey(self) -> list[Tensor]:
        """Give the biases their gradients; return the squared norm of each weight's, ()."""
        squared = []
        for gradient in self._gradients:
            bias_K, squared_norm = gradient.survey()
            if gradient.head.bias_K is not None:
                gradient.head.bias_K.grad = bias_K
            squared.append(squared_norm)
        return squared

    def apply(self, optimizer: torch.optim.Optimizer, factor: Tensor | None, left_out: Tensor | None) -> list[Tensor]:
        """Step every weight by its gradient times a factor (), and forget the gradients.

        Args:
            optimizer: the weights' own, with no gradient of anything else pending.
            factor: of clipping and loss scale; None: 1, and there was no survey, so that the biases get their gradients here.
            left_out: whether weights and states stay as they are, bool (); None: they do not.

        Returns:
            The squared norm of each weight's gradient, times the factor.
        """
        gradients, self._gradients = self._gradients, []
        gradients.reverse()
        squared, of_biases = [], []
        while gradients:  # each is dropped, with what it keeps, before the next head's turn
            gradient = gradients.pop()
            gradient = gradient if factor is None else gradient.scaled(factor)
            bias_gradient_K, squared_norm = _step_weight(gradient, optimizer, left_out)
            squared.append(squared_norm)
            of_biases.append((gradient.head.bias_K, bias_gradient_K))
        for bias_K, bias_gradient_K in of_biases if factor is None else ():
            if bias_K is not None:
                bias_K.grad = bias_gradient_K
        return squared


def _step_weight(
    gradient: HeadGradient, optimizer: torch.optim.Optimizer, left_out: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Step the weight by its gradient, or leave it; return the gradient of the bias, and the squared norm of the weight's."""
    weight = gradient.weight
    group = next(group for group in optimizer.param_groups if _holds(group, weight))
    rule = update_rule(optimizer, group)
    if rule is None or not gradient.in_tiles:
        weight.grad, bias_gradient_K = gradient.make()
        assert weight.grad is not None
        squared = squared_norm(weight.grad)
        take_step(optimizer, left_out)
        weight.grad = None
        return bias_gradient_K, squared
    never = torch.zeros((), dtype=torch.bool, device=weight.device)
    return gradient.update(rule, optimizer_states(optimizer, weight), never if left_out is None else left_out)


def update_rule(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> UpdateRule | None:
    """Return how the optimizer steps the parameters of a group, if that can be done in tiles."""
    if group.get("maximize") or group.get("amsgrad") or group.get("dampening"):
        return None
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        decoupled = bool(group["decoupled_weight_decay"])
        beta1, beta2 = group["betas"]
        return AdamRule(float(group["lr"]), group["weight_decay"], beta1, beta2, group["eps"], decoupled)
    if type(optimizer) is torch.optim.SGD:
        return SgdRule(float(group["lr"]), group["weight_decay"], group["momentum"], group["nesterov"])
    return None


def optimizer_states(optimizer: torch.optim.Optimizer, parameter: Tensor) -> list[Tensor]:
    """Return the tensors that torch's optimizer keeps of a parameter, begun as it begins them."""
    state = optimizer.state[parameter]
    if isinstance(optimizer, torch.optim.SGD):  # `prepare_to_skip` began them
        return [state["momentum_buffer"]] if "momentum_buffer" in state else []
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros_like(parameter)
    return [state["exp_avg"], state["exp_avg_sq"], state["step"]]


def _holds(group: dict[str, Any], parameter: Tensor) -> bool:
    return any(each is parameter for each in group["params"])
