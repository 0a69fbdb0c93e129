"""Whether the heads' classes are sharded over the ranks, and how they are updated: bytes held and sent, by arithmetic.

With P parameters in the heads, N ranks, a global batch of G rows, T taps of width D and M draws, a rank

* holding whole heads keeps (2 + S)·4·P bytes: weights, gradients and the S states of its optimizer, in fp32 (a fused update
  keeps no gradients), and on a GPU in half precision 2·P for the weights as the products read them; of large weights, which
  the ranks step in ranges (`averaged_part`), an N-th of the states; it sends 2·(N−1)/N·4·P bytes a step, a ring's all-reduce of
  the gradients, or ranges of them and of the stepped weights;
* holding a range of the classes keeps an N-th of that (of ceil(K/N) classes), and sends (N−1)/N of G rows of features, labels
  and pair weights, (N−1) times its partials, (7 or 8)·4·G·T·M bytes, and where a regulariser or the joint term trains the
  backbone (N−1)/N of G rows of gradients in fp32. None of it grows with K.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import psutil
import torch
from torch import nn

from rlpheads.engine.config.launcher_variables import local_world_size
from rlpheads.engine.config.learning import OptimConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner.averaged_part import is_stepped_in_ranges
from rlpheads.engine.learner.optimizer import ELEMENTWISE, FUSED, build_optimizer, is_elementwise
from rlpheads.kernels.implementations import MAX_BATCHED_LABELS_ON_GPU, MAX_SMALL_LABELS
from rlpheads.memorization.heads.class_shards import ClassShards

SHARE_FOR_HEADS = 0.5
"""Share of a device's memory beyond which whole heads leave too little for the network and its activations."""


class HeadCosts(NamedTuple):
    """What the heads cost one rank."""

    memory: int
    """Bytes of weights, their copies, gradients and optimizer states."""
    traffic: int
    """Bytes that the rank sends in a training step."""

    def __str__(self) -> str:
        return f"{in_units(self.memory)} a rank, {in_units(self.traffic)} sent a step"


class ShardChoice(NamedTuple):
    """How the heads are held, and why."""

    is_sharded: bool
    line: str
    """What is said of it, with the numbers of both ways; empty where there was nothing to choose."""


@dataclass(frozen=True)
class HeadWorkload:
    """The heads of a run, and what of a training step their costs depend on.

    Attributes:
        dims: width D of every tap.
        num_classes: labels of a head, over the blocks of all classes.
        draws: draws of the heads, and those of the audit heads.
        hidden: units of hidden layers, or None.
        num_rows: rows of the global batch, G.
        trained_dims: widths of the taps whose features a regulariser or the joint term trains.
        mixed: whether rows have two labels.
        feature_bytes: bytes of a number of the features as they travel.
        num_states: numbers that the optimizer keeps for each parameter.
        fused: whether gradients that are not averaged over ranks are used up where they are made, and not kept.
        drops: whether heads and audit heads each drop features of their own (`heads.dropout`).
        in_ranges: whether ranks that hold whole heads each step a range of large ones.
    """

    dims: tuple[int, ...]
    num_classes: int
    draws: tuple[int, int]
    hidden: int | None
    num_rows: int
    trained_dims: tuple[int, ...]
    mixed: bool
    feature_bytes: int
    num_states: int
    fused: bool = False
    drops: bool = False
    in_ranges: bool = False

    @property
    def num_heads(self) -> int:
        """Heads over all taps and draws."""
        return len(self.dims) * sum(self.draws)

    def num_parameters(self, num_classes: int) -> int:
        """Parameters of all heads that hold so many classes; hidden layers count whole."""
        widths = [(dim, self.hidden or dim) for dim in self.dims]
        linear = sum(num_classes * (width + 1) for _, width in widths)
        layers = sum(width * (dim + 1) for dim, width in widths) if self.hidden else 0
        return (linear + layers) * sum(self.draws)

    def whole(self, world_size: int) -> HeadCosts:
        """Costs of heads that every rank holds whole."""
        parameters = self.num_parameters(self.num_classes)
        keeps_gradients = world_size > 1 or self._keeps_gradients(self.num_classes)
        memory = self._memory(parameters, self.num_classes, keeps_gradients)
        memory -= 4 * self.num_states * self.stepped_elsewhere(world_size)
        return HeadCosts(memory, 2 * (world_size - 1) * 4 * parameters // world_size)

    def sharded(self, world_size: int) -> HeadCosts:
        """Costs of heads whose classes are sharded: of the first rank, which holds the most."""
        held = -(-self.num_classes // world_size)
        rows_of_others = (world_size - 1) * self.num_rows // world_size
        partials = (world_size - 1) * self.num_rows * self.num_heads * 4 * (8 if self.mixed else 7)
        layers = 2 * 4 * self.num_parameters(0) * (world_size - 1) // world_size
        traffic = rows_of_others * (self._bytes_forward + self._bytes_backward) + partials + layers
        return HeadCosts(self._memory(self.num_parameters(held), held, self._keeps_gradients(held)), traffic)

    def update_bytes(self, num_held: int, stepped_elsewhere: int = 0) -> int:
        """Bytes that an optimizer's step of heads of so many classes reads and writes, kept gradients and copies with them.

        A fused update writes the copy beside the weight; else the weight is read once more for it. Other ranks take the step
        of numbers that are `stepped_elsewhere`.
        """
        arrays = 2 * (1 + self.num_states)
        gradients = 2 * self._keeps_gradients(num_held)
        copy = self._copy_bytes(num_held)
        casts = copy + 4 * (copy > 0 and self._keeps_gradients(num_held))
        return ((arrays + gradients) * 4 + casts) * self.num_parameters(num_held) - arrays * 4 * stepped_elsewhere

    def stepped_elsewhere(self, world_size: int) -> int:
        """Numbers of whole heads that other ranks step than the first, which steps the most."""
        if not self.in_ranges:
            return 0
        widths = [self.hidden or dim for dim in self.dims]
        large = [each for each in widths if is_stepped_in_ranges(self.num_classes * each, self.num_classes, world_size)]
        _, held = ClassShards(0, world_size).start_and_stop(self.num_classes)
        return (self.num_classes - held) * sum(large) * sum(self.draws)

    @property
    def _bytes_forward(self) -> int:
        """Bytes of one row's features, labels and weights; audit heads read the same features, but those with dropout."""
        num_draws = sum(self.draws)
        if self.hidden is not None:
            inputs = self.hidden * len(self.dims) * num_draws
        else:
            inputs = sum(self.dims) * (sum(draws > 0 for draws in self.draws) if self.drops else 1)
        return inputs * self.feature_bytes + 1 + 4 * num_draws + (4 * num_draws + 4 if self.mixed else 0)

    @property
    def _bytes_backward(self) -> int:
        """Bytes of one row's gradients, in fp32: of the features that are trained, and of hidden layers' outputs."""
        if self.hidden is None:
            return 4 * sum(self.trained_dims)
        return 4 * self.hidden * (self.num_heads + len(self.trained_dims) * self.draws[0])

    def _keeps_gradients(self, num_held: int) -> bool:
        """Whether gradients that are this rank's alone lie in memory: those of few labels do in any case."""
        return not self.fused or num_held <= MAX_SMALL_LABELS

    def _copy_bytes(self, num_held: int) -> int:
        """Bytes that a parameter takes once more in the dtype of the products, which a GPU's heads of many labels keep."""
        return self.feature_bytes if self.feature_bytes < 4 and num_held > MAX_BATCHED_LABELS_ON_GPU else 0

    def _memory(self, parameters: int, num_held: int, keeps_gradients: bool) -> int:
        return ((1 + keeps_gradients + self.num_states) * 4 + self._copy_bytes(num_held)) * parameters


def choose_sharding(config: Config, work: HeadWorkload, world_size: int, device: torch.device) -> ShardChoice:
    """Decide as `heads.shard` says; auto: shard where that sends less, whole heads do not fit, or the update is to be fused."""
    setting = config.heads.shard
    if setting == "none" or world_size == 1:
        return ShardChoice(setting == "class", "")
    whole, sharded = work.whole(world_size), work.sharded(world_size)
    if setting == "class":
        return ShardChoice(True, f"heads.shard class: {sharded}; none: {whole}")
    if config.heads.update == "fused":
        return ShardChoice(True, f"heads.shard auto: class ({sharded}), as heads.update fused needs it; none: {whole}")
    reason = _reason_against(config, work, world_size)
    if reason is None and whole.memory > _memory_of(device) * SHARE_FOR_HEADS:
        return ShardChoice(True, f"heads.shard auto: class ({sharded}), as whole heads would not fit: {whole}")
    if reason is None and sharded.traffic < whole.traffic:
        return ShardChoice(True, f"heads.shard auto: class ({sharded}), which sends less than none ({whole})")
    reason = reason or "which sends less"
    return ShardChoice(False, f"heads.shard auto: none ({whole}), {reason}; class: {sharded}")


def _reason_against(config: Config, work: HeadWorkload, world_size: int) -> str | None:
    if ClassShards(0, world_size).has_empty_range(work.num_classes):
        return f"as {work.num_classes} labels over {world_size} ranks would leave some without any"
    if config.heads.optim.name not in ELEMENTWISE:
        return f"as {config.heads.optim.name} looks at whole matrices"
    if config.heads.optim.clip_agc is not None:
        return "as heads.optim.clip_agc needs whole matrices"
    return None


class Obstacle(NamedTuple):
    """A setting with which heads cannot be updated as their gradients are made."""

    key: str
    given: object
    allowed: str
    reason: str


def obstacles_to_fusing(config: Config, *, is_averaged: bool) -> Iterator[Obstacle]:
    """Yield what keeps the heads from being updated as their gradients are made.

    Args:
        config: settings of the run.
        is_averaged: whether gradients are averaged over several ranks, as those of whole heads are.
    """
    optim = config.heads.optim
    if is_averaged:
        yield Obstacle(
            "heads.shard", config.heads.shard, "class or auto", "the ranks average the gradients of whole heads first"
        )
    if config.accumulate > 1:
        yield Obstacle("accumulate", config.accumulate, "1", "micro-batches sum their gradients first")
    if optim.name not in ELEMENTWISE:
        reason = "others look at a head's whole gradient (muon's authors keep heads on adamw)"
        yield Obstacle("heads.optim.name", optim.name, f"one of {', '.join(sorted(ELEMENTWISE))}", reason)
    for name in ("clip_value", "clip_agc"):
        if (given := getattr(optim, name)) is not None:
            reason = "it looks at gradients that are kept nowhere; clip_norm can be used"
            yield Obstacle(f"heads.optim.{name}", given, "null", reason)


def fuses_update(config: Config, device: torch.device, *, is_averaged: bool) -> bool:
    """Decide as `heads.update` says; auto: fused where no gradient is kept at all, in tiles, on a CPU."""
    if config.heads.update != "auto":
        return config.heads.update == "fused"
    return _reason_for_separate(config, device, is_averaged=is_averaged) is None


def _reason_for_separate(config: Config, device: torch.device, *, is_averaged: bool) -> str | None:
    for obstacle in obstacles_to_fusing(config, is_averaged=is_averaged):
        return f"{obstacle.key} is {obstacle.given}: {obstacle.reason}"
    if config.heads.optim.name not in FUSED:
        return f"{config.heads.optim.name} steps whole heads; {', '.join(sorted(FUSED))} do in tiles"
    return None if device.type == "cpu" else f"steps in tiles are not measured on {device.type} yet"


def update_line(config: Config, work: HeadWorkload, world_size: int, device: torch.device, *, is_sharded: bool) -> str:
    """Say how heads are updated and why, with the numbers of both ways; empty where there was nothing to choose."""
    held = -(-work.num_classes // world_size) if is_sharded else work.num_classes
    if config.heads.update != "auto" or held <= MAX_SMALL_LABELS:
        return ""
    of_ways = {}
    for way in ("separate", "fused"):
        of_way = replace(work, fused=way == "fused")
        memory = (of_way.sharded(world_size) if is_sharded else of_way.whole(world_size)).memory
        moved = of_way.update_bytes(held, 0 if is_sharded else of_way.stepped_elsewhere(world_size))
        of_ways[way] = f"{in_units(memory)} a rank, {in_units(moved)} through memory a step"
    reason = _reason_for_separate(config, device, is_averaged=world_size > 1 and not is_sharded)
    if reason is None:
        return f"heads.update auto: fused ({of_ways['fused']}), in tiles; separate: {of_ways['separate']}"
    separate = of_ways["separate"]
    if world_size > 1 and not is_sharded:  # cannot be had, at any memory
        return f"heads.update auto: separate ({separate}), as {reason}"
    return f"heads.update auto: separate ({separate}), as {reason}; fused: {of_ways['fused']}"


def head_workload(
    config: Config, dims: tuple[int, ...], num_image_classes: int, num_audit_draws: int, device: torch.device
) -> HeadWorkload:
    """Describe the heads of a run whose labels are settled."""
    heads, mix = config.heads, config.data.mix
    trained_dims: tuple[int, ...] = ()
    if heads.joint > 0 or (config.regularizer.factor > 0 and config.regularizer.taps == "all"):
        trained_dims = dims
    elif config.regularizer.factor > 0:  # which of them is the model's to say: taps differ little in width
        trained_dims = dims[: len(config.regularizer.taps)]
    return HeadWorkload(
        dims=dims,
        num_classes=heads.num_labels * heads.num_blocks(num_image_classes),
        draws=(heads.draws, num_audit_draws),
        hidden=heads.hidden,
        num_rows=config.batch_size,
        trained_dims=trained_dims,
        mixed=mix.mixup > 0 or mix.cutmix > 0 or mix.cutmix_minmax is not None,
        feature_bytes=4 if device.type == "cpu" or config.precision == "fp32" else 2,
        num_states=num_optimizer_states(heads.optim),
        fused=fuses_update(config, device, is_averaged=False),
        drops=heads.dropout > 0,
        in_ranges=is_elementwise(heads.optim) and not config.runtime.compile,
    )


class HeadDemand(NamedTuple):
    """What the heads of a run take of a rank's memory, held as `heads.shard` has them, at any number of labels."""

    config: Config
    work: HeadWorkload
    world_size: int
    device: torch.device

    def costs(self, num_labels: int) -> HeadCosts:
        """Costs of heads of so many labels."""
        work = self._with_labels(num_labels)
        is_sharded = choose_sharding(self.config, work, self.world_size, self.device).is_sharded
        return work.sharded(self.world_size) if is_sharded else work.whole(self.world_size)

    def most_labels(self, memory: float) -> int:
        """Return the most labels, up to those of the run, whose heads take so many bytes at most; below 2: none do."""
        low, high = 1, self.config.heads.num_labels + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.costs(middle).memory <= memory else (low, middle)
        return low

    def ranks_that_hold(self, num_labels: int, memory: float) -> tuple[int, HeadCosts] | None:
        """Return the fewest ranks, a power of two and more than there are, that hold sharded heads; None: not 4,096."""
        work = self._with_labels(num_labels)
        for ranks in (2**power for power in range(13)):
            if ranks >= self.world_size and work.sharded(ranks).memory <= memory:
                return ranks, work.sharded(ranks)
        return None

    def _with_labels(self, num_labels: int) -> HeadWorkload:
        num_blocks = self.work.num_classes // self.config.heads.num_labels
        return replace(self.work, num_classes=num_labels * num_blocks)


def memory_of_rank(device: torch.device) -> float:
    """Return the bytes of a rank's memory: its GPU's, or its part of the host's."""
    if device.type == "cpu":
        return psutil.virtual_memory().total / local_world_size()
    return _memory_of(device)


def num_optimizer_states(optim: OptimConfig) -> int:
    """Return how many numbers an optimizer keeps for each parameter: those of a tiny layer after one step."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        layer = nn.Linear(2, 3)
        optimizer = build_optimizer(layer, optim, optim.lr)
        layer(torch.zeros(1, 2)).sum().backward()
        optimizer.step()
    states = optimizer.state[layer.weight].values()
    return sum(isinstance(state, torch.Tensor) and state.shape == layer.weight.shape for state in states)


def _memory_of(device: torch.device) -> float:
    if device.type != "cuda":
        return float("inf")
    return float(torch.cuda.get_device_properties(device).total_memory)


def in_units(num_bytes: float) -> str:
    """Return bytes in the largest unit of which there is one: 1.85 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} B"
