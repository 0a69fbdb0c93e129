"""What the update of heads of many labels costs: fused where the gradient is made, beside torch's fused step after it.

python benchmarks/bench_head_update.py time      # one head, K = 100,000, D = 768, 64 and 32 rows; 2 GB, minutes
python benchmarks/bench_head_update.py memory    # the same: peak above the process before the head was made
python benchmarks/bench_head_update.py step      # a whole step of ViT-B with heads of 10,000 labels at twelve taps; 6 GB

Both ways take turns in each round. A step of a head is its loss, forward and backward, the gradient's norm, and AdamW's update;
`bare` is the separate one without the norm, `clipped` the fused one with a norm that is needed first. With `--cpu` the times
are those of one thread's own work, which other processes disturb little: for a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import Results, in_fresh_process, interleave, peak_extra_bytes, ratio
from rich.console import Console
from rich.table import Table

from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.learning import OptimConfig, ScheduleConfig
from rlpheads.engine.learner.learner import Learner, build_heads
from rlpheads.engine.learner.parts import TrainedPart, build_part, with_pending_update
from rlpheads.engine.learner.schedule import Span
from rlpheads.engine.learner.step import TrainStep, build_routes
from rlpheads.engine.learner.update_guard import judge
from rlpheads.engine.model.builder import build_model
from rlpheads.loaders.contract.batch import Batch
from rlpheads.memorization.heads.combined_loss import TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import HeadTerms
from rlpheads.memorization.heads.rlp_heads import RLPHeads
from rlpheads.memorization.records.ledger import Ledger

WAYS = ("separate", "fused")
NUM_LABELS, DIM, ROWS = 100_000, 768, (64, 32)
CONFIG = Path(__file__).resolve().parent.parent / "configs" / "imagenet_vit_b.yaml"
OPTIM = OptimConfig("adamw", lr=1e-3, weight_decay=0.1)


class HeadStep:
    """One head and its optimizer, stepped on random features and labels."""

    def __init__(self, way: str, num_rows: int, num_labels: int = NUM_LABELS) -> None:
        heads = RLPHeads((DIM,), num_labels, 1, seed=0)
        optim = replace(OPTIM, clip_norm=1e6) if way == "clipped" else OPTIM
        part = build_part(heads, optim, ScheduleConfig("constant"), Span(1000, 1000), ddp=False)
        self.part: TrainedPart = part if way == "separate" else with_pending_update(part)
        generator = torch.Generator().manual_seed(0)
        self._features_BD = torch.randn(num_rows, DIM, generator=generator)
        self._labels_MB = torch.randint(num_labels, (1, num_rows), generator=generator)

    def __call__(self, *, bare: bool = False) -> None:
        """Take a step; bare: without the gradient's norm, where it can be left out."""
        num_rows = len(self._features_BD)
        losses = self.part.wrapped([self._features_BD], self._labels_MB, HeadTerms())
        valid_B = torch.ones(num_rows, dtype=torch.bool)
        combine_losses(losses, valid_B, num_rows, 1, TermWeights()).heads.backward()
        norm = torch.ones(()) if bare and self.part.pending is None else self.part.gradient_norm()
        self.part.update(0, norm)

    @property
    def held(self) -> int:
        """Bytes of weights and optimizer states."""
        states = [each for state in self.part.optimizer.state.values() for each in state.values()]
        return sum(each.numel() * each.element_size() for each in [*self.part.module.parameters(), *states])


class WholeStep:
    """A training step of ViT-B with heads at all twelve blocks, in two parts: forward and backward, norms and updates."""

    def __init__(self, way: str, num_labels: int, num_rows: int = 16) -> None:
        config = parse_config(["--config", str(CONFIG), "--heads.update", way, "--heads.labels", str(num_labels)])
        config = replace(
            config, device="cpu", precision="fp32", batch_size=num_rows, heads=replace(config.heads, shard="none")
        )
        model = build_model(config, 1000)
        build = partial(build_part, schedule=config.schedule, span=Span(100, 100), ddp=False)
        heads = build(build_heads(config, (DIM,) * 12, "heads", 1), config.heads.optim)
        heads = with_pending_update(heads) if way == "fused" else heads
        self._learner = Learner(build(model, config.optim), heads, None, None, (DIM,) * 12)
        labels_MN = torch.randint(num_labels, (1, 1000), dtype=torch.int32)
        ledger, routes = Ledger(1000, 12, 1), build_routes(config, model, 1)
        self._step = TrainStep(self._learner, labels_MN, ledger, routes, config, 0)
        images, index_B = torch.randn(num_rows, 3, 224, 224), torch.arange(num_rows)
        self._batch = Batch(images, index_B, index_B, num_rows)
        self._learner.train()

    def __call__(self) -> tuple[float, float]:
        """Return the seconds of both parts."""
        start = time.perf_counter()
        _, losses = self._step._forward_backward(self._batch, 0, TermWeights())
        middle = time.perf_counter()
        trained = self._learner.trained_parts
        self._learner.update(0, judge(trained, losses, 1))
        return middle - start, time.perf_counter() - middle


def measure_time(num_rows: int, rounds: int, num_labels: int, *, of_thread: bool = False) -> dict[str, Any]:
    """Seconds of each way, and the fused one's share of the others'; `of_thread`: those of one thread's work."""
    steps = {way: HeadStep(way, num_rows, num_labels) for way in (*WAYS, "clipped")}
    contenders: dict[str, Callable[[], None]] = {**steps, "bare": partial(steps["separate"], bare=True)}
    seconds = interleave(contenders, rounds, warmup=3, clock=time.thread_time if of_thread else time.perf_counter)
    ratios = {f"fused / {way}": ratio(seconds["fused"], seconds[way]) for way in ("separate", "bare")}
    ratios["clipped / bare"] = ratio(seconds["clipped"], seconds["bare"])
    return {"seconds": seconds, "ratios": ratios}


def peak_of(way: str, num_rows: int, num_labels: int) -> tuple[int, int]:
    """Bytes that a process takes for three steps, and those of weights and states."""
    HeadStep(way, num_rows, 2000)()  # what is loaded once
    held = []

    def steps() -> None:
        step = HeadStep(way, num_rows, num_labels)
        for _ in range(3):
            step()
        held.append(step.held)

    return peak_extra_bytes(steps), held[0]


def measure_memory(num_rows: int, num_labels: int) -> dict[str, Any]:
    """Peak over weights and states of each way."""
    found = {way: in_fresh_process(peak_of, way, num_rows, num_labels) for way in WAYS}
    return {"peak": found, "ratios": {f"{way}: peak / held": peak / held for way, (peak, held) in found.items()}}


def measure_step(rounds: int, num_labels: int) -> dict[str, Any]:
    """Seconds of a whole training step of ViT-B with twelve heads, and the share of norms and updates in it."""
    steps = {way: WholeStep(way, num_labels) for way in WAYS}
    for step in steps.values():
        step()
    parts: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS[number % 2 :] + WAYS[: number % 2]:
            parts[way].append(steps[way]())
    seconds = {way: [sum(each) for each in found] for way, found in parts.items()}
    shares = {f"share of the update, {way}": ratio([u for _, u in parts[way]], seconds[way]) for way in WAYS}
    return {"seconds": seconds, "ratios": {"fused / separate": ratio(seconds["fused"], seconds["separate"]), **shares}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("theme", choices=["time", "memory", "step"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--labels", type=int, help="K; 100,000 by default, in a whole step 10,000")
    parser.add_argument("--cpu", action="store_true", help="time: one thread, its own seconds")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    if arguments.cpu:
        torch.set_num_threads(1)
    results = Results(f"head_update_{arguments.theme}", "cpu", arguments.out)
    labels = arguments.labels or (10_000 if arguments.theme == "step" else NUM_LABELS)
    calls = {
        "time": lambda num_rows: measure_time(num_rows, arguments.rounds, labels, of_thread=arguments.cpu),
        "memory": lambda num_rows: measure_memory(num_rows, labels),
        "step": lambda _: measure_step(arguments.rounds, labels),
    }
    table = Table("rows", "K", "what", "ratio", title=arguments.theme)
    for num_rows in ROWS if arguments.theme != "step" else (16,):
        line = results.measure(partial(calls[arguments.theme], num_rows), num_rows=num_rows, num_labels=labels)
        for name, value in line["ratios"].items():
            table.add_row(str(num_rows), f"{labels:,}", name, f"{value:.3f}")
    console = Console(record=True, width=100)
    console.print(table)
    results.write("table.txt", console.export_text())


if __name__ == "__main__":
    main()
