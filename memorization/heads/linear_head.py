"""One linear head: the weights that predict one draw of the random labels from one tap, and how they are initialised."""

from __future__ import annotations

import math

import torch
from torch import nn

INITIAL_LOGIT_STD = 0.1
"""Standard deviation of a fresh head's logits on normalised features, at any width: p is 1/K within a few per cent."""

_SLAB_ELEMENTS = 2**20  # 4 MiB of scratch space while a head of any size is initialised


class RandomLabelHead(nn.Module):
    """Parameters of one linear head: weight (K, D) and bias (K,)."""

    def __init__(
        self, num_labels: int, dim: int, *, key: int, device: torch.device | str | None, dtype: torch.dtype | None
    ):
        super().__init__()
        self.key = key
        self.weight = nn.Parameter(torch.empty(num_labels, dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_labels, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights from the head's own stream: the same on any device, the global generator untouched.

        The numbers are made on the CPU and copied slab by slab, so a large head is never held twice. On the meta device
        nothing happens: call this after `to_empty`.
        """
        if self.weight.is_meta:
            return
        generator = torch.Generator().manual_seed(self.key)
        dim = self.weight.shape[1]
        for slab in self.weight.split(max(1, _SLAB_ELEMENTS // dim)):
            slab.copy_(torch.empty(slab.shape, dtype=torch.float32).normal_(generator=generator))
        self.weight.mul_(INITIAL_LOGIT_STD / math.sqrt(dim))
        self.bias.zero_()

    def extra_repr(self) -> str:
        """Sizes for `print(module)`."""
        num_labels, dim = self.weight.shape
        return f"num_labels={num_labels}, dim={dim}"
