"""Features of a checkpoint, read for probes: at any place of the network, of the un-augmented images in canonical order.

Places are named as `rlpheads.engine.model.taps` has it. The features are pooled and normalised as the run's heads see
them, in evaluation mode and in the run's precision.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner.precision import autocast
from rlpheads.engine.model.tapped_model import TappedModel
from rlpheads.engine.model.taps import Place
from rlpheads.engine.runs.opened_run import RunError
from rlpheads.engine.training.loading import evaluation_loader
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.memorization.probes.feature_blocks import BLOCK_ROWS

IN_MEMORY_BYTES = 2**30
"""Features of more bytes than this lie in a temporary file and are mapped into memory."""

_NUMBER = re.compile(r"-?\d+")


def parse_places(spec: str | None, model: TappedModel) -> tuple[Place, ...]:
    """Parse the value of `--taps`: places in the order of depth.

    Args:
        spec: names of places separated by commas, with or without brackets, or `all` blocks, or `inside` all blocks; None:
            the run's own taps.
        model: the model they are places of.

    Raises:
        RunError: no such place, one named twice, a block that cannot be looked into, or no taps of the run's own.
    """
    if spec is None:
        if not model.places:
            raise RunError("the run has no taps of its own (heads.taps is none); name places with --taps 0,5,3.attn")
        return model.places
    words = [word.strip() for word in spec.removeprefix("[").removesuffix("]").split(",")]
    try:
        if len(words) == 1 and words[0] in ("all", "inside"):
            return model.select(words[0])
        return model.select([int(word) if _NUMBER.fullmatch(word) else word for word in words])
    except ValueError as error:
        raise RunError(f"--taps: {error}") from error


class Reading(NamedTuple):
    """What a model makes of a batch: the class that it answers, int64 (B,), and features, float32 (B, D), at each place."""

    answer_B: Tensor
    features: list[Tensor]


class FeatureReader:
    """Runs a model on normalised images and returns its answers, and its features at some places.

    Args:
        model: tapped model in evaluation mode; its own taps are not used.
        places: where to read, from `parse_places`.
        norm: normalise each row (layer norm without parameters), as the run's heads do.
    """

    def __init__(self, model: TappedModel, places: Sequence[Place], norm: bool):
        self.places = tuple(places)
        self._model = model
        self._norm = norm

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Reading:
        """Return answers and features of (B, 3, H, W) images, the places in order."""
        tapped = TappedModel(self._model.backbone, self.places, self._model.pool)
        try:
            logits_BC, taps = tapped(images)
        finally:
            tapped.release()
        return Reading(logits_BC.argmax(1), [self._normalize(features_BD) for features_BD in taps])

    def _normalize(self, features_BD: Tensor) -> Tensor:
        features_BD = features_BD.float()
        return F.layer_norm(features_BD, features_BD.shape[-1:]) if self._norm else features_BD


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of one place over a split, in canonical order, as blocks on the device that a probe runs on.

    Attributes:
        table_ND: float32 (N, D) on the CPU, in memory or mapped from a file.
        is_read_N: bool (N,), whether the image could be read; the other rows hold nothing, and no block has them.
        device: where the blocks go.
    """

    table_ND: Tensor
    is_read_N: Tensor
    device: torch.device

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the blocks (B, D) of the images that could be read."""
        for block_BD, is_read_B in zip(self.table_ND.split(BLOCK_ROWS), self.is_read_N.split(BLOCK_ROWS), strict=True):
            yield (block_BD if is_read_B.all() else block_BD[is_read_B]).to(self.device)


@dataclass(frozen=True, eq=False)
class SplitFeatures:
    """What a model makes of a split.

    Attributes:
        answer_N: int64 (N,), the class that it answers for each image; −1 where one could not be read.
        is_read_N: bool (N,), which could be.
        tables: its features, a table for each place.
    """

    answer_N: Tensor
    is_read_N: Tensor
    tables: list[FeatureTable]


class FeatureStore:
    """Reads the features of splits into tables; a context manager, since large tables are temporary files.

    Args:
        config: settings of the run.
        reader: what is read; on the same device.
        device: where model and probes run.
        in_memory_bytes: tables larger than this are mapped from files in the system's temporary folder (`TMPDIR`).
    """

    def __init__(
        self, config: Config, reader: FeatureReader, device: torch.device, in_memory_bytes: int = IN_MEMORY_BYTES
    ):
        self._config = config
        self._reader = reader
        self._device = device
        self._in_memory_bytes = in_memory_bytes
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def read(self, source: ImageSource) -> SplitFeatures:
        """Pass a split through the model once.

        Under `data.on_error` "skip", images that cannot be read are left out of the tables.

        Raises:
            RunError: there is no room for the tables.
            ImageReadError: an image cannot be read and is not to be skipped.
        """
        config, num_samples = self._config, source.manifest.num_samples
        normalize = Normalize(config.data.mean, config.data.std).to(self._device)
        tables: list[Tensor] = []
        answer_N = torch.full((num_samples,), -1)
        for batch in evaluation_loader(config, source, self._device):
            with torch.no_grad(), autocast(self._device, config.precision):
                reading = self._reader(normalize(batch.images))
            features = [features_BD.cpu() for features_BD in reading.features]
            tables = tables or self._allocate(num_samples, [features_BD.shape[1] for features_BD in features])
            index_B = batch.index.cpu()
            seen_B = index_B >= 0
            answer_N[index_B[seen_B]] = reading.answer_B.cpu()[seen_B]
            for table_ND, features_BD in zip(tables, features, strict=True):
                table_ND[index_B[seen_B]] = features_BD[seen_B]
        is_read_N = answer_N >= 0
        return SplitFeatures(answer_N, is_read_N, [FeatureTable(each, is_read_N, self._device) for each in tables])

    def _allocate(self, num_samples: int, dims: Sequence[int]) -> list[Tensor]:
        num_bytes = 4 * num_samples * sum(dims)
        if num_bytes <= self._in_memory_bytes:
            return [torch.empty(num_samples, dim) for dim in dims]
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="rlpheads-")
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        free = shutil.disk_usage(folder).free
        if num_bytes > free:
            raise RunError(
                f"the features take {num_bytes / 2**30:.1f} GiB and {folder.parent.parent} has {free / 2**30:.1f} GiB "
                "left; name fewer places with --taps, or another folder with the variable TMPDIR"
            )
        return [_map_file(folder / str(position), num_samples, dim) for position, dim in enumerate(dims)]


def _map_file(path: Path, num_samples: int, dim: int) -> Tensor:
    table_ND = torch.from_file(str(path), shared=True, size=num_samples * dim, dtype=torch.float32).view(
        num_samples, dim
    )
    path.unlink()  # the table keeps it: its room is free again however this process ends
    return table_ND
