"""Make an ImageNet-like tree of JPEG files from the two photographs that come with scikit-learn.

python benchmarks/make_photo_tree.py TREE --train 64 --val 32 --classes 4

Every file is a crop of a photograph, resized to --width x --height and saved at --quality, a pure function of its
class, number and split: the same command makes the same bytes. It is for throughput, memory and tests, not for learning
anything about the world: the classes differ in which photograph, and which part of it, they are cut from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def make_tree(root: Path, num_images: dict[str, int], num_classes: int, size: tuple[int, int], quality: int) -> None:
    """Write `num_images[split]` files for each split, spread evenly over the classes.

    Args:
        root: folder of the tree; ROOT/SPLIT/CLASS/NUMBER.jpg are written.
        num_images: images of each split.
        num_classes: classes, c0000 and on.
        size: width and height of every image in pixels.
        quality: JPEG quality, 1 to 95.
    """
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for split, count in num_images.items():
        for number in range(count):
            label = number % num_classes
            folder = root / split / f"c{label:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            random = np.random.default_rng([len(split), label, number])
            photograph = photographs[label % len(photographs)]
            picture = photograph.resize(size, Image.Resampling.BICUBIC, box=_crop(photograph.size, random))
            picture.save(folder / f"{number:07d}.jpg", quality=quality)


def _crop(size: tuple[int, int], random: np.random.Generator) -> tuple[float, float, float, float]:
    """Return a box of a third to two thirds of each side."""
    width, height = (side * random.uniform(1 / 3, 2 / 3) for side in size)
    left, top = random.uniform(0, size[0] - width), random.uniform(0, size[1] - height)
    return left, top, left + width, top + height


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the tree; must not exist")
    parser.add_argument("--train", type=int, default=64, help="training images (64)")
    parser.add_argument("--val", type=int, default=32, help="held-out images (32)")
    parser.add_argument("--classes", type=int, default=4, help="classes (4)")
    parser.add_argument("--width", type=int, default=500, help="pixels (500)")
    parser.add_argument("--height", type=int, default=375, help="pixels (375)")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality (90)")
    given = parser.parse_args()
    if given.root.exists():
        parser.error(f"{given.root} exists; name a new folder")
    if min(given.train, given.val) < given.classes:
        parser.error(f"each of {given.classes} classes needs an image in each split")
    counts = {"train": given.train, "val": given.val}
    make_tree(given.root, counts, given.classes, (given.width, given.height), given.quality)
    print(f"{given.train + given.val} images in {given.root}")


if __name__ == "__main__":
    main()
