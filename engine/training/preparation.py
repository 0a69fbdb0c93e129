"""Batches on the device made ready for the model: normalised; augmented and mixed where they are trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rlpheads.engine.config.schema import Config
from rlpheads.engine.report.skipped_images import SkipNotices
from rlpheads.engine.training.loading import augment_spec, mix_spec
from rlpheads.kernels.pixels.mixing_native import load_native_mixing
from rlpheads.kernels.pixels.pixel_native import load_native_pixels
from rlpheads.loaders.augment.mixing import Mixer
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.augment.pipeline import Augment
from rlpheads.loaders.contract.batch import Batch


@dataclass(frozen=True)
class BatchPreparation:
    """What is done to every batch between its loader and the model; images that could not be read are named on the way.

    Attributes:
        normalize: bytes to normalised floats.
        augment: the same with the training augmentations in between.
        mixer: mixup and CutMix.
        notices: names skipped images.
    """

    normalize: nn.Module
    augment: Augment
    mixer: Mixer
    notices: SkipNotices

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
        images = self.augment(batch.images, batch.index, epoch, batch.index_on_host)
        augmented = batch.with_images(images)
        return self.mixer(augmented, epoch, step)

    def _announce_skipped(self, batch: Batch) -> None:
        if batch.skipped:
            self.notices.announce(batch.skipped)


def build_preparation(config: Config, device: torch.device, seed: int) -> BatchPreparation:
    """Build what the settings say is done to batches on a device; `seed` keys the random draws."""
    normalize = Normalize(config.data.mean, config.data.std)
    on_cpu, in_place = (load_native_pixels(), load_native_mixing()) if device.type == "cpu" else (None, None)
    augment = Augment(augment_spec(config.data), normalize, seed, on_cpu)
    mixer = Mixer(mix_spec(config.data), seed, in_place)
    notices = SkipNotices(config.data.max_skipped)
    return BatchPreparation(normalize.to(device), augment.to(device), mixer, notices)
