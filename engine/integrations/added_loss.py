"""A loss added to one that is computed elsewhere, by its gradient: the loop need not know of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _CarriesGradient(torch.autograd.Function):
    """The identity in `value`; the backward pass also sends the gradient `share` into `loss`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, loss: Tensor, share: float) -> Tensor:
        ctx.share, ctx.like = share, loss.new_ones(())
        return value.clone()  # a view could not be scaled in place, as some loops do

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, ctx.like * ctx.share, None


def add_loss(output: Any, loss: Tensor, share: float) -> Any:
    """Return a network's output such that back-propagating what is made of it back-propagates `loss`, too, with weight `share`.

    The loss is carried by the output's own loss where it has one (transformers' models compute it), else by its logits. What
    is reported of the output stays as it was.

    Args:
        output: logits, or an object that has `logits` and maybe `loss`.
        loss: scalar.
        share: the weight.

    Raises:
        TypeError: the output is neither.
    """
    if isinstance(output, Tensor):
        return _CarriesGradient.apply(output, loss, share)
    for name in ("loss", "logits"):
        if isinstance(value := getattr(output, name, None), Tensor):
            carried = _CarriesGradient.apply(value, loss, share)
            if hasattr(output, "_replace"):  # a named tuple, as some of torchvision's networks give
                return output._replace(**{name: carried})
            setattr(output, name, carried)
            return output
    raise TypeError(
        f"a network that is regularised gives logits or an object that has them, not {type(output).__name__}"
    )
