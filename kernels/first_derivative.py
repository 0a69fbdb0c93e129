"""Gradients that cannot be differentiated again: a backward decorated here raises in words of ours, not in autograd's."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


class _FirstDerivativeOnly(torch.autograd.Function):
    """Identity whose derivative raises: it wraps gradients that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # noqa: ARG004
        raise RuntimeError(
            "random_label_loss was differentiated twice (create_graph=True); its tiled and fused implementations have first "
            "derivatives only: pass impl='reference', which holds all B×K logits"
        )


def refuse_second_derivative(backward: Backward) -> Backward:
    """Decorate a backward: it records no graph, and differentiating its result raises a RuntimeError."""

    @wraps(backward)
    def refusing(ctx: Any, *upstreams: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            gradients = backward(ctx, *upstreams)
        if not torch.is_grad_enabled():
            return gradients
        with_graph = [None if gradient is None else gradient.requires_grad_() for gradient in gradients]
        return tuple(None if gradient is None else _FirstDerivativeOnly.apply(gradient) for gradient in with_graph)

    return refusing
