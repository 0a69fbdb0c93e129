"""The network of a run: a timm model built as configured, with taps where heads read features."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import timm
import torch
from torch import nn

import rlpheads.engine.model.wide_resnet  # noqa: F401 (registers its models with timm)
from rlpheads.engine.config.learning import ModelConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.config.streams import stream_seed
from rlpheads.engine.model.hub import patience_with_servers
from rlpheads.engine.model.pooling import gives_prefix_tokens
from rlpheads.engine.model.tapped_model import TappedModel, layout_of
from rlpheads.engine.model.taps import Pool, select_places


class Network(NamedTuple):
    """The modules that a forward pass runs through: wrapped ones in training, bare ones in evaluation."""

    model: nn.Module
    heads: nn.Module | None
    audit: nn.Module | None


def build_model(config: Config, num_classes: int, *, pretrained: bool = False) -> TappedModel:
    """Build the configured model on the current default device, its weights drawn from the stream `init`.

    Args:
        config: settings of the run.
        num_classes: outputs of the classifier.
        pretrained: load the weights that timm publishes over those that were drawn.

    Raises:
        ValueError: timm refuses the name or the arguments, or a tap does not exist.
    """
    torch.manual_seed(stream_seed(config.seed_of("weights"), "init"))
    backbone = _create(config.model, num_classes, pretrained)
    places = select_places(config.heads.taps, layout_of(backbone))
    return TappedModel(backbone, places, _pooling(config.heads.pool, backbone))


def tap_dims(model: TappedModel, image_size: int) -> tuple[int, ...]:
    """Return the width D of every tap, from a forward pass of `model` on the meta device.

    Raises:
        ValueError: the model does not take images of this size, or a tap is not one vector an image.
    """
    images = torch.empty(2, 3, image_size, image_size, device="meta")
    try:
        return model.eval().dims(images)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"the model does not take images of {image_size} x {image_size} pixels: {error}") from error


def _create(config: ModelConfig, num_classes: int, pretrained: bool) -> Any:
    try:
        with patience_with_servers():
            return timm.create_model(config.name, pretrained=pretrained, num_classes=num_classes, **config.args)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"model.name={config.name} cannot be built with model.args={config.args}: {error}") from error


def _pooling(pool: Literal["auto", "token", "mean"], backbone: nn.Module) -> Pool:
    has_token = gives_prefix_tokens(backbone)
    if pool == "token" and not has_token:
        raise ValueError(f"heads.pool=token, but {type(backbone).__name__} has no class token; use mean or auto")
    if pool == "auto":
        return "token" if has_token and getattr(backbone, "global_pool", "") == "token" else "mean"
    return pool
