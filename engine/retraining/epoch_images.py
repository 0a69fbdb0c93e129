"""The images of a run's epochs as whole tables: with the crops and augmentations that the run trains on, and without."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlpheads.engine.config.schema import Config
from rlpheads.engine.retraining.stacked_networks import RetrainingError
from rlpheads.engine.training.loading import ALONE, crop_spec, evaluation_loader, training_loader
from rlpheads.engine.training.preparation import build_preparation
from rlpheads.loaders.sources.datasets import ImageSource

MAX_BYTES = 2**30
"""Tables of epochs that are kept; others are made again for each group of networks."""


class EpochImages:
    """Prepared images of a training split, (N, 3, H, W) for each epoch, on a device."""

    def __init__(self, config: Config, source: ImageSource, device: torch.device):
        # Every image in every epoch: which of them a network is trained on is its own affair.
        self._config = replace(config, data=replace(config.data, partial="pad"))
        self._source, self._device = source, device
        self._kept: dict[int, Tensor] = {}
        if self._num_bytes > MAX_BYTES:
            raise RetrainingError(
                f"the training images take {self._num_bytes / 2**30:.1f} GiB; networks that are trained together need them "
                f"in memory, at most {MAX_BYTES / 2**30:.0f} GiB: take a part with --data.subset.fraction"
            )

    @property
    def _num_bytes(self) -> int:
        return 4 * self._shape(max(self._config.data.image_size, self._config.evaluation_size)).numel()

    def _shape(self, side: int) -> torch.Size:
        return torch.Size((self._source.manifest.num_samples, 3, side, side))

    def trained(self, epoch: int) -> Tensor:
        """Return the images as the run trains on them in an epoch."""
        if epoch not in self._kept:
            table = self._read_trained(epoch)
            if (len(self._kept) + 1) * self._num_bytes > MAX_BYTES:
                return table
            self._kept[epoch] = table
        return self._kept[epoch]

    def plain(self) -> Tensor:
        """Return the images without augmentation."""
        preparation = build_preparation(self._config, self._device, 0)
        table = torch.zeros(self._shape(self._config.evaluation_size), device=self._device)
        for batch in evaluation_loader(self._config, self._source, self._device):
            rows_B = batch.index >= 0
            table[batch.index[rows_B]] = preparation.for_evaluation(batch).images[rows_B]
        return table

    def _read_trained(self, epoch: int) -> Tensor:
        loader = training_loader(self._config, self._source, self._device, ALONE)
        preparation = build_preparation(self._config, self._device, loader.order.seed)
        table = torch.zeros(self._shape(crop_spec(self._config.data).at(epoch).image_size), device=self._device)
        loader.set_epoch(epoch)
        for step, batch in enumerate(loader):
            rows_B = batch.index >= 0
            table[batch.index[rows_B]] = preparation.for_training(batch, epoch, step).images[rows_B]
        return table
