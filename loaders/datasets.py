"""Where images come from: one way to open any dataset, and what a loader needs to know of it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Protocol

from torch import Tensor

from rlpheads.loaders.digits import DEFAULT_VAL_FRACTION, open_digits
from rlpheads.loaders.image_folder import ImageFolderSource, open_image_folder
from rlpheads.loaders.manifest import DatasetError, Manifest

DATASETS = ("digits", "imagefolder")


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


def open_dataset(
    name: str, root: str | Path | None = None, *, val_fraction: float | None = None, seed: int
) -> tuple[ImageSource, ImageSource]:
    """Open a dataset's training and held-out split.

    Args:
        name: "digits" (scikit-learn's, 8 × 8) or "imagefolder" (ROOT/{train,val}/CLASS/FILE, or ROOT/CLASS/FILE).
        root: Folder of the images; none for the digits.
        val_fraction: Fraction of each class that is held out where the dataset has no split of its own; for the digits
            0.2 unless given.
        seed: Key of that split.

    Raises:
        DatasetError: If the dataset is unknown or not there, or its tree has another form; the message says what to do.
    """
    if name == "digits":
        if root is not None:
            raise DatasetError(f"the digits come with scikit-learn: root must be left out, not {str(root)!r}")
        return open_digits(val_fraction=DEFAULT_VAL_FRACTION if val_fraction is None else val_fraction, seed=seed)
    if name == "imagefolder":
        if root is None:
            raise DatasetError("imagefolder needs root, the folder of the images")
        train, val = open_image_folder(Path(root).expanduser(), val_fraction=val_fraction, seed=seed)
        return ImageFolderSource(train), ImageFolderSource(val)
    close = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise DatasetError(f"there is no dataset {name!r}: it must be one of {', '.join(DATASETS)}{hint}")
