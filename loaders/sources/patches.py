"""Tiles of ten colour photographs that come inside scikit-image and scikit-learn: real images that need no download."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.decoding.decode import decode_rgb
from rlpheads.loaders.sources.splits import DEFAULT_VAL_FRACTION, stratified_split

SIDE = 32
MOST_TILES = 256
"""Tiles of one photograph: larger ones are cut as often as those of 512 × 512, so that no class outweighs the others."""
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
"""Package and file of each class, in the order of the classes."""
_INSTALL = {"skimage": "pip install scikit-image", "sklearn": "pip install scikit-learn"}


@dataclass(frozen=True)
class PatchesSource:
    """Some of the tiles.

    Attributes:
        manifest: The split; names are patches/PHOTOGRAPH/TOP-LEFT with the tile's corner in pixels.
        images: uint8 (N, 3, 32, 32).
    """

    manifest: Manifest
    images: Tensor

    def read(self, index: int) -> Tensor:
        """Return one tile: uint8 (3, 32, 32)."""
        return self.images[index]


def open_patches(*, val_fraction: float = DEFAULT_VAL_FRACTION, seed: int) -> tuple[PatchesSource, PatchesSource]:
    """Return the training and the held-out tiles of 32 × 32 pixels; the class is the photograph they are cut from.

    Tiles do not overlap, so no pixel of a held-out one is in a training image, but neighbours look alike: held-out
    accuracy says how well a photograph is recognised, and nothing about the world.

    Raises:
        DatasetError: If a package or its photograph is not there, or for a fraction outside (0, 1).
    """
    names: list[bytes] = []
    tiles: list[Tensor] = []
    targets: list[int] = []
    for target, photograph in enumerate(PHOTOGRAPHS):
        cut = _tiles(_read_photograph(photograph))
        names += [f"patches/{photograph}/{top:04d}-{left:04d}".encode() for top, left in cut]
        tiles += cut.values()
        targets += [target] * len(cut)
    whole = Manifest.from_columns(
        names, targets, np.full(len(names), 3 * SIDE * SIDE), classes=tuple(PHOTOGRAPHS), root=None, split="all"
    )
    position = {name: place for place, name in enumerate(names)}
    images = torch.stack(tiles)
    train, val = stratified_split(whole, val_fraction, seed)
    return (
        PatchesSource(train, images[[position[name] for name in train.names()]]),
        PatchesSource(val, images[[position[name] for name in val.names()]]),
    )


def _tiles(pixels_3HW: Tensor) -> dict[tuple[int, int], Tensor]:
    """Cut a photograph into whole tiles, by (top, left); where there are too many, some are kept, evenly spread."""
    _, height, width = pixels_3HW.shape
    corners = list(itertools.product(range(0, height - SIDE + 1, SIDE), range(0, width - SIDE + 1, SIDE)))
    num_kept = min(len(corners), MOST_TILES)
    kept = [corners[number * len(corners) // num_kept] for number in range(num_kept)]
    return {(top, left): pixels_3HW[:, top : top + SIDE, left : left + SIDE] for top, left in kept}


def _read_photograph(name: str) -> Tensor:
    """Decode a photograph from the folder of its package, which is not imported: that would take a second."""
    package, file = PHOTOGRAPHS[name]
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise DatasetError(
            f"the photograph {name!r} of patches comes with {package}, which is missing: {_INSTALL[package]}"
        )
    path = Path(found.submodule_search_locations[0]) / file
    try:
        return decode_rgb(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"this version of {package} keeps no photograph {name!r} at {path}: {error}") from error
