"""A group of networks, each trained on a random subset of the images, then all asked about every image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlpheads.engine.config.schema import Config
from rlpheads.engine.config.streams import stream_seed
from rlpheads.engine.learner.class_loss import ClassLoss
from rlpheads.engine.learner.optimizer import scaled_lr
from rlpheads.engine.learner.schedule import Span, build_scheduler
from rlpheads.engine.retraining.epoch_images import EpochImages
from rlpheads.engine.retraining.stacked_networks import RetrainingError, StackedNetworks

_ROWS_AT_ONCE = 2**14
"""Images times networks of one forward pass of the evaluation."""


@dataclass(frozen=True)
class SubsetPlan:
    """Which images each network is trained on: a function of the seed and the network's number alone.

    Attributes:
        seed: of the run.
        num_samples: N.
        fraction: of the images that each network is trained on.
    """

    seed: int
    num_samples: int
    fraction: float

    @property
    def num_inside(self) -> int:
        """Images of each subset."""
        return round(self.fraction * self.num_samples)

    def subset(self, network: int) -> Tensor:
        """Return the indices of a network's images, int64, ascending."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "truth subset", network))
        return torch.randperm(self.num_samples, generator=generator)[: self.num_inside].sort().values

    def order(self, network: int, epoch: int) -> Tensor:
        """Return the positions in a network's subset in the order of an epoch."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "truth order", network, epoch))
        return torch.randperm(self.num_inside, generator=generator)

    def weights_seed(self, network: int) -> int:
        """Return the seed of a network's initial weights."""
        return stream_seed(self.seed, "truth weights", network)


@dataclass(frozen=True)
class SubsetNetworks:
    """What G trained networks say of all N images.

    Attributes:
        first: number of the first of them; the others follow.
        inside_GN: whether an image was in the network's subset, bool.
        hit_GN: whether its class is predicted, bool.
        loss_GN: cross-entropy of its class, nats, fp16.
    """

    first: int
    inside_GN: Tensor
    hit_GN: Tensor
    loss_GN: Tensor


def check_retrainable(config: Config) -> None:
    """Refuse settings under which networks that are trained together would not be those that the run trains.

    Raises:
        RetrainingError: the settings say so.
    """
    refused = {
        "precision": config.precision != "fp32",
        "accumulate": config.accumulate != 1,
        "max_steps": config.max_steps is not None,
        "early_stopping.patience": config.early_stopping.patience is not None,
        "regularizer.factor": config.regularizer.factor > 0,
        "heads.joint": config.heads.joint > 0,
        "model.pretrained": config.model.pretrained,
        "model.checkpoint": config.model.checkpoint is not None,
        "model.frozen": config.model.frozen,
        "data.mix": config.data.mix.mixup > 0
        or config.data.mix.cutmix > 0
        or config.data.mix.cutmix_minmax is not None,
        "data.repeats": config.data.repeats > 1,
        "optim.clip_value": config.optim.clip_value is not None,
    }
    if found := [name for name, given in refused.items() if given]:
        raise RetrainingError(
            f"the run sets {', '.join(found)}; networks on subsets are trained by the class loss in fp32 from their own "
            "initial weights, without mixing or repeats: judge a run that is trained so, too"
        )


def train_on_subsets(
    config: Config,
    plan: SubsetPlan,
    images: EpochImages,
    targets_N: Tensor,
    num_classes: int,
    numbers: range,
    advance: Callable[[int], object] = int,
) -> SubsetNetworks:
    """Train networks number `numbers` of a plan, all at once, and ask them about every image.

    Args:
        config: settings of the run.
        plan: the subsets.
        images: of every epoch.
        targets_N: classes, int64, on the images' device.
        num_classes: C.
        numbers: of the networks, in a row.
        advance: called after every epoch with the epochs that were trained, times networks.
    """
    device = targets_N.device
    networks = StackedNetworks(config, num_classes, [plan.weights_seed(number) for number in numbers], device)
    subset_GM = torch.stack([plan.subset(number) for number in numbers]).to(device)
    batch_size = config.batch_size
    num_steps = plan.num_inside // batch_size
    if not num_steps:
        raise RetrainingError(f"a subset has {plan.num_inside} images, fewer than batch_size {batch_size}")
    optimizer = networks.optimizer(config)
    span = Span(config.epochs, num_steps, batch_size)
    scheduler = build_scheduler(optimizer, scaled_lr(config.optim, batch_size), config.schedule, span)
    loss = ClassLoss(config.model.loss, config.model.label_smoothing, config.model.bce_threshold)
    torch.manual_seed(stream_seed(plan.seed, "truth dropout", numbers.start))
    for epoch in range(config.epochs):
        table = images.trained(epoch)
        order_GM = torch.stack([plan.order(number, epoch) for number in numbers]).to(device)
        rows_GM = subset_GM.gather(1, order_GM)
        for step in range(num_steps):
            rows_GB = rows_GM[:, step * batch_size : (step + 1) * batch_size]
            logits_GBC = networks.logits(table[rows_GB], train=True)
            losses = loss(logits_GBC.flatten(0, 1), targets_N[rows_GB].flatten())
            # Mean over each network's batch, sum over the networks, which share nothing.
            (losses.trained_B.sum() / batch_size).backward()
            networks.clip(config.optim.clip_norm)
            scheduler.step_update(epoch * num_steps + step)
            optimizer.step()
            optimizer.zero_grad()
        advance(len(numbers))
    inside_GN = torch.zeros(len(numbers), plan.num_samples, dtype=torch.bool, device=device).scatter_(
        1, subset_GM, True
    )
    hit_GN, loss_GN = _ask(networks, images.plain(), targets_N, len(numbers))
    return SubsetNetworks(numbers.start, inside_GN.cpu(), hit_GN.cpu(), loss_GN.cpu())


@torch.no_grad()
def _ask(networks: StackedNetworks, table: Tensor, targets_N: Tensor, num_networks: int) -> tuple[Tensor, Tensor]:
    hits, losses = [], []
    at_once = max(1, _ROWS_AT_ONCE // num_networks)
    for images, targets_B in zip(table.split(at_once), targets_N.split(at_once), strict=True):
        logits_GBC = networks.logits(images, train=False)
        hits.append(logits_GBC.argmax(-1) == targets_B)
        spread_GB = targets_B.expand(num_networks, -1)
        losses.append(
            F.cross_entropy(logits_GBC.flatten(0, 1), spread_GB.flatten(), reduction="none").view_as(spread_GB)
        )
    return torch.cat(hits, 1), torch.cat(losses, 1).half()
