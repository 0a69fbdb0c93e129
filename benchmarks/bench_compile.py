"""What torch.compile gains a training step of the engine: each mode of `runtime.compile` beside the step as it is.

python benchmarks/bench_compile.py --device cuda                         # ViT-S/16, batches of 256 in bf16, 12 taps
python benchmarks/bench_compile.py --device cuda --mode max-autotune     # one of true, reduce-overhead, max-autotune
python benchmarks/bench_compile.py --small                               # a micro model: does it run?

Batches are augmented (RandAugment, mixup), so that on a GPU the augmentation is a graph, too; on a CPU it is C++ in any case.
The compiled step and the other take turns in one process. A first step compiles; after some more there should be no graph that
was not there, whatever batches draw, and no break at all.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_step import VIT_S, Case, Device, engine_step
from measuring import Results, interleave, ratio, ratio_interval, time_once
from torch._dynamo.utils import counters

from rlpheads.engine.distributed import launch

MODES: dict[str, Any] = {"true": True, "reduce-overhead": "reduce-overhead", "max-autotune": "max-autotune"}
FULL = Case(12, 1_000, "bf16", augmented=True, rows=256, model=VIT_S)
SMALL = Case(2, 50, augmented=True, side=32, rows=8, micro=True)
SETTLING_STEPS = 20
"""After which nothing may be compiled any more."""


def num_graphs() -> int:
    """Return how many graphs this process has compiled."""
    return int(counters["stats"]["unique_graphs"])


def measure(case: Case, rounds: int, device: Device) -> dict[str, Any]:
    """Time compiled steps in turns with others, and count graphs and breaks."""
    with ExitStack() as open_now:
        folder = Path(open_now.enter_context(tempfile.TemporaryDirectory()))
        launched = open_now.enter_context(launch.start(device))
        torch._dynamo.reset()
        counters.clear()
        _, plain = engine_step(case._replace(compile=False), folder / "plain", launched)
        _, compiled = engine_step(case, folder / "compiled", launched)
        first_s = time_once(compiled, device)
        for _ in range(SETTLING_STEPS - 1):
            compiled()
        num_settled = num_graphs()
        seconds = interleave({"compiled": compiled, "plain": plain}, rounds, warmup=3, device=device)
        return {
            "seconds": seconds,
            "first_step_seconds": first_s,
            "graphs": num_settled,
            "later_graphs": num_graphs() - num_settled,
            "breaks": sum(counters["graph_break"].values()),
        }


def line(mode: str, found: dict[str, Any]) -> str:
    """Return a mode's figures in words."""
    compiled, plain = found["seconds"]["compiled"], found["seconds"]["plain"]
    low, high = ratio_interval(compiled, plain)
    return (
        f"compile {mode}: {1e3 * median(compiled):.1f} ms a step, {ratio(compiled, plain):.3f} [{low:.3f}, {high:.3f}] "
        f"of the step as it is; first step {found['first_step_seconds']:.1f} s; "
        f"{found['graphs']} graphs after {SETTLING_STEPS} steps, "
        f"{found['later_graphs']} more after {SETTLING_STEPS + len(compiled) + 3}, {found['breaks']} breaks"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=tuple(MODES), nargs="+", default=list(MODES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--small", action="store_true", help="a micro model: does it run?")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each that are timed")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    results, said = Results("compile", arguments.device, arguments.out), []
    for mode in arguments.mode:
        case = (SMALL if arguments.small else FULL)._replace(compile=MODES[mode])
        call = partial(measure, case, arguments.rounds, arguments.device)
        said.append(line(mode, results.measure(call, rounds=arguments.rounds, **case._asdict())))
        print(said[-1], flush=True)
    results.write("figures.txt", "\n".join(said) + "\n")


if __name__ == "__main__":
    main()
