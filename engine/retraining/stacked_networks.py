"""Many small networks of one architecture as one: their weights are stacked, and every product is batched over the networks.

Each is the very network that a run trains, built by the same code from a seed of its own; one alone would spend its time on
starting operations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from rlpheads.engine.config.errors import UserError
from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner.optimizer import FUSED, build_optimizer, scaled_lr
from rlpheads.engine.model.builder import build_model


class RetrainingError(UserError):
    """A run cannot be retrained on subsets; the message says why."""


class StackedNetworks:
    """G networks, each with weights of its own.

    Args:
        config: settings of the run that they are like.
        num_classes: outputs of the classifier.
        seeds: one for the initial weights of each.
        device: where they are trained.

    Attributes:
        parameters: the stacked weights, (G, ...) each, by name.
    """

    def __init__(self, config: Config, num_classes: int, seeds: Sequence[int], device: torch.device):
        config = replace(config, heads=replace(config.heads, taps="none"))
        networks = [_build(config, num_classes, seed) for seed in seeds]
        self.parameters: dict[str, Tensor]
        self._buffers: dict[str, Tensor]
        self.parameters, self._buffers = stack_module_state(networks)
        self.parameters = {name: stacked.detach().to(device) for name, stacked in self.parameters.items()}
        self._buffers = {name: stacked.to(device) for name, stacked in self._buffers.items()}
        for stacked in self.parameters.values():
            stacked.requires_grad_()
        self._template = networks[0]
        self._shape = copy.deepcopy(networks[0]).to("meta")

    def logits(self, images: Tensor, *, train: bool) -> Tensor:
        """Classify images (G, B, 3, H, W), one batch for each network, or (B, 3, H, W), one for all: logits (G, B, C)."""
        self._shape.train(train)
        of_each = 0 if images.dim() == 5 else None

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images_BCHW: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._shape, (parameters, buffers), (images_BCHW,))
            return logits

        forward: Callable[..., Tensor] = vmap(one, in_dims=(0, 0, of_each), randomness="different")
        return forward(self.parameters, self._buffers, images)

    def optimizer(self, config: Config) -> torch.optim.Optimizer:
        """Build the run's own optimizer over the stacked weights: its groups, rates and decays, entry by entry the same.

        Raises:
            RetrainingError: the optimizer looks at more than one entry at a time, so that networks would mix.
        """
        if config.optim.name not in FUSED or config.optim.clip_agc is not None:
            raise RetrainingError(
                f"optim.name {config.optim.name}, optim.clip_agc {config.optim.clip_agc}: networks that are trained together "
                f"need an optimizer that treats every weight alone: {', '.join(sorted(FUSED))}, without clip_agc"
            )
        optimizer = build_optimizer(self._template, config.optim, scaled_lr(config.optim, config.batch_size))
        names = {parameter: name for name, parameter in self._template.named_parameters()}
        for group in optimizer.param_groups:
            group["params"] = [self.parameters[names[parameter]] for parameter in group["params"]]
        return optimizer

    def clip(self, largest: float | None) -> None:
        """Clip the gradient of each network by its own norm."""
        if largest is None:
            return
        gradients = [stacked.grad for stacked in self.parameters.values() if stacked.grad is not None]
        norm_G = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        scale_G = (largest / (norm_G + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale_G.view(-1, *[1] * (gradient.dim() - 1)))


def _build(config: Config, num_classes: int, seed: int) -> nn.Module:
    """Build one network, whose attention spells its products out: torch has no batched rule for the fused ones."""
    model = build_model(replace(config, seeds=replace(config.seeds, weights=seed)), num_classes)
    for module in model.backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise RetrainingError(
                f"{config.model.name} has batch norm, whose statistics are written in place: networks that are trained "
                "together need one without, such as a ViT"
            )
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    network: nn.Module = model.backbone
    return network
