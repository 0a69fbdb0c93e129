"""What each augmentation costs an image: ours on whole batches, against torchvision's and timm's, image by image.

python benchmarks/bench_augment.py [--quick] [--device cpu|cuda] [--threads 1] [--sizes 32 224]

All contenders of a row are timed in turn in one process, on one thread unless told otherwise; the medians of the rounds are
in milliseconds an image, and a quotient is the median over the rounds of ours ÷ theirs. torchvision works on byte tensors,
timm on Pillow images (decoded before the time begins), each one by one as a loader's worker would; timm's random erasing
and mixup work on batches, as in its own training loop. On a GPU only ours are timed, the libraries' being the host's work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import Results, interleave, ratio
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torchvision.transforms import v2

from rlpheads.loaders.augment.boxes import Cutout, PadCrop
from rlpheads.loaders.augment.boxes import RandomErasing as OurErasing
from rlpheads.loaders.augment.mixing import Mixer, MixSpec
from rlpheads.loaders.augment.policies import ColorJitter, make_policy
from rlpheads.loaders.augment.spec import EraseSpec, PolicySpec
from rlpheads.loaders.contract.batch import Batch

Call = Callable[[], object]
ROWS_AT_ONCE = {"cpu": 2**18, "cuda": 2**24}
"""Bytes of images in a part, as `rlpheads.loaders.augment.pipeline.Augment` cuts a batch."""


class Images:
    """One batch of windows of two photographs: as bytes, as normalised numbers, as Pillow images."""

    def __init__(self, count: int, side: int, device: str) -> None:
        pictures = [torch.from_numpy(each.copy()).permute(2, 0, 1) for each in load_sample_images().images]
        windows = [
            pictures[n % 2][:, (n * 37) % (427 - side) :, (n * 61) % (640 - side) :][:, :side, :side]
            for n in range(count)
        ]
        self.bytes = torch.stack(windows)
        self.numbers = (self.bytes / 255 - 0.45) / 0.22
        self.pillow = [v2.functional.to_pil_image(image) for image in self.bytes]
        self.index = torch.arange(count, device=device)
        self.on_device = (self.bytes.to(device), self.numbers.to(device))
        self.part = max(1, ROWS_AT_ONCE[device] // self.bytes[0].numel())

    def ours(self, module: nn.Module, *, on_numbers: bool = False) -> Call:
        """Return a call of one of our modules on the batch, in parts."""
        module = module.to(self.index.device)
        images = self.on_device[on_numbers]

        def call() -> list[Tensor]:
            parts = zip(images.split(self.part), self.index.split(self.part), strict=True)
            return [module(*part, 0) for part in parts]

        return call

    def each(self, function: Callable[[Any], object], images: Any) -> Call:
        """Return a call of a library's function on every image."""
        return lambda: [function(image) for image in images]


def contenders(images: Images) -> dict[str, dict[str, Call]]:
    """Return the calls of every row, by row and contender."""
    tensors, numbers = images.bytes, images.numbers

    def policy(name: str, **settings: Any) -> Call:
        return images.ours(make_policy(PolicySpec(name, **settings), 0))  # type: ignore[arg-type]

    side = tensors.shape[-1]
    erasing = RandomErasing(1.0, mode="pixel", device="cpu")
    targets = torch.zeros(len(tensors), dtype=torch.int64, device=images.index.device)
    mixer = Mixer(MixSpec(mixup=0.8, cutmix=1.0), 0).to(images.index.device)
    batch = Batch(images.on_device[1], targets, images.index, len(tensors))
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode="pair", num_classes=1000)
    three = v2.RandomChoice([v2.Grayscale(3), v2.RandomSolarize(128, p=1.0), v2.GaussianBlur(13, (0.1, 2.0))])
    timm_rand = rand_augment_transform("rand-m9-inc1", {"img_mean": (124, 116, 104)})
    return {
        "RandAugment, 2 operations": {
            "ours": policy("rand"),
            "torchvision": images.each(v2.RandAugment(2, 9), tensors),
        },
        "RandAugment, rand-m9-inc1": {
            "ours": policy("rand", magnitude=27, probability=0.5, operations="timm"),
            "timm": images.each(timm_rand, images.pillow),
        },
        "TrivialAugment": {"ours": policy("trivial"), "torchvision": images.each(v2.TrivialAugmentWide(), tensors)},
        "AutoAugment (CIFAR-10)": {
            "ours": policy("auto_cifar10"),
            "torchvision": images.each(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), tensors),
        },
        "three-augment": {"ours": policy("three"), "torchvision": images.each(three, tensors)},
        "colour jitter": {
            "ours": images.ours(ColorJitter((0.4, 0.4, 0.4, 0.0), 0)),
            "torchvision": images.each(v2.ColorJitter(0.4, 0.4, 0.4), tensors),
            "timm": images.each(v2.ColorJitter(0.4, 0.4, 0.4), images.pillow),
        },
        "padded crop": {
            "ours": images.ours(PadCrop(4, 0)),
            "torchvision": images.each(v2.RandomCrop(side, padding=4), tensors),
        },
        "cutout": {"ours": images.ours(Cutout(side // 2, 0), on_numbers=True)},
        "random erasing, noise": {
            "ours": images.ours(OurErasing(EraseSpec(1.0), 0), on_numbers=True),
            "torchvision": images.each(v2.RandomErasing(p=1.0, value="random"), numbers),
            "timm": lambda: erasing(numbers.clone()),
        },
        "mixup and CutMix": {
            "ours": lambda: mixer(batch, 0, 0),
            "timm": lambda: mixup(numbers.clone(), torch.zeros(len(numbers), dtype=torch.int64)),
        },
    }


def measure(calls: dict[str, Call], count: int, rounds: int, device: str) -> dict[str, Any]:
    """Return milliseconds an image of every contender, and ours over the others."""
    if device != "cpu":
        calls = {"ours": calls["ours"]}
    seconds = interleave(calls, rounds, device=device)
    found = {name: 1e3 * median(times) / count for name, times in seconds.items()}
    return {
        "milliseconds": found,
        "ratio": {name: ratio(seconds["ours"], times) for name, times in seconds.items() if name != "ours"},
        "seconds": seconds,
    }


def table(title: str, lines: dict[str, dict[str, Any]]) -> Table:
    """Return the figures of one size."""
    shown = Table("augmentation", title=title)
    for name in ("ours", "torchvision", "timm", "ours ÷ torchvision", "ours ÷ timm"):
        shown.add_column(name, justify="right")
    for row, line in lines.items():
        times = [line["milliseconds"].get(name) for name in ("ours", "torchvision", "timm")]
        ratios = [line["ratio"].get(name) for name in ("torchvision", "timm")]
        cells = [f"{value:.3f}" if value is not None else "" for value in times]
        shown.add_row(row, *cells, *(f"{value:.2f}" if value is not None else "" for value in ratios))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds, for a look")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[32, 224], help="sides of the images, in pixels (32 224)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results, console = Results("augment", given.device, given.out), Console(width=120, record=True)
    rounds = 3 if given.quick else 15
    for side in given.sizes:
        count = 64 if side <= 64 or given.device != "cpu" else 16
        images = Images(count, side, given.device)
        lines = {}
        for row, calls in contenders(images).items():
            case = {"augmentation": row, "side": side, "count": count, "rounds": rounds, "threads": given.threads}
            lines[row] = results.measure(partial(measure, calls, count, rounds, given.device), **case)
        title = f"ms an image of {side} x {side}, batches of {count}, {given.threads} thread(s), {given.device}"
        console.print(table(title, lines))
    results.write("table.txt", console.export_text())
    console.print(f"in {results.folder}")


if __name__ == "__main__":
    main()
