"""Everything that learns: the backbone, the heads, their optimizers and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlpheads.engine.config.learning import OptimConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.config.streams import stream_seed
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.learner.averaged_part import average_part
from rlpheads.engine.learner.ema import Average, build_average
from rlpheads.engine.learner.parts import FrozenPart, TrainedPart, build_part, with_loss_scale, with_pending_update
from rlpheads.engine.learner.precision import compute_dtype
from rlpheads.engine.learner.runtime import adapt_module
from rlpheads.engine.learner.schedule import Span
from rlpheads.engine.learner.shard_choice import (
    ShardChoice,
    choose_sharding,
    fuses_update,
    head_workload,
    update_line,
)
from rlpheads.engine.learner.sharded_part import shard_part
from rlpheads.engine.learner.update_guard import RunningStatistics, Verdict
from rlpheads.engine.model.batch_norm import synchronise_batch_norm
from rlpheads.engine.model.builder import Network, build_model
from rlpheads.engine.model.initial_weights import SavedWeights, load_weights
from rlpheads.engine.model.plan import ModelPlan
from rlpheads.engine.model.tapped_model import TappedModel
from rlpheads.memorization.heads.class_shards import ClassShards
from rlpheads.memorization.heads.rlp_heads import RLPHeads
from rlpheads.memorization.heads.sharded_heads import ShardedRLPHeads


@dataclass(frozen=True)
class Learner:
    """What a training step changes and a checkpoint keeps.

    Attributes:
        backbone: the tapped classifier, trained or frozen.
        heads: the random-label prediction heads, or None when no tap is read. They have messages, an optimizer and
            a clipping norm of their own, so that with λ = 0 the backbone is bit-identical with and without them.
        audit: heads on draws of the labels that nothing but their own loss ever sees, or None; apart from `heads` in
            everything, so that they change nothing.
        ema: moving average of the backbone's weights (never of the heads'), or None.
        dims: width of every tap.
        origin: where the weights come from, if not from the seed.
        sharding: whether the heads' classes are sharded over the ranks, and why; None without heads.
        update_line: how the heads are updated, and why; empty where there was nothing to choose.
        attention_line: which kernel torch takes for the network's attention; empty where it has none of torch's.
    """

    backbone: TrainedPart | FrozenPart
    heads: TrainedPart | None
    audit: TrainedPart | None
    ema: Average | None
    dims: tuple[int, ...]
    origin: str = ""
    sharding: ShardChoice | None = None
    update_line: str = ""
    attention_line: str = ""

    @cached_property
    def parts(self) -> Mapping[str, TrainedPart | FrozenPart]:
        """The parts, by name."""
        parts = {"backbone": self.backbone, "heads": self.heads, "audit": self.audit}
        return {name: part for name, part in parts.items() if part is not None}

    @cached_property
    def trained_parts(self) -> Mapping[str, TrainedPart]:
        """The parts that have an optimizer, by name."""
        return {name: part for name, part in self.parts.items() if isinstance(part, TrainedPart)}

    @cached_property
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
        for part in self.parts.values():
            stack.enter_context(part.without_sync())
        return stack

    def scaled(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of losses, by the part that each trains, as it is to be back-propagated."""
        scaled = [part.scaled(losses[name]) for name, part in self.parts.items() if name in losses]
        return sum(scaled[1:], scaled[0])

    @property
    def loss_scales(self) -> dict[str, Tensor]:
        """The parts' loss scales as they are now, 0-d on the device, named as figures; empty where nothing is scaled."""
        scales = {name: part.loss_scale for name, part in self.trained_parts.items()}
        return {f"{name}_loss_scale": scale.factor.clone() for name, scale in scales.items() if scale is not None}

    @cached_property
    def statistics(self) -> RunningStatistics:
        """Batch norm's statistics in the parts that are trained; whoever takes a step keeps them before it."""
        return RunningStatistics(part.module for part in self.trained_parts.values())

    def update(self, num_updates: int, verdicts: Mapping[str, Verdict]) -> dict[str, Tensor]:
        """Take optimizer step number `num_updates` (from 0) with every part that may, then move the average.

        Args:
            num_updates: optimizer steps taken.
            verdicts: of every part that has an optimizer.

        Returns:
            The global norm of each part's gradient before clipping, float32 ().
        """
        norms = {
            name: part.update(num_updates, verdicts[name].norm, verdicts[name].nonfinite)
            for name, part in self.trained_parts.items()
        }
        if "backbone" in verdicts:
            self.statistics.restore_where(verdicts["backbone"].nonfinite)
        if self.ema is not None:
            self.ema.update(self.tapped, num_updates)
        return norms

    def train(self, mode: bool = True) -> None:
        """Switch every part between training and evaluation mode."""
        for part in self.parts.values():
            part.train(mode)

    def state(self) -> dict[str, Any]:
        """Return every tensor that a checkpoint keeps, by reference (nothing is copied)."""
        state: dict[str, Any] = {name: part.module.state_dict() for name, part in self.parts.items()}
        for name, part in self.trained_parts.items():
            state[f"{name}_optimizer"] = part.optimizer_state()
            if part.loss_scale is not None:
                state[f"{name}_loss_scale"] = part.loss_scale.state()
        if self.ema is not None:
            state["ema"] = self.ema.module.state_dict()
        return state

    def load_optimizers(self, state: dict[str, Any]) -> None:
        """Hand the part of a loaded `state()` back that no module holds (the modules' tensors were filled in place)."""
        for name, part in self.trained_parts.items():
            part.load_optimizer_state(state[f"{name}_optimizer"])
            if part.loss_scale is not None:
                part.loss_scale.load(state[f"{name}_loss_scale"])


class InitialModel(NamedTuple):
    """A model with the weights that it starts from, and where these come from, if not from the seed."""

    model: TappedModel
    origin: str


def build_initial_model(config: Config, num_classes: int, *, fresh: bool, given: SavedWeights | None) -> InitialModel:
    """Build the model on the CPU.

    Args:
        config: settings of the run.
        num_classes: outputs of the classifier.
        fresh: fill it with the weights that it is to start from; not needed where a checkpoint of the run follows.
        given: those that `model.checkpoint` means.
    """
    model = build_model(config, num_classes, pretrained=config.model.pretrained and fresh)
    if given is not None:
        return InitialModel(model, load_weights(model.backbone, given))
    return InitialModel(model, f"timm's weights for {config.model.name}" if config.model.pretrained else "")


def build_learner(
    config: Config, launch: Launch, plan: ModelPlan, steps_per_epoch: int, initial: InitialModel
) -> Learner:
    """Build model, heads, optimizers and average on the run's device.

    Weights are drawn on the CPU and then moved, so that a seed means the same network on every device.

    Args:
        config: settings of the run.
        launch: the ranks and the device.
        plan: of the model.
        steps_per_epoch: optimizer steps of an epoch.
        initial: the model, on the CPU.
    """
    span = Span(config.epochs, steps_per_epoch, config.batch_size)
    ddp = launch.world_size > 1
    sharding, said = None, ""
    if plan.dims:
        work = head_workload(config, plan.dims, plan.num_classes, num_audit_draws(config), launch.device)
        sharding = choose_sharding(config, work, launch.world_size, launch.device)
        said = update_line(config, work, launch.world_size, launch.device, is_sharded=sharding.is_sharded)
    model, origin = initial
    model.to(launch.device)
    if ddp and config.model.sync_batchnorm:
        synchronise_batch_norm(model, launch.device)
    adapt_module(model, config.runtime)

    def trained(module: nn.Module, optim: OptimConfig, *, wrap: bool = ddp) -> TrainedPart:
        part = build_part(module, optim, config.schedule, span, wrap)
        part = replace(part, waits=config.stability.on_nonfinite != "stop")
        return part if config.precision != "fp16" else with_loss_scale(part, config.loss_scale, launch.device)

    backbone = FrozenPart(model) if config.model.frozen else trained(model, config.optim)
    decay = config.model.ema_decay
    ema = None if decay is None else build_average(model, decay, config.model.ema)

    def part(name: str, num_draws: int) -> TrainedPart | None:
        if not plan.dims or not num_draws:
            return None
        num_blocks = config.heads.num_blocks(plan.num_classes)
        is_sharded = sharding is not None and sharding.is_sharded
        fused = fuses_update(config, launch.device, is_averaged=ddp and not is_sharded)
        if is_sharded:
            shards = ClassShards.of_mesh(launch.mesh())
            sharded = build_sharded_heads(config, plan.dims, name, num_draws, num_blocks, shards, launch.device)
            built: TrainedPart = shard_part(trained(sharded, config.heads.optim, wrap=False))
        else:
            module = build_heads(config, plan.dims, name, num_draws, num_blocks).to(launch.device)
            is_compiled = bool(config.runtime.compile) and not fused
            adapt_module(module, config.runtime if is_compiled else replace(config.runtime, compile=False))
            built = trained(module, config.heads.optim, wrap=ddp and is_compiled)
            if ddp and not is_compiled:
                return average_part(built, ClassShards.of_mesh(launch.mesh()))
        return with_pending_update(built) if fused else built

    heads, audit = part("heads", config.heads.draws), part("audit", num_audit_draws(config))
    attention = plan.attention.describe(launch.device, compute_dtype(config.precision)) if plan.attention else ""
    return Learner(backbone, heads, audit, ema, plan.dims, origin, sharding, said, attention)


def build_heads(config: Config, dims: tuple[int, ...], name: str, num_draws: int, num_blocks: int = 1) -> RLPHeads:
    """Build heads, one for each tap and draw, from the stream `name`; `num_blocks` as for `RLPHeads`."""
    return RLPHeads(dims, config.heads.num_labels, num_draws, num_blocks=num_blocks, **_head_options(config, name))


def build_sharded_heads(
    config: Config,
    dims: tuple[int, ...],
    name: str,
    num_draws: int,
    num_blocks: int,
    shards: ClassShards,
    device: torch.device,
) -> ShardedRLPHeads:
    """Build this rank's part of what `build_heads` builds, with the same weights, where it is to live."""
    options = _head_options(config, name)
    return ShardedRLPHeads(
        dims, config.heads.num_labels, num_draws, num_blocks=num_blocks, shards=shards, device=device, **options
    )


def _head_options(config: Config, name: str) -> dict[str, Any]:
    options = {name: getattr(config.heads, name) for name in ("norm", "hidden", "dropout")}
    return {"seed": stream_seed(config.seed_of("weights"), name), **options}


def num_audit_draws(config: Config) -> int:
    """Return the draws that audit heads measure; one by default where something acts on the labels."""
    if config.heads.audit_draws is not None:
        return config.heads.audit_draws
    return int(config.regularizer.factor > 0 or config.heads.joint > 0)


def num_parameters(module: nn.Module) -> int:
    """Count the parameters of a module; of heads that are sharded over ranks, those of all ranks."""
    if isinstance(module, ShardedRLPHeads):
        return module.num_parameters
    return sum(parameter.numel() for parameter in module.parameters())
