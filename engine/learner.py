"""Everything that learns: the backbone, the heads, their optimizers and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from rlpheads.engine.config import Config
from rlpheads.engine.launch import Launch
from rlpheads.engine.models import Network, TappedModel, build_model, planned_tap_dims
from rlpheads.engine.optimizer import Span, TrainedPart, build_part
from rlpheads.engine.streams import stream_seed
from rlpheads.memorization.heads import RLPHeads


@dataclass(frozen=True)
class Learner:
    """What a training step changes and a checkpoint keeps.

    Attributes:
        backbone: the tapped classifier.
        heads: the random-label prediction heads, or None when no tap is read. They have a wrapper, an optimizer and
            a clipping norm of their own, so that with λ = 0 the backbone is bit-identical with and without them.
        audit: heads on draws of the labels that nothing but their own loss ever sees, or None; apart from `heads` in
            everything, so that they change nothing.
        ema: moving average of the backbone's weights (never of the heads'), or None.
        dims: width of every tap.
    """

    backbone: TrainedPart
    heads: TrainedPart | None
    audit: TrainedPart | None
    ema: ModelEmaV3 | None
    dims: tuple[int, ...]

    @property
    def parts(self) -> Iterator[tuple[str, TrainedPart]]:
        """The parts that are trained, by name."""
        yield "backbone", self.backbone
        if self.heads is not None:
            yield "heads", self.heads
        if self.audit is not None:
            yield "audit", self.audit

    @property
    def wrapped(self) -> Network:
        """The modules as training runs them, in their wrappers."""
        heads, audit = (None if part is None else part.wrapped for part in (self.heads, self.audit))
        return Network(self.backbone.wrapped, heads, audit)

    @property
    def bare(self) -> Network:
        """The modules as evaluation runs them, without wrappers."""
        heads, audit = (None if part is None else part.module for part in (self.heads, self.audit))
        return Network(self.backbone.module, heads, audit)

    @property
    def tapped(self) -> TappedModel:
        """The unwrapped backbone."""
        assert isinstance(self.backbone.module, TappedModel)
        return self.backbone.module

    def without_sync(self) -> ExitStack:
        """Return the context in which no part reduces its gradients."""
        stack = ExitStack()
        for _, part in self.parts:
            stack.enter_context(part.without_sync())
        return stack

    def update(self, num_updates: int) -> None:
        """Take optimizer step number `num_updates` (from 0) with every part, then move the average."""
        for _, part in self.parts:
            part.update(num_updates)
        if self.ema is not None:
            self.ema.update(self.tapped, step=num_updates)

    def train(self, mode: bool = True) -> None:
        """Switch every part between training and evaluation mode."""
        for _, part in self.parts:
            part.wrapped.train(mode)

    def state(self) -> dict[str, Any]:
        """Return every tensor that a checkpoint keeps, by reference (nothing is copied)."""
        state: dict[str, Any] = {name: part.module.state_dict() for name, part in self.parts}
        for name, part in self.parts:
            state[f"{name}_optimizer"] = get_optimizer_state_dict(part.module, part.optimizer)
        if self.ema is not None:
            state["ema"] = self.ema.module.state_dict()
        return state

    def load_optimizers(self, state: dict[str, Any]) -> None:
        """Hand the optimizers' part of a loaded `state()` back (the modules' tensors were filled in place)."""
        for name, part in self.parts:
            set_optimizer_state_dict(part.module, part.optimizer, state[f"{name}_optimizer"])


def build_learner(config: Config, launch: Launch, num_classes: int, steps_per_epoch: int) -> Learner:
    """Build model, heads, optimizers and average on the run's device.

    Weights are drawn on the CPU and then moved, so that a seed means the same network on every device.
    """
    dims = planned_tap_dims(config, num_classes)
    span = Span(config.epochs, steps_per_epoch)
    ddp = launch.world_size > 1
    model = build_model(config, num_classes).to(launch.device)
    backbone = build_part(model, config.optim, config.schedule, span, ddp)
    decay = config.model.ema_decay
    ema = None if decay is None else ModelEmaV3(model, decay=decay)

    def part(name: str, num_draws: int) -> TrainedPart | None:
        if not dims or not num_draws:
            return None
        module = build_heads(config, dims, name, num_draws).to(launch.device)
        return build_part(module, config.heads.optim, config.schedule, span, ddp)

    return Learner(backbone, part("heads", config.heads.draws), part("audit", num_audit_draws(config)), ema, dims)


def build_heads(config: Config, dims: tuple[int, ...], name: str, num_draws: int) -> RLPHeads:
    """Build heads, one for each tap and draw, from the stream `name`."""
    seed = stream_seed(config.seed, name)
    return RLPHeads(dims, config.heads.num_labels, num_draws, seed=seed, norm=config.heads.norm)


def num_audit_draws(config: Config) -> int:
    """Return the draws that audit heads measure; one by default where something acts on the labels."""
    if config.heads.audit_draws is not None:
        return config.heads.audit_draws
    return int(config.regularizer.factor > 0 or config.heads.joint > 0)


def num_parameters(module: nn.Module) -> int:
    """Count the parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
