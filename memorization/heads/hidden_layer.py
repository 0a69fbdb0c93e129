"""A hidden layer between a tap and its head, trained by the head's own loss alone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HiddenLayer(nn.Module):
    """relu(W·x + b) for one head: weight (H, D) and bias (H,).

    The two gradient routes of a head's loss stay apart through it: `with_detached_features` trains the layer and not the
    features, `with_detached_weights` gives the same activations and trains the features and not the layer.
    """

    def __init__(
        self, dim: int, hidden: int, *, key: int, device: torch.device | str | None, dtype: torch.dtype | None
    ):
        super().__init__()
        self.key = key
        self.weight = nn.Parameter(torch.empty(hidden, dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(hidden, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weights (He et al., 2015) from the layer's own stream; nothing on the meta device."""
        if self.weight.is_meta:
            return
        generator = torch.Generator().manual_seed(self.key)
        drawn = torch.empty(self.weight.shape, dtype=torch.float32).normal_(generator=generator)
        self.weight.copy_(drawn * math.sqrt(2 / self.weight.shape[1]))
        self.bias.zero_()

    def with_detached_features(self, features_BD: Tensor) -> Tensor:
        """Return activations (B, H), in the features' dtype, that train the layer alone."""
        return self._activate(features_BD.detach(), self.weight, self.bias)

    def with_detached_weights(self, features_BD: Tensor) -> Tensor:
        """Return activations (B, H), in the features' dtype, that train the features alone."""
        return self._activate(features_BD, self.weight.detach(), self.bias.detach())

    def _activate(self, features_BD: Tensor, weight_HD: Tensor, bias_H: Tensor) -> Tensor:
        dtype = features_BD.dtype  # that of the loss's matrix products, under autocast too
        return torch.relu(F.linear(features_BD, weight_HD.to(dtype), bias_H.to(dtype)))
