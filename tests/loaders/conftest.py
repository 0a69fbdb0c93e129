"""Image trees on disk, and small sources and loaders, shared by the tests of the loaders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlpheads.loaders.sources.digits import DigitsSource, open_digits


def random_image(seed: int, height: int = 24, width: int = 32) -> Image.Image:
    """A smooth random image, so that JPEG keeps it close to what it was."""
    rough = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def write_tree(tmp_path: Path) -> Callable[[dict[str, list[str]]], Path]:
    """Write {folder: [file names]} below a fresh root; every file a different small image of the kind of its suffix."""

    def write(tree: dict[str, list[str]], root: Path = tmp_path / "data") -> Path:
        root.mkdir(parents=True, exist_ok=True)
        seed = 0
        for folder, names in tree.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for name in names:
                random_image(seed, height=16 + seed % 7, width=20 + seed % 5).save(root / folder / name)
                seed += 1
        return root

    return write


@pytest.fixture(scope="session")
def digits() -> tuple[DigitsSource, DigitsSource]:
    return open_digits(seed=0)
