"""What augmentation costs a device: rows sorted by operation, as they are and as one graph; milliseconds and launches a batch.

python benchmarks/bench_augment_graph.py --device cuda     # 256 images of 224 x 224
python benchmarks/bench_augment_graph.py --small           # 16 images of 32 x 32: does it run?

The same batches go both ways in turns, in another epoch each time. The bound by arithmetic reads the bytes and writes the
floats once, at the rate of a copy. On a GPU launches are kernels, copies and fills that the device ran, and nothing is mixed up
with the loader's work; on a CPU they are calls of operators, and the graph is traced but not compiled (by `aot_eager`). How
ours compare with torchvision and timm on a CPU is the question of bench_augment.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import count as count_from
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measuring import Results, interleave, ratio, ratio_interval
from torch import Tensor
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from rlpheads.loaders.augment.fixed_groups import CompiledAugment
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.augment.pipeline import Augment
from rlpheads.loaders.augment.spec import AugmentSpec, EraseSpec, PolicySpec

RAND = PolicySpec("rand", magnitude=27, magnitude_std=1.5, probability=0.5, operations="timm")
SPECS = {
    "RandAugment, rand-m9-inc1": AugmentSpec(policy=RAND),
    "RandAugment, rand-m9-inc1, bicubic": AugmentSpec(policy=RAND, interpolation="bicubic"),
    "RandAugment and random erasing (DeiT)": AugmentSpec(policy=RAND, erase=EraseSpec(0.25)),
    "three-augment and jitter (DeiT III)": AugmentSpec(policy=PolicySpec("three"), color_jitter=(0.3, 0.3, 0.3, 0.0)),
}


def launches(call: Callable[[], object], device: str) -> int:
    """Return how many kernels, copies and fills the device runs for a call; on a CPU how many operators are called."""
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as trace:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    if device == "cuda":
        return sum(event.device_type == DeviceType.CUDA for event in trace.events())
    by_others = [event for event in trace.events() if not event.cpu_parent or not is_operator(event.cpu_parent)]
    return sum(map(is_operator, by_others))


def is_operator(event: FunctionEvent) -> bool:
    """Whether an event is a call of one of torch's operators."""
    return bool(event.name.startswith("aten::"))


def measure(spec: AugmentSpec, shape: tuple[int, ...], rounds: int, device: str) -> dict[str, Any]:
    """Time both ways and a copy of as many bytes, in turns, and count their launches."""
    images = torch.randint(256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last).to(device)
    host_index, epochs = np.arange(len(images)), count_from(0)
    index = torch.from_numpy(host_index).to(device)
    by_operation = Augment(spec, Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 0).to(device)
    in_one_graph = CompiledAugment(by_operation, "inductor" if device == "cuda" else "aot_eager")
    source = torch.zeros(5 * images.numel() // 2, dtype=torch.uint8, device=device)  # a byte read, four written
    there = torch.empty_like(source)

    def augmented(augment: Augment | CompiledAugment) -> Tensor:
        changed: Tensor = augment(images, index, next(epochs), host_index)
        return changed

    calls: dict[str, Callable[[], object]] = {
        "sorted": partial(augmented, by_operation),
        "graph": partial(augmented, in_one_graph),
        "copy": partial(there.copy_, source),
    }
    seconds = interleave(calls, rounds, warmup=3, device=device)
    return {"seconds": seconds, "launches": {name: launches(calls[name], device) for name in ("sorted", "graph")}}


def line(name: str, found: dict[str, Any], device: str) -> str:
    """Return the figures of one kind of augmentation in words."""
    seconds, what = found["seconds"], "launches" if device == "cuda" else "operators"
    ways = [
        f"{way} {1e3 * median(seconds[way]):.2f} ms and {found['launches'][way]} {what}" for way in ("sorted", "graph")
    ]
    low, high = ratio_interval(seconds["graph"], seconds["sorted"])
    share = ratio(seconds["graph"], seconds["sorted"])
    return (
        f"{name}: {', '.join(ways)} a batch, {share:.2f} [{low:.2f}, {high:.2f}] of the time; "
        f"bound {1e3 * median(seconds['copy']):.3f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--small", action="store_true", help="16 images of 32 x 32: does it run?")
    parser.add_argument("--rounds", type=int, default=15, help="batches of each that are timed")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    shape = (16, 3, 32, 32) if arguments.small else (256, 3, 224, 224)
    results, said = Results("augment_graph", arguments.device, arguments.out), []
    for name, spec in SPECS.items():
        call = partial(measure, spec, shape, arguments.rounds, arguments.device)
        found = results.measure(call, augmentation=name, shape=shape, rounds=arguments.rounds)
        said.append(line(name, found, arguments.device))
        print(said[-1], flush=True)
    results.write("figures.txt", "\n".join(said) + "\n")


if __name__ == "__main__":
    main()
