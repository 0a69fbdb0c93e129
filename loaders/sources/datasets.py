"""One way to open any dataset, and the protocols of an image source."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.manifest import ExifPolicy, Manifest
from rlpheads.loaders.sources import digits, patches
from rlpheads.loaders.sources.beton import count_store_classes, is_store, open_store
from rlpheads.loaders.sources.cifar import open_cifar
from rlpheads.loaders.sources.image_folder import ImageFolderSource, count_class_folders, open_image_folder
from rlpheads.loaders.sources.splits import DEFAULT_VAL_FRACTION
from rlpheads.loaders.sources.synthetic import SyntheticSpec, open_synthetic

if TYPE_CHECKING:  # it samples the sources of this module
    from rlpheads.loaders.sources.scan_cache import ScanCache

WITH_ROOT = ("imagefolder", "cifar10", "cifar100")
"""Data sets that lie in a folder of the user's."""
WITHOUT_ROOT = {
    "digits": "come with scikit-learn",
    "patches": "come with scikit-image and scikit-learn",
    "synthetic": "are computed",
}
"""Data sets that need no folder, and why."""
DATASETS = (*WITHOUT_ROOT, *WITH_ROOT)


class ImageSource(Protocol):
    """A split whose images can be read one by one, in any order, from any process.

    Attributes:
        manifest: The samples of the split.
    """

    @property
    def manifest(self) -> Manifest:
        """The samples of the split."""
        ...

    def read(self, index: int) -> Tensor:
        """Read the image at a canonical index: uint8 (3, H, W), red, green, blue.

        Raises:
            ImageReadError: If it cannot be read.
        """
        ...


@runtime_checkable
class EncodedSource(Protocol):
    """A source whose images, or some of them, lie in files: `read` is `decode` of what `encoded` returns."""

    def encoded(self, index: int) -> bytes | None:
        """Return the bytes of an image's file; None where `read` is the only way to the image.

        Raises:
            ImageReadError: If the file cannot be read.
        """
        ...

    def decode(self, index: int, data: bytes) -> Tensor:
        """Decode what `encoded` returned for this index: uint8 (3, H, W).

        Raises:
            ImageReadError: If it is not a whole image.
        """
        ...


def open_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    val_fraction: float | None = None,
    seed: int,
    download: bool = False,
    synthetic: SyntheticSpec | None = None,
    verified: str | Path | None = None,
    listing: Path | None = None,
    cache: ScanCache | None = None,
    exif: ExifPolicy = "ignore",
) -> tuple[ImageSource, ImageSource]:
    """Open a dataset's training and held-out split.

    Args:
        name: "digits" (scikit-learn's, 8 × 8), "patches" (32 × 32, of photographs in scikit-image and scikit-learn),
            "synthetic", "cifar10", "cifar100", or "imagefolder" (ROOT/{train,val}/CLASS/FILE, or ROOT/CLASS/FILE).
        root: Folder of the images, where the dataset lies in one; or for any dataset that of a store made of it.
        val_fraction: Fraction of each class that is held out where the dataset has no split of its own; for digits and
            patches 0.2 unless given.
        seed: Key of that split.
        download: Fetch CIFAR where it is missing.
        synthetic: How many synthetic images.
        cache: Where listings of large trees are kept between starts; None: an imagefolder is scanned.
        listing: Folder of the listings of a run that goes on, whose samples are taken of an imagefolder.
        exif: Whether images of an imagefolder are turned as their EXIF orientation says; of a store, whether they were.
        verified: Folder in which `rlpheads verify` wrote what it found of an imagefolder; None: in the root, if anywhere.

    Raises:
        DatasetError: If the dataset is unknown or not there, or its tree has another form; the message says what to do.
    """
    if root is not None and name in DATASETS and is_store(Path(root).expanduser()):
        if verified is not None:
            raise DatasetError(f"{root} is a store, which knows what could not be read: leave data.verified out")
        return open_store(Path(root).expanduser(), name, split_key(name, val_fraction, seed), exif)
    _check_name_and_root(name, root)
    if val_fraction is not None and name in ("cifar10", "cifar100", "synthetic"):
        raise DatasetError(f"{name} has held-out images of its own: set val_fraction to null")
    if exif == "apply" and name != "imagefolder":
        raise DatasetError(f"the images of {name} have no EXIF orientation: leave data.exif at ignore")
    if name in ("digits", "patches"):
        open_split = digits.open_digits if name == "digits" else patches.open_patches
        return open_split(val_fraction=DEFAULT_VAL_FRACTION if val_fraction is None else val_fraction, seed=seed)
    if name == "synthetic":
        return open_synthetic(synthetic or SyntheticSpec())
    folder = Path(root or "").expanduser()
    if name == "imagefolder":
        found = None if verified is None else Path(verified).expanduser()
        train, val = open_image_folder(
            folder, val_fraction=val_fraction, seed=seed, verified=found, listing=listing, cache=cache
        )
        train, val = (replace(manifest, exif=exif) for manifest in (train, val))
        return ImageFolderSource(train), ImageFolderSource(val)
    return open_cifar(name, folder, download=download)


def count_classes(name: str, root: str | Path | None = None, synthetic: SyntheticSpec | None = None) -> int:
    """Return the number of classes of a dataset without listing its images; the arguments are those of `open_dataset`.

    Raises:
        DatasetError: If the dataset is unknown or not there; one that is there may still be refused when it is opened.
    """
    folder = Path(root or "").expanduser()
    if root is not None and name in DATASETS and is_store(folder):
        return count_store_classes(folder)
    _check_name_and_root(name, root)
    if name == "imagefolder":
        return count_class_folders(folder)
    if name == "synthetic":
        return (synthetic or SyntheticSpec()).classes
    return {
        "digits": digits.NUM_CLASSES,
        "patches": len(patches.PHOTOGRAPHS),
        "cifar10": 10,
        "cifar100": 100,
    }[name]


def split_key(name: str, val_fraction: float | None, seed: int) -> str | None:
    """Return what decides which samples are held out, in words; None where the dataset has splits of its own."""
    default = DEFAULT_VAL_FRACTION if name in ("digits", "patches") else None
    fraction = default if val_fraction is None else val_fraction
    return None if fraction is None else f"val_fraction {fraction} and seed {seed}"


def _check_name_and_root(name: str, root: str | Path | None) -> None:
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DatasetError(f"there is no dataset {name!r}: it must be one of {', '.join(DATASETS)}{hint}")
    if root is not None and name in WITHOUT_ROOT:
        raise DatasetError(f"the {name} images {WITHOUT_ROOT[name]}: root must be left out, not {str(root)!r}")
    if root is None and name in WITH_ROOT:
        raise DatasetError(f"{name} needs root, the folder of the images")
