"""Canaries and label noise of a run: planted in its training split as the settings say, and told beside its ledgers."""

from __future__ import annotations

from pathlib import Path

from rlpheads.engine.config.data import DataConfig
from rlpheads.loaders.sources.canary_source import PlantedSource, Planting, plant
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.memorization.records.canary_file import Canaries, write_canaries

CANARIES_FILE = "canaries.parquet"
"""Name of the file, in a run folder, that tells the planted samples from the others."""


def planted(train: ImageSource, data: DataConfig, seed: int) -> ImageSource:
    """Return the training split with what the settings plant in it; the split itself if that is nothing.

    Raises:
        DatasetError: the split has too few samples.
    """
    canaries = data.canaries
    repeats = canaries.repeats if isinstance(canaries.repeats, list) else [canaries.repeats]
    planting = Planting(
        data.label_noise,
        canaries.mislabelled,
        canaries.repeated,
        tuple(repeats),
        canaries.near_duplicates,
        noise_kind=data.label_noise_kind,
    )
    return plant(train, planting, seed)


def write_truth(train: ImageSource, folder: Path) -> None:
    """Write which samples were planted into a run folder, if any were."""
    if isinstance(train, PlantedSource):
        canaries = Canaries(fingerprint=train.manifest.fingerprint, **vars(train.truth))
        write_canaries(folder / CANARIES_FILE, canaries)
