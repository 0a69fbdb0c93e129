"""One linear head: the weights that predict one draw of the random labels from one tap, and how they are initialised."""

from __future__ import annotations

import math

import torch
from torch import nn

INITIAL_LOGIT_STD = 0.1
"""Standard deviation of a fresh head's logits on normalised features, at any width: p is 1/K within a few per cent."""

_SLAB_ELEMENTS = 2**20  # 4 MiB of scratch space while a head of any size is initialised


class RandomLabelHead(nn.Module):
    """Parameters of one linear head, or of a range of its classes: weight (K, D) and bias (K,) of those it holds.

    Args:
        num_labels: labels of the whole head.
        dim: D.
        key: of the stream of its initial weights.
        device: where the parameters live.
        dtype: of the parameters.
        classes: first label that is held and the one behind the last; None: all.
    """

    def __init__(
        self,
        num_labels: int,
        dim: int,
        *,
        key: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        classes: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.key = key
        self.num_labels = num_labels
        self.start, stop = classes or (0, num_labels)
        self.weight = nn.Parameter(torch.empty(stop - self.start, dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(stop - self.start, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights from the head's own stream: the same on any device, the global generator untouched.

        The numbers are made on the CPU and copied slab by slab, so a large head is never held twice; those of classes that
        are not held here are made, too, so that a range has the whole head's. On the meta device nothing happens: call this
        after `to_empty`.
        """
        if self.weight.is_meta:
            return
        generator = torch.Generator().manual_seed(self.key)
        dim = self.weight.shape[1]
        stop, num_rows = self.start + len(self.weight), min(max(1, _SLAB_ELEMENTS // dim), self.num_labels)
        slab = torch.empty(num_rows, dim, dtype=torch.float32)
        for first in range(0, stop, num_rows):
            last = min(first + num_rows, self.num_labels)
            drawn = slab[: last - first].normal_(generator=generator)
            low, high = max(first, self.start), min(last, stop)
            if low < high:
                self.weight[low - self.start : high - self.start].copy_(drawn[low - first : high - first])
        self.weight.mul_(INITIAL_LOGIT_STD / math.sqrt(dim))
        self.bias.zero_()

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        num_held, dim = self.weight.shape
        held = "" if num_held == self.num_labels else f", classes {self.start} to {self.start + num_held - 1} held"
        return f"num_labels={self.num_labels}, dim={dim}{held}"
