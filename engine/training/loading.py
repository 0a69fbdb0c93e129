"""A run's settings as the loaders take them: the order, crop and options of a split, and how images are augmented and mixed.

Training, its evaluations and the audit make their loaders here, so that a setting means the same to all three.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace

import torch

from rlpheads.engine.config.data import DaliConfig, DataConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed.launch import Rank
from rlpheads.engine.distributed.progress import Patience
from rlpheads.engine.runs.sources import training_order
from rlpheads.loaders.adapters.dali_options import DaliOptions
from rlpheads.loaders.augment.mixing import MixSpec
from rlpheads.loaders.augment.spec import AugmentSpec, EraseSpec, PolicySpec
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.delivery import deliver
from rlpheads.loaders.contract.loader import Loader
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.datasets import ImageSource

ALONE = Rank(rank=0, world_size=1, local_rank=0)
"""The only process there is."""


def training_loader(config: Config, source: ImageSource, device: torch.device, rank: Rank) -> Loader:
    """Make the loader of this rank's share of shuffled, randomly cropped batches, on its device."""
    return _make_loader(config, source, training_order(config, source), device, rank, train=True)


def evaluation_loader(config: Config, source: ImageSource, device: torch.device, rank: Rank = ALONE) -> Loader:
    """Make the loader of this rank's share of a whole split on its device: canonical order, centre crops, each sample once."""
    num_samples = source.manifest.num_samples
    wanted = min(config.eval.batch_size or config.batch_size, num_samples)  # no more padding than it takes
    batch_size = -(-wanted // rank.world_size) * rank.world_size
    order = Order(num_samples, batch_size, 0, False, "pad")
    return _make_loader(config, source, order, device, rank, train=False)


def _make_loader(
    config: Config, source: ImageSource, order: Order, device: torch.device, rank: Rank, *, train: bool
) -> Loader:
    data = config.data
    options = LoaderOptions(
        rank=rank.rank,
        world_size=rank.world_size,
        num_workers=min(data.workers, len(os.sched_getaffinity(0))),  # more would only take turns
        pin_memory=device.type == "cuda",
        keep_workers=train,  # evaluation is rare: its workers would only take memory
        on_error=data.on_error,
        # Less than what the rank has that waits for it: the worker is named.
        worker_silence_s=2 / 3 * Patience(config.distributed.timeout).silence_s,
    )
    dali = dali_options(data.dali, device)
    crop = crop_spec(data) if train else evaluation_crop(config)
    loader = make_loader(data.loader, source, order, crop, train=train, options=options, dali=dali)
    return deliver(loader, device)


def crop_spec(data: DataConfig) -> CropSpec:
    """Return how images are cropped in training, and at its size in evaluation."""
    return CropSpec(
        image_size=data.image_size,
        early_sizes=data.early_sizes,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        hflip=data.hflip,
        crop_fraction=data.eval_crop_fraction,
        kind="whole" if data.crop == "pad" else "random_resized",
        interpolation=data.interpolation,
    )


def evaluation_crop(config: Config) -> CropSpec:
    """Return how images are cropped in evaluations, clean passes and audits."""
    return replace(crop_spec(config.data), image_size=config.evaluation_size, early_sizes=())


def dali_options(settings: DaliConfig, device: torch.device) -> DaliOptions:
    """Return where DALI decodes for a model on `device`."""
    on_gpu = device.type == "cuda" and settings.decode != "cpu"
    return DaliOptions(
        device_id=(device.index or 0) if on_gpu else None,
        hardware_share=settings.hardware_share,
        largest_image=settings.largest_image,
    )


def mix_spec(data: DataConfig) -> MixSpec:
    """Return how pairs of training images are mixed."""
    return MixSpec(**asdict(data.mix))


def augment_spec(data: DataConfig) -> AugmentSpec:
    """Return what is done to training images on the device."""
    augment = data.augment
    return AugmentSpec(
        padding=data.crop_padding if data.crop == "pad" else 0,
        policy=PolicySpec(
            augment.policy,
            augment.rand_ops,
            augment.rand_magnitude,
            augment.rand_magnitude_std,
            augment.rand_probability,
            augment.rand_operations,
        ),
        color_jitter=augment.color_jitter,
        cutout=augment.cutout,
        erase=EraseSpec(augment.erase, augment.erase_area, augment.erase_ratio, augment.erase_fill),
        interpolation=augment.interpolation,
    )
