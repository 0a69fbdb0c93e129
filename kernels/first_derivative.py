"""Gradients that cannot be differentiated again: a backward decorated here raises in words of ours, not in autograd's.

What raises must be on the way from a gradient to everything that the route is a function of, else whoever differentiates twice
gets zeros, as with torch's `once_differentiable`. So a route has one more output, its anchor: empty, and saved as an output,
which costs no reference to the route. Where a graph of the backward is wanted, gradients are made functions of the anchor, and
through it of the route's own inputs.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from rlpheads.kernels.transforms import check_no_transform_of_backward

Gradients = tuple[Tensor | None, ...]


class _FirstDerivativeOnly(torch.autograd.Function):
    """Identity whose derivative raises: it makes a gradient a function of tensors that it cannot be differentiated in."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *_anchors: Tensor) -> Tensor:  # noqa: ARG004
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004
        raise RuntimeError(
            "random_label_loss was differentiated twice (create_graph=True); its tiled, fused and sharded implementations have "
            "first derivatives only: pass impl='reference', which holds all B×K logits, for heads that are held whole"
        )


def save_with_anchor(ctx: Any, values: tuple[Tensor, ...], *saved: Tensor | None) -> tuple[Tensor, ...]:
    """Save tensors for a backward that `refuse_second_derivative` decorates; return what the forward must: values, anchor."""
    if len(values) == 1:
        ctx.set_materialize_grads(False)  # no zeros for the anchor
    anchor = values[0].new_empty(0)
    ctx.save_for_backward(anchor, *saved)
    return *values, anchor


def refuse_second_derivative(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Decorate a backward of (ctx, saved tensors, upstream of each value), whose forward returned what `save_with_anchor` did.

    It records no graph, and differentiating its result in what the route is a function of, or in the upstream, raises a
    RuntimeError. It refuses transforms of itself, too.
    """

    @wraps(backward)
    def refusing(ctx: Any, *upstream: Tensor) -> Gradients:
        upstream = upstream[:-1]  # the last is the anchor's
        if upstream[0] is None:  # of a route of one value
            return (None,) * len(ctx.needs_input_grad)
        for each in upstream:
            check_no_transform_of_backward(each)
        anchor, *saved = ctx.saved_tensors
        with_graph = torch.is_grad_enabled()
        with torch.no_grad() if with_graph else nullcontext():
            gradients = backward(ctx, saved, *upstream)
        if not with_graph:
            return gradients
        return tuple(
            None if gradient is None else _FirstDerivativeOnly.apply(gradient, anchor, *upstream)
            for gradient in gradients
        )

    return refusing
