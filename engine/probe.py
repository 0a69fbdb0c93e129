"""Features of a checkpoint, read for probes: at any block, and inside blocks, of the un-augmented images in canonical order.

A place is named by its block and, inside the block, by what the residual stream has just passed:

    3        output of block 3, as the run's own taps read it
    3.attn   residual stream of block 3 after its attention was added
    3.mlp    residual stream of block 3 after its MLP was added: the block's output, by another name

The features are pooled and normalised as the run's heads see them, in evaluation mode and in the run's precision.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from rlpheads.engine.config import Config
from rlpheads.engine.config_errors import nearest
from rlpheads.engine.loading import dali_options
from rlpheads.engine.models import TappedModel
from rlpheads.engine.precision import autocast
from rlpheads.engine.run_loading import RunError
from rlpheads.loaders.batch import Loader, LoaderOptions
from rlpheads.loaders.crops import CropSpec
from rlpheads.loaders.datasets import ImageSource
from rlpheads.loaders.delivery import deliver
from rlpheads.loaders.device_transforms import Normalize
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.order import Order
from rlpheads.memorization.feature_blocks import BLOCK_ROWS
from rlpheads.memorization.taps import pool_tokens, select_taps

IN_MEMORY_BYTES = 2**30
"""Features of more bytes than this lie in a temporary file and are mapped into memory."""

PRE_NORM_BLOCKS = (Block, EvaBlock)
"""Blocks x + attn(norm1(x)), then x + mlp(norm2(x)): what enters `norm2` is the stream after attention."""

_PLACE = re.compile(r"(-?\d+)(?:\.(attn|mlp))?")


class Place(NamedTuple):
    """Where features are read: after block `block`, or inside it, after `part`."""

    block: int
    part: str | None = None

    def __str__(self) -> str:
        return f"{self.block}.{self.part}" if self.part else str(self.block)

    @property
    def depth(self) -> tuple[int, bool]:
        """Sort key: places in the order in which an image passes them; two names of one place are equal."""
        return self.block, self.part != "attn"


def select_places(spec: str | None, model: TappedModel) -> tuple[Place, ...]:
    """Read the value of `--taps`: places in the order of depth.

    Args:
        spec: numbers and names separated by commas (a negative number counts from the end); "all" blocks; "inside": after
            attention and after MLP of every block; None: the run's own taps.
        model: the model they are places of.

    Raises:
        RunError: no such place, one named twice, a model whose blocks cannot be looked into, or no taps of the run's own.
    """
    if spec is None:
        if not model.taps:
            raise RunError("the run has no taps of its own (heads.taps is none); name places with --taps 0,5,3.attn")
        return tuple(map(Place, model.taps))
    named = {"all": (None,), "inside": ("attn", "mlp")}
    if spec in named:
        places = [Place(block, part) for block in range(model.num_blocks) for part in named[spec]]
    else:
        places = [_read_place(text.strip(), model) for text in spec.split(",")]
    if inside := [place for place in places if place.part]:
        _check_inside(inside[0], model)
    by_depth: dict[tuple[int, bool], Place] = {}
    for place in places:
        if place.depth in by_depth:
            raise RunError(f"--taps names one place twice, as {by_depth[place.depth]} and as {place}")
        by_depth[place.depth] = place
    return tuple(by_depth[depth] for depth in sorted(by_depth))


class FeatureReader:
    """Runs a model on normalised images and returns its features (B, D) at some places, as float32.

    Args:
        model: tapped model in evaluation mode; its own taps are not looked at.
        places: where to read, from `select_places`.
        norm: normalise each row (layer norm without parameters), as the run's heads do.
    """

    def __init__(self, model: TappedModel, places: Sequence[Place], norm: bool):
        self.places = tuple(places)
        self._norm = norm
        blocks = sorted({place.block for place in places if place.part != "attn"})
        self._tapped = TappedModel(model.backbone, blocks, model.pool)
        self._inside = sorted({place.block for place in places if place.part == "attn"})

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the features of (B, 3, H, W) images at each place, in order."""
        with self._streams_after_attention() as streams:
            _, taps = self._tapped(images)
        found = {Place(block).depth: tap for block, tap in zip(self._tapped.taps, taps, strict=True)}
        found |= {Place(block, "attn").depth: self._pooled(streams[block]) for block in self._inside}
        return [self._normalised(found[place.depth]) for place in self.places]

    @contextmanager
    def _streams_after_attention(self) -> Iterator[dict[int, Tensor]]:
        """Collect what enters the second norm of the blocks, while the context is open."""
        streams: dict[int, Tensor] = {}

        def keep(block: int) -> Any:
            def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                streams[block] = inputs[0]

            return hook

        blocks = self._tapped.backbone.blocks if self._inside else []
        handles = [blocks[block].norm2.register_forward_pre_hook(keep(block)) for block in self._inside]
        try:
            yield streams
        finally:
            for handle in handles:
                handle.remove()

    def _pooled(self, tokens_BLD: Tensor) -> Tensor:
        num_prefix = self._tapped.backbone.num_prefix_tokens
        return pool_tokens(tokens_BLD[:, num_prefix:], tokens_BLD[:, :num_prefix], self._tapped.pool)

    def _normalised(self, features_BD: Tensor) -> Tensor:
        features_BD = features_BD.float()
        return F.layer_norm(features_BD, features_BD.shape[-1:]) if self._norm else features_BD


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of one place over a split, in canonical order, as blocks on the device that a probe runs on.

    Attributes:
        table_ND: float32 (N, D) on the CPU, in memory or mapped from a file.
        device: where the blocks go.
    """

    table_ND: Tensor
    device: torch.device

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the blocks (B, D)."""
        for block_BD in self.table_ND.split(BLOCK_ROWS):
            yield block_BD.to(self.device)


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

    def read(self, source: ImageSource) -> list[FeatureTable]:
        """Pass a split through the model once; return a table for each place.

        Raises:
            RunError: there is no room for the tables.
        """
        config, num_samples = self._config, source.manifest.num_samples
        normalize = Normalize(config.data.mean, config.data.std).to(self._device)
        tables: list[Tensor] = []
        for batch in eval_loader(config, source, self._device):
            with torch.no_grad(), autocast(self._device, config.precision):
                features = [features_BD.cpu() for features_BD in self._reader(normalize(batch.images))]
            tables = tables or self._allocate(num_samples, [features_BD.shape[1] for features_BD in features])
            index_B = batch.index.cpu()
            seen_B = index_B >= 0
            for table_ND, features_BD in zip(tables, features, strict=True):
                table_ND[index_B[seen_B]] = features_BD[seen_B]
        return [FeatureTable(table_ND, self._device) for table_ND in tables]

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


def eval_loader(config: Config, source: ImageSource, device: torch.device) -> Loader:
    """Make a loader of a whole split onto a device, without augmentation, in canonical order, for this process alone."""
    num_samples = source.manifest.num_samples
    batch_size = min(config.eval.batch_size or config.batch_size, num_samples)
    loader = make_loader(
        config.data.loader,
        source,
        Order(num_samples, batch_size, 0, False, "pad"),
        CropSpec(image_size=config.data.image_size, crop_fraction=config.data.eval_crop_fraction),
        train=False,
        options=LoaderOptions(
            num_workers=config.data.workers,
            pin_memory=device.type == "cuda",
            dali=dali_options(config.data.dali, device),
        ),
    )
    return deliver(loader, device)


def _read_place(text: str, model: TappedModel) -> Place:
    match = _PLACE.fullmatch(text)
    if match is None:
        choices = [
            "all",
            "inside",
            *(str(Place(b, part)) for b in range(model.num_blocks) for part in (None, "attn", "mlp")),
        ]
        close = nearest(text, choices)
        raise RunError(
            f"--taps: there is no place {text!r}; allowed: all, inside, or a list such as 0,-1,3.attn,3.mlp"
            + (f"; nearest: {close}" if close else "")
        )
    try:
        (block,) = select_taps([int(match[1])], model.num_blocks)
    except ValueError as error:
        raise RunError(f"--taps: {error}") from error
    return Place(block, match[2])


def _check_inside(place: Place, model: TappedModel) -> None:
    """Refuse to look into blocks that are not known to be pre-norm transformer blocks."""
    blocks = getattr(model.backbone, "blocks", None)
    if blocks is None or len(blocks) != model.num_blocks:
        raise RunError(
            f"--taps {place}: {type(model.backbone).__name__} is not a stack of transformer blocks; use {place.block}"
        )
    if not isinstance(blocks[place.block], PRE_NORM_BLOCKS):
        raise RunError(
            f"--taps {place}: inside a {type(blocks[place.block]).__name__} the residual stream is not known; "
            f"use {place.block}"
        )


def _map_file(path: Path, num_samples: int, dim: int) -> Tensor:
    return torch.from_file(str(path), shared=True, size=num_samples * dim, dtype=torch.float32).view(num_samples, dim)
