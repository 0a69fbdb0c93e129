"""What each augmentation costs an image: ours on whole batches, against torchvision's and timm's, image by image.

python benchmarks/bench_augment.py [--quick] [--asked] [--device cpu|cuda] [--threads 1] [--sizes 32 224]

All contenders of a row are timed in turn in one process, on one thread unless told otherwise; the medians of the rounds are
in milliseconds an image, and a quotient is the median over the rounds of ours ÷ theirs, with its 95 % interval. torchvision
works on byte tensors, timm on Pillow images (decoded before the time begins), each one by one as a loader's worker would;
timm's random erasing and mixup work on batches, as in its own training loop. `--asked` times at 224 what a figure is asked
for, and prints it. On a GPU only ours are timed, the libraries' being the host's work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import count as count_from
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import torch
from augment_chain import our_chain, photographs, timm_chain
from measuring import Results, interleave, ratio, ratio_interval
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from timm.data import auto_augment
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torchvision.transforms import v2

from rlpheads.kernels.pixels.mixing_native import load_native_mixing
from rlpheads.kernels.pixels.pixel_native import load_native_pixels
from rlpheads.loaders.augment.boxes import Cutout, PadCrop
from rlpheads.loaders.augment.boxes import RandomErasing as OurErasing
from rlpheads.loaders.augment.mixing import Mixer, MixSpec
from rlpheads.loaders.augment.pixel_plan import PixelPlanner, run_sorted
from rlpheads.loaders.augment.policies import ColorJitter, make_policy
from rlpheads.loaders.augment.spec import EraseSpec, Interpolation, Policy, PolicySpec
from rlpheads.loaders.contract.batch import Batch

Call = Callable[[], object]
ROWS_AT_ONCE = {"cpu": 2**18, "cuda": 2**24}
"""Bytes of images in a part, as `rlpheads.loaders.augment.pipeline.Augment` cuts a batch for what it does to numbers."""
ASKED = {
    ("RandAugment, rand-m9-inc1", "timm"): 0.35,
    ("RandAugment, rand-m9-inc1, nearest", "timm"): 0.7,
    ("RandAugment, rand-m9-inc1, bilinear", "timm"): 0.7,
    ("RandAugment, rand-m9-inc1, bicubic", "timm"): 0.7,
    ("mixup and CutMix", "timm"): 0.6,
    ("from JPEG to mixed floats", "timm"): 0.77,  # at least 1.3 times as many images
    ("from JPEG to mixed floats, bicubic warps", "timm"): 0.77,
}
"""Most that ours may take of the other's time at 224 x 224 on one thread."""


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
        self.run = (load_native_pixels() if device == "cpu" else None) or run_sorted
        self.epochs = count_from(0)

    def planned(self, planner: PixelPlanner, interpolation: Interpolation = "nearest") -> Call:
        """Return a call that plans and does what one of our planners does to the batch, in another epoch each time."""
        images, index = self.on_device[0], np.arange(len(self.index))
        height, width = self.bytes.shape[-2:]

        def call() -> Tensor:
            steps = planner.plan(index, next(self.epochs), (height, width))
            kinds, values = (np.stack(column) for column in zip(*steps, strict=True))
            return self.run(images, kinds, values, interpolation)

        return call

    def ours(self, module: nn.Module) -> Call:
        """Return a call of one of our modules on the batch's numbers, in parts."""
        module = module.to(self.index.device)
        images = self.on_device[1]

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

    def policy(name: Policy, interpolation: Interpolation = "nearest", **settings: Any) -> Call:
        return images.planned(make_policy(PolicySpec(name, **settings), 0), interpolation)

    side = tensors.shape[-1]
    erasing = RandomErasing(1.0, mode="pixel", device="cpu")
    targets = torch.zeros(len(tensors), dtype=torch.int64, device=images.index.device)
    in_place = load_native_mixing() if images.index.device.type == "cpu" else None
    mixer = Mixer(MixSpec(mixup=0.8, cutmix=1.0), 0, in_place)
    host_index = np.arange(len(tensors))
    batch = Batch(images.on_device[1], targets, images.index, len(tensors), host_index=host_index)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode="pair", num_classes=1000)
    three = v2.RandomChoice([v2.Grayscale(3), v2.RandomSolarize(128, p=1.0), v2.GaussianBlur(13, (0.1, 2.0))])
    timm_means = {"img_mean": (124, 116, 104)}
    m9: dict[str, Any] = {"magnitude": 27, "probability": 0.5, "operations": "timm"}
    same_warps: dict[str, dict[str, Call]] = {}
    for interpolation in get_args(Interpolation):
        theirs = {**timm_means, "interpolation": Image.Resampling[interpolation.upper()]}
        same_warps[f"RandAugment, rand-m9-inc1, {interpolation}"] = {
            "ours": policy("rand", interpolation, **m9),
            "timm": images.each(rand_augment_transform("rand-m9-inc1", theirs), images.pillow),
        }
    return {
        "RandAugment, 2 operations": {
            "ours": policy("rand"),
            "torchvision": images.each(v2.RandAugment(2, 9), tensors),
        },
        "RandAugment, rand-m9-inc1": {
            "ours": policy("rand", **m9),
            "timm": images.each(rand_augment_transform("rand-m9-inc1", timm_means), images.pillow),
        },
        **same_warps,
        **chains(side, len(tensors), images),
        "TrivialAugment": {"ours": policy("trivial"), "torchvision": images.each(v2.TrivialAugmentWide(), tensors)},
        "AutoAugment (CIFAR-10)": {
            "ours": policy("auto_cifar10"),
            "torchvision": images.each(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), tensors),
        },
        "three-augment": {"ours": policy("three"), "torchvision": images.each(three, tensors)},
        "colour jitter": {
            "ours": images.planned(ColorJitter((0.4, 0.4, 0.4, 0.0), 0)),
            "torchvision": images.each(v2.ColorJitter(0.4, 0.4, 0.4), tensors),
            "timm": images.each(v2.ColorJitter(0.4, 0.4, 0.4), images.pillow),
        },
        "padded crop": {
            "ours": images.planned(PadCrop(4, 0)),
            "torchvision": images.each(v2.RandomCrop(side, padding=4), tensors),
        },
        "cutout": {"ours": images.ours(Cutout(side // 2, 0))},
        "random erasing, noise": {
            "ours": images.ours(OurErasing(EraseSpec(1.0), 0)),
            "torchvision": images.each(v2.RandomErasing(p=1.0, value="random"), numbers),
            "timm": lambda: erasing(numbers.clone()),
        },
        "mixup and CutMix": {
            "ours": lambda: mixer(batch.with_images(batch.images.clone()), next(images.epochs), 0),
            "timm": lambda: mixup(numbers.clone(), torch.zeros(len(numbers), dtype=torch.int64)),
        },
    }


def chains(side: int, count: int, images: Images) -> dict[str, dict[str, Call]]:
    """Return the rows of the whole way from files to floats, which the host goes; timm's warps are bilinear or bicubic."""
    if side < 64 or images.index.device.type != "cpu":
        return {}
    files = photographs(count)
    theirs = timm_chain(files, side)
    return {
        "from JPEG to mixed floats": {"ours": our_chain(files, side, "nearest", images.epochs), "timm": theirs},
        "from JPEG to mixed floats, bicubic warps": {
            "ours": our_chain(files, side, "bicubic", images.epochs),
            "timm": theirs,
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
        "interval": {name: ratio_interval(seconds["ours"], times) for name, times in seconds.items() if name != "ours"},
        "seconds": seconds,
    }


def table(title: str, lines: dict[str, dict[str, Any]], asked: dict[tuple[str, str], float]) -> Table:
    """Return the figures of one size, and beside a ratio the most that is asked."""
    shown = Table("augmentation", title=title)
    for name in ("ours", "torchvision", "timm", "ours ÷ torchvision", "ours ÷ timm"):
        shown.add_column(name, justify="right")
    for row, line in lines.items():
        times = [line["milliseconds"].get(name) for name in ("ours", "torchvision", "timm")]
        ratios = []
        for name in ("torchvision", "timm"):
            text = ""
            if name in line["ratio"]:
                low, high = line["interval"][name]
                text = f"{line['ratio'][name]:.2f} ({low:.2f}–{high:.2f})"
            most = asked.get((row, name))
            ratios.append(text if most is None else f"{text}, asked {most}")
        shown.add_row(row, *(f"{value:.3f}" if value is not None else "" for value in times), *ratios)
    return shown


def clamp_posterize() -> None:
    """Let timm's PosterizeIncreasing keep a bit at least: at magnitude 10 it asks for none, which Pillow 13 refuses."""
    levels = auto_augment.LEVEL_TO_ARG["PosterizeIncreasing"]
    auto_augment.LEVEL_TO_ARG["PosterizeIncreasing"] = lambda level, hparams: (max(1, levels(level, hparams)[0]),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds, for a look")
    parser.add_argument("--asked", action="store_true", help="only what a figure is asked for, at 224")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[32, 224], help="sides of the images, in pixels (32 224)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results, console = Results("augment", given.device, given.out), Console(width=120, record=True)
    clamp_posterize()
    rounds = 3 if given.quick else 15
    for side in [224] if given.asked else given.sizes:
        count = 64
        images = Images(count, side, given.device)
        lines = {}
        asked = ASKED if side == 224 and given.device == "cpu" else {}
        chosen = {row for row, _ in ASKED}
        for row, calls in contenders(images).items():
            if given.asked and row not in chosen:
                continue
            case = {"augmentation": row, "side": side, "count": count, "rounds": rounds, "threads": given.threads}
            lines[row] = results.measure(partial(measure, calls, count, rounds, given.device), **case)
        title = f"ms an image of {side} x {side}, batches of {count}, {given.threads} thread(s), {given.device}"
        console.print(table(title, lines, asked))
    results.write("table.txt", console.export_text())
    console.print(f"in {results.folder}")


if __name__ == "__main__":
    main()
