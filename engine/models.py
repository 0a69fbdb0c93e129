"""The classifier under study, with its taps: one module whose forward gives logits and one feature vector a tap."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import timm
import torch
from torch import Tensor, nn

from rlpheads.engine.config import Config, ModelConfig
from rlpheads.engine.streams import stream_seed
from rlpheads.memorization.taps import Pool, pool_tokens, select_taps


class TappedModel(nn.Module):
    """A timm backbone that also returns its features at chosen blocks.

    This module, not the backbone, is what DDP and torch.compile wrap: calling `forward_intermediates` on an inner
    module would go past their hooks.

    Args:
        backbone: timm model with `forward_intermediates` and `forward_head`.
        taps: block numbers, ascending.
        pool: how tokens become a feature vector: `token` (the class token) or `mean` (of the patch tokens).
    """

    backbone: Any  # a timm model; timm has no type for what they all offer

    def __init__(self, backbone: nn.Module, taps: Sequence[int], pool: Pool):
        super().__init__()
        self.backbone = backbone
        self.taps = tuple(taps)
        self.pool = pool
        self.num_blocks = len(self.backbone.feature_info)
        layout: dict[str, Any] = {"output_fmt": "NLC" if _gives_tokens(self.backbone) else "NCHW"}
        if _gives_prefix_tokens(self.backbone):  # some models without them fail when they are asked for them
            layout["return_prefix_tokens"] = True
        self.intermediates = {"indices": list(self.taps), "norm": False, **layout}

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Classify (B, 3, H, W) float images.

        Returns:
            logits (B, classes) and, for each tap in order, features (B, D).
        """
        if not self.taps:
            return self.backbone(images), ()
        final, tapped = self.backbone.forward_intermediates(images, **self.intermediates)
        return self.backbone.forward_head(final), tuple(self._pooled(block) for block in tapped)

    def _pooled(self, block: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        if isinstance(block, tuple):
            return pool_tokens(block[0], block[1], self.pool)
        return pool_tokens(block, None, self.pool)


class Network(NamedTuple):
    """The modules that a forward pass runs through: wrapped ones in training, bare ones in evaluation."""

    model: nn.Module
    heads: nn.Module | None
    audit: nn.Module | None


def build_model(config: Config, num_classes: int) -> TappedModel:
    """Build the configured model on the current default device, its weights drawn from the stream `init`.

    Raises:
        ValueError: timm refuses the name or the arguments, or a tap does not exist.
    """
    torch.manual_seed(stream_seed(config.seed, "init"))
    backbone = _create(config.model, num_classes)
    taps = select_taps(config.heads.taps, len(backbone.feature_info))
    return TappedModel(backbone, taps, _pooling(config.heads.pool, backbone))


def planned_tap_dims(config: Config, num_classes: int) -> tuple[int, ...]:
    """Return the width D of every tap of the configured model, without making its weights.

    Raises:
        ValueError: as `build_model` and `tap_dims`.
    """
    with torch.device("meta"):
        return tap_dims(build_model(config, num_classes), config.data.image_size)


def tap_dims(model: TappedModel, image_size: int) -> tuple[int, ...]:
    """Return the width D of every tap, from a forward pass of `model`, built on the meta device, that computes nothing.

    Raises:
        ValueError: the model does not take images of this size.
    """
    images = torch.empty(2, 3, image_size, image_size, device="meta")
    try:
        with torch.no_grad():
            _, taps = model.eval()(images)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"the model does not take images of {image_size} x {image_size} pixels: {error}") from error
    return tuple(tap.shape[-1] for tap in taps)


def _create(config: ModelConfig, num_classes: int) -> Any:
    try:
        return timm.create_model(config.name, num_classes=num_classes, **config.args)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"model.name={config.name} cannot be built with model.args={config.args}: {error}") from error


def _pooling(pool: Literal["auto", "token", "mean"], backbone: nn.Module) -> Pool:
    has_token = _gives_prefix_tokens(backbone)
    if pool == "token" and not has_token:
        raise ValueError(f"heads.pool=token, but {type(backbone).__name__} has no class token; use mean or auto")
    if pool == "auto":
        return "token" if has_token and getattr(backbone, "global_pool", "") == "token" else "mean"
    return pool


def _gives_tokens(backbone: Any) -> bool:
    return "return_prefix_tokens" in inspect.signature(backbone.forward_intermediates).parameters


def _gives_prefix_tokens(backbone: Any) -> bool:
    return _gives_tokens(backbone) and getattr(backbone, "num_prefix_tokens", 0) > 0
