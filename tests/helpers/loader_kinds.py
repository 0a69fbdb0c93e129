"""Trees and loaders for the tests that every kind of loader must pass."""

from pathlib import Path

import numpy as np
from PIL import Image

from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.loader import Loader
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.factory import make_loader
from rlpheads.loaders.sources.beton import open_beton
from rlpheads.loaders.sources.datasets import ImageSource, open_dataset
from rlpheads.loaders.store.image_encoding import Encoding
from rlpheads.loaders.store.write_ffcv import Job, write_beton

KINDS = ("torch", "ffcv", "dali")


def write_ramps(root: Path, num_images: int, longest: int = 200) -> ImageSource:
    """Write JPEGs of many sizes whose red says the column and whose green says the row, and open them as one split.

    Whatever was cut out of one can be read off its pixels. Of four classes, so that the order of files mixes them.
    """
    random = np.random.default_rng(num_images)
    for split, count in (("train", num_images), ("val", 4)):
        for number in range(count):
            height, width = random.integers(longest // 4, longest, 2, endpoint=True)
            rows, columns = np.mgrid[:height, :width]
            pixels_HWC = np.stack([columns, rows, np.full_like(rows, number % 256)], axis=-1).astype(np.uint8)
            folder = root / split / f"class{number % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels_HWC).save(folder / f"{number:04d}.jpg", quality=100, subsampling=0)
    return open_dataset("imagefolder", root, seed=0)[0]


def loader_of(
    kind: str,
    source: ImageSource,
    crop: CropSpec,
    batch_size: int,
    *,
    train: bool = True,
    order: Order | None = None,
    **options,
) -> Loader:
    """Make a loader, in this order or: shuffled with seed 3, dropping nothing, or in canonical order."""
    source = _stored(source) if kind == "ffcv" else source
    order = order or Order(source.manifest.num_samples, batch_size, 3, shuffle=train, partial="pad")
    return make_loader(kind, source, order, crop, train=train, options=LoaderOptions(**options))


def _stored(source: ImageSource) -> ImageSource:
    """Return the store of a tree, which is written where there is none yet."""
    root = source.manifest.root
    assert root is not None
    path = root.with_name(f"{root.name}.store") / "train.beton"
    if not path.exists():
        write_beton(Job(source, path, "imagefolder", None, Encoding("raw")))
    return open_beton(path)
