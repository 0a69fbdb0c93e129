"""The plan of a run's model: its taps, widths, parameters and arithmetic, known before any weight is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rlpheads.engine.config.schema import Config
from rlpheads.engine.model.attention import AttentionCall, AttentionWatch
from rlpheads.engine.model.batch_norm import has_batch_norm
from rlpheads.engine.model.builder import build_model, tap_dims
from rlpheads.engine.model.flops import network_flops
from rlpheads.engine.model.tapped_model import TappedModel
from rlpheads.engine.model.taps import Place, Tap


@dataclass(frozen=True)
class ModelPlan:
    """What is known of a model from building it once on torch's meta device, where tensors have shapes and no memory.

    Attributes:
        num_classes: outputs of the classifier.
        dims: width D of every tap: a batch of B images gives it features of shape (B, D).
        num_parameters: parameters of the network, the classifier's included.
        image_flops: FLOP of one training image in the network, forward and backward (forward alone where it is frozen);
            None where they cannot be counted, or grow with the images.
        has_batch_norm: whether the network keeps statistics of its batches.
        supports_checkpointing: whether its activations can be computed again in the backward pass.
        model: the network on the meta device, in evaluation mode.
        attention: what its last attention hands to torch's; None where there is none, or another one.
    """

    num_classes: int
    dims: tuple[int, ...]
    num_parameters: int
    image_flops: int | None
    has_batch_norm: bool
    supports_checkpointing: bool
    model: TappedModel = field(repr=False, compare=False)
    attention: AttentionCall | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """Where heads read, in the order in which an image passes."""
        return self.model.places

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The names of the places."""
        return self.model.taps


def plan_model(config: Config, num_classes: int) -> ModelPlan:
    """Plan the configured model; the random numbers of the process stay as they were.

    Args:
        config: settings of the run.
        num_classes: outputs of the classifier.

    Raises:
        ValueError: as `build_model` and `tap_dims`.
    """
    size = config.data.image_size
    grows = bool(config.data.early_sizes)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build_model(config, num_classes)
        with AttentionWatch() as watch:
            dims = tap_dims(model, size)
            flops = None if grows else network_flops(model, size, frozen=config.model.frozen)
        for other in sorted({*config.data.early_sizes, config.evaluation_size} - {size}):
            _check_size(model, other, dims)
    model.eval().zero_grad()
    return ModelPlan(
        num_classes=num_classes,
        dims=dims,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        image_flops=flops,
        has_batch_norm=has_batch_norm(model),
        supports_checkpointing=_supports_checkpointing(model),
        model=model,
        attention=watch.call,
    )


def _check_size(model: TappedModel, size: int, dims: tuple[int, ...]) -> None:
    """Make sure that images of another size give features of the same widths.

    Raises:
        ValueError: they do not, or the model takes no such images.
    """
    found = tap_dims(model, size)
    if found != dims:
        raise ValueError(f"images of {size} x {size} pixels give taps of widths {found}, and others of {dims}")


def _supports_checkpointing(model: TappedModel) -> bool:
    try:
        model.backbone.set_grad_checkpointing(True)
        model.backbone.set_grad_checkpointing(False)
    except (AttributeError, AssertionError):
        return False
    return True
