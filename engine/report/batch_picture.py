"""Batches as pictures: what the network is given, augmented and mixed, with the classes that it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rlpheads.engine.terminal.text import printable
from rlpheads.loaders.contract.batch import Batch
from rlpheads.memorization.atomic_file import atomic_file

MOST_SHOWN = 64
"""Rows of a batch that a picture shows, the first ones."""
_COLUMNS = 8
_LEAST_SIDE = 112
_LINE = 13
_MARGIN = 4


def draw_batch(path: Path, batch: Batch, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> None:
    """Draw the first rows of a prepared batch as a PNG file; waits for the device.

    Below each image stand its index and class and, where it is mixed, the partner's, both with their weights. Small images are
    enlarged by whole numbers, so that each of their pixels is a square.

    Args:
        path: the file.
        batch: with images as the network gets them, float (B, 3, H, W).
        classes: names of the classes.
        mean: means of the normalisation, for pixels in [0, 1].
        std: its standard deviations.
    """
    tiles = _pixels(batch, mean, std)
    captions = _captions(batch, classes)
    height, width = tiles.shape[1:3]
    columns = min(_COLUMNS, len(tiles))
    lines = max(map(len, captions))
    cell = (width + _MARGIN, height + lines * _LINE + _MARGIN)
    sheet = Image.new("RGB", (columns * cell[0] + _MARGIN, -(-len(tiles) // columns) * cell[1] + _MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for place, (tile, words) in enumerate(zip(tiles, captions, strict=True)):
        left, top = _MARGIN + place % columns * cell[0], _MARGIN + place // columns * cell[1]
        sheet.paste(Image.fromarray(tile), (left, top))
        for number, line in enumerate(words):
            fitting = line
            while pen.textlength(fitting, font) > width:
                fitting = fitting[:-2] + "…"
            pen.text((left, top + height + number * _LINE), fitting, "black", font)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def _pixels(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """Return the first rows' images as bytes, enlarged where they are small: (R, H, W, 3)."""
    images = batch.images[:MOST_SHOWN].float().cpu()
    levels = images * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    pixels = (levels.nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    times = -(-_LEAST_SIDE // max(pixels.shape[1:3]))
    return pixels.repeat(times, axis=1).repeat(times, axis=2)


def _captions(batch: Batch, classes: Sequence[str]) -> list[list[str]]:
    """Return the lines below each of the first rows: its own sample and, where one is mixed in, its partner."""
    own = list(zip(batch.index[:MOST_SHOWN].tolist(), batch.targets[:MOST_SHOWN].tolist(), strict=True))
    if batch.partners is None:
        return [[_words(index, target, classes)] for index, target in own]
    partners = (batch.partners.index, batch.partners.targets, batch.partners.weight)
    mixed_in = zip(*(column[:MOST_SHOWN].tolist() for column in partners), strict=True)
    return [
        [_words(index, target, classes)]
        if weight == 1
        else [_words(index, target, classes, weight), _words(partner, its_target, classes, 1 - weight)]
        for (index, target), (partner, its_target, weight) in zip(own, mixed_in, strict=True)
    ]


def _words(index: int, target: int, classes: Sequence[str], weight: float | None = None) -> str:
    if index < 0:
        return "no image"  # a padding row, or one that was skipped
    share = "" if weight is None else f"{weight:.0%} "
    return f"{share}{printable(classes[target])} #{index}"
