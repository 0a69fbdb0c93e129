"""Batches on the device made ready for the model: normalised; augmented and mixed where they are trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed.launch import Rank
from rlpheads.engine.report.skipped_images import SkipNotices
from rlpheads.engine.training.loading import augment_spec, mix_spec
from rlpheads.kernels.pixels.mixing_native import load_native_mixing
from rlpheads.kernels.pixels.pixel_native import load_native_pixels
from rlpheads.loaders.augment.fixed_groups import CompiledAugment
from rlpheads.loaders.augment.mixing import Mixer
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.augment.pipeline import Augment
from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.order import Order


class Repeats(NamedTuple):
    """Which rows of this rank's batches repeat rows before them, and what is added to their index to key their draws.

    Attributes:
        offset_B: int64 (B,), on the host.
        offset: the same on the device.
        is_first: bool (B,), on the device.
    """

    offset_B: Int64Array
    offset: Tensor
    is_first: Tensor

    @classmethod
    def of(cls, order: Order, rank: Rank, device: torch.device) -> Repeats | None:
        """Return those of a rank's share of a global batch; None where nothing is repeated."""
        if order.repeats == 1:
            return None
        repeat_B = order.repeat_of_rows(rank.rank, rank.world_size)
        offset = torch.from_numpy(order.num_samples * repeat_B).to(device)
        return cls(order.num_samples * repeat_B, offset, offset == 0)


@dataclass(frozen=True)
class BatchPreparation:
    """What is done to every batch between its loader and the model; images that could not be read are named on the way.

    Attributes:
        normalize: bytes to normalised floats.
        augment: the same with the training augmentations in between.
        mixer: mixup and CutMix.
        notices: names skipped images.
        repeats: what is repeated within a batch (`data.repeats`); None: nothing.
    """

    normalize: nn.Module
    augment: Augment | CompiledAugment
    mixer: Mixer
    notices: SkipNotices
    repeats: Repeats | None = None

    def check_quota(self, num_skipped: int) -> None:
        """Compare what a pass left out, over all ranks, with the quota.

        Raises:
            DatasetError: it is more.
        """
        self.notices.check_quota(num_skipped)

    def for_evaluation(self, batch: Batch) -> Batch:
        """Return a batch with normalised images."""
        self._announce_skipped(batch)
        return batch.with_images(self.normalize(batch.images))

    def for_training(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Return a batch with augmented, normalised and mixed images.

        Args:
            batch: on the device.
            epoch: number of the epoch, from 0, which keys the random draws.
            step: number of the step in it, from 0.
        """
        self._announce_skipped(batch)
        if self.repeats is None:
            images = self.augment(batch.images, batch.index, epoch, batch.host_index)
            return self.mixer(batch.with_images(images), epoch, step)
        keys_B = batch.index_on_host + self.repeats.offset_B
        images = self.augment(batch.images, batch.index + self.repeats.offset, epoch, keys_B)
        mixed = self.mixer(replace(batch, images=images, host_index=keys_B), epoch, step)
        return replace(mixed, host_index=batch.host_index, is_first=self.repeats.is_first)

    def _announce_skipped(self, batch: Batch) -> None:
        if batch.skipped:
            self.notices.announce(batch.skipped)


def build_preparation(
    config: Config, device: torch.device, seed: int, repeats: Repeats | None = None
) -> BatchPreparation:
    """Build what the settings say is done to batches on a device; `seed` keys the random draws."""
    normalize = Normalize(config.data.mean, config.data.std)
    on_cpu, in_place = (load_native_pixels(), load_native_mixing()) if device.type == "cpu" else (None, None)
    by_operation = Augment(augment_spec(config.data), normalize, seed, on_cpu).to(device)
    in_one_graph = bool(config.runtime.compile) and device.type == "cuda"
    augment = CompiledAugment(by_operation) if in_one_graph else by_operation
    mixer = Mixer(mix_spec(config.data), seed, in_place)
    notices = SkipNotices(config.data.max_skipped)
    return BatchPreparation(normalize.to(device), augment, mixer, notices, repeats)
