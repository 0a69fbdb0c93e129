"""Batches on the device made ready for the model: normalised; augmented and mixed where they are trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from torch import nn

from rlpheads.engine.report.skipped_images import SkipNotices
from rlpheads.loaders.augment.mixing import Mixer
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
    notices: SkipNotices = field(default_factory=SkipNotices)

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
        augmented = batch.with_images(self.augment(batch.images, batch.index, epoch))
        return cast("Batch", self.mixer(augmented, epoch, step))

    def _announce_skipped(self, batch: Batch) -> None:
        if batch.skipped:
            self.notices.announce(batch.skipped)
