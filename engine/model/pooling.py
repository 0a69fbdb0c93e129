"""From what a module gives to one feature vector for each image: tokens, maps of features, and where prefix tokens are."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, get_args

from torch import Tensor, nn

from rlpheads.engine.model.taps import Pool

_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_OTHER_PREFIX_TOKENS = ("distillation_token", "dist_token", "register_tokens", "reg_token")
"""What timm, torchvision and transformers call the parameters that become tokens in front of the patches'."""


class Pooling(NamedTuple):
    """How the outputs of a network's modules become feature vectors.

    Attributes:
        pool: how tokens do: `token` (the class token) or `mean` (of the patch tokens).
        num_prefix: tokens in front of the patch tokens, the class token first.
        channels_last: whether maps of features are (B, H, W, D), not (B, D, H, W).
    """

    pool: Pool
    num_prefix: int
    channels_last: bool

    def features(self, output: Any, where: object) -> Tensor:
        """Pool what a module gave: (B, D).

        Args:
            output: vectors (B, D), tokens (B, L, D) or a map of features; of several values the first.
            where: what a message calls the module.

        Raises:
            ValueError: the output is nothing of that.
        """
        if isinstance(output, (tuple, list)) and output:
            output = output[0]
        if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"tap {where}: this module gives {shape}, which is no vectors, tokens or map of features")
        if output.ndim == 2:
            return output
        if output.ndim == 4:
            return output.mean(dim=(1, 2) if self.channels_last else (2, 3))
        return pool_tokens(output[:, self.num_prefix :], output[:, : self.num_prefix], self.pool)


def pooling_of(backbone: nn.Module, pool: Pool | None, channels_last: bool | None) -> Pooling:
    """Return how a network's outputs are pooled.

    Args:
        backbone: any network.
        pool: None: the class token where the network has one, else the mean.
        channels_last: None: as timm's and torchvision's networks are known to be.

    Raises:
        ValueError: an unknown `pool`.
    """
    num_prefix = num_prefix_tokens(backbone)
    if pool is not None and pool not in get_args(Pool):
        raise ValueError(f"unknown pool {pool!r}: use one of {', '.join(get_args(Pool))}")
    if channels_last is None:
        channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC" or _is_torchvision_swin(backbone)
    return Pooling(pool or ("token" if num_prefix else "mean"), num_prefix, channels_last)


def is_timm_model(backbone: nn.Module) -> bool:
    """Whether a network has timm's interface for reading the outputs of its blocks."""
    return all(hasattr(backbone, name) for name in ("forward_intermediates", "forward_head", "feature_info"))


def gives_tokens(backbone: Any) -> bool:
    """Whether a network of timm returns its blocks' outputs as tokens."""
    if not is_timm_model(backbone):
        return False
    return "return_prefix_tokens" in inspect.signature(backbone.forward_intermediates).parameters


def gives_prefix_tokens(backbone: Any) -> bool:
    """Whether a timm model returns a class token (or more) apart from the patch tokens."""
    return gives_tokens(backbone) and getattr(backbone, "num_prefix_tokens", 0) > 0


def num_prefix_tokens(backbone: Any) -> int:
    """Return how many tokens stand in front of the patch tokens, the class token first.

    Networks that are none of timm's are known by the names of their parameters; without a class token they have none.
    """
    if is_timm_model(backbone):
        return int(backbone.num_prefix_tokens) if gives_prefix_tokens(backbone) else 0
    parameters = {name.rpartition(".")[2]: parameter for name, parameter in backbone.named_parameters()}
    if not any(name in parameters for name in _CLASS_TOKENS):
        return 0
    others = [parameters[name] for name in _OTHER_PREFIX_TOKENS if name in parameters]
    return 1 + sum(each.shape[-2] if each.ndim > 1 else 1 for each in others)


def pool_tokens(tokens: Tensor, prefix_BPD: Tensor | None, pool: Pool) -> Tensor:
    """Pool the output of a block into one feature vector for each image: (B, D).

    Args:
        tokens: tokens (B, L, D) without the prefix tokens, or a feature map (B, D, H, W).
        prefix_BPD: the prefix tokens, the class token first; None or P = 0 where the network has none.
        pool: "token" takes the class token, "mean" the mean of `tokens` over L, or over H and W.

    Raises:
        ValueError: an unknown `pool`, "token" without a prefix token, or `tokens` of another rank.
    """
    if pool == "token":
        if prefix_BPD is None or prefix_BPD.shape[1] == 0:
            raise ValueError("pool 'token' needs a class token, and this network has no prefix tokens: use 'mean'")
        return prefix_BPD[:, 0]
    if pool != "mean":
        raise ValueError(f"unknown pool {pool!r}: use one of {', '.join(get_args(Pool))}")
    if tokens.ndim == 3:
        return tokens.mean(dim=1)
    if tokens.ndim == 4:
        return tokens.mean(dim=(2, 3))
    raise ValueError(f"a tap is (B, L, D) tokens or a (B, D, H, W) map, got a tensor of shape {tuple(tokens.shape)}")


def _is_torchvision_swin(backbone: nn.Module) -> bool:
    """Whether this is torchvision's Swin, whose blocks give (B, H, W, D); by name, so that torchvision is not loaded."""
    return type(backbone).__module__ == "torchvision.models.swin_transformer"
