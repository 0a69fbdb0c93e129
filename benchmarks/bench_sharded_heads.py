"""What heads cost a rank, held whole and sharded by class: bytes sent a step, and memory, measured beside the formula.

python benchmarks/bench_sharded_heads.py wire      # 4 ranks, K = 1,000 and 100,000, two taps of D = 128, 1,024 rows
python benchmarks/bench_sharded_heads.py memory    # 1.28 million labels: one tap of D = 192 at 4 ranks, 32 rows (4 GB in all),
                                                   # twelve of D = 16 at 64 simulated ones beside whole heads (13 GB)
python benchmarks/bench_sharded_heads.py parameter --ranks 2    # bytes a parameter, K = 10,000 at twelve taps of D = 768: 4 GB
python benchmarks/bench_sharded_heads.py step --ranks 2         # times of steps of the same heads, interleaved: 9 GB

ddp: whole heads under DDP; none: whole heads whose gradients travel as they are made, each rank stepping its ranges; class:
sharded. Bytes are those that the loopback device counts, headers of TCP included, less those of as many barriers without steps
between them. As root the ranks have a loopback device of their own (`unshare --net`); else keep the machine's quiet. Memory is
the resident memory of each rank's process: what it is at the peak of three steps above what it was before the heads were made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torch.distributed as dist
from measuring import Results, ratio
from rich.console import Console
from rich.table import Table
from simulated_heads import measure_simulated

from rlpheads.engine.config.learning import OptimConfig, ScheduleConfig
from rlpheads.engine.distributed import host_memory, launch
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.learner.averaged_part import average_part
from rlpheads.engine.learner.parts import TrainedPart, build_part, with_pending_update
from rlpheads.engine.learner.schedule import Span
from rlpheads.engine.learner.shard_choice import HeadWorkload
from rlpheads.engine.learner.sharded_part import shard_part
from rlpheads.memorization.heads.class_shards import ClassShards
from rlpheads.memorization.heads.combined_loss import TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import HeadTerms
from rlpheads.memorization.heads.rlp_heads import RLPHeads
from rlpheads.memorization.heads.sharded_heads import ShardedRLPHeads

NUM_STEPS = 5
KINDS = ("held", "peak")
"""Of bytes at a rank: weights, gradients and optimizer states; what the process has at its peak."""
OPTIM = OptimConfig("adamw", lr=1e-3, weight_decay=0.0)
SHARDS = ("ddp", "none", "class")
TWELVE: dict[str, Any] = {"num_labels": 10_000, "dims": [768] * 12, "num_rows": 64, "regularizer": None}
NUM_ROUNDS = 9
CASES: dict[str, list[dict[str, Any]]] = {
    "wire": [
        {"shard": shard, "num_labels": labels, "dims": [128, 128], "num_rows": 1024, "regularizer": kind}
        for shard, kind in (("none", None), ("class", None), ("class", "unlikelihood"))
        for labels in (1_000, 100_000)
    ],
    "parameter": [{"shard": shard, **TWELVE} for shard in SHARDS],
    "step": [TWELVE],
    "memory": [
        {"shard": "class", "num_labels": 1_280_000, "dims": [192], "num_rows": 32, "regularizer": None},
        {
            "shard": "simulated",
            "num_labels": 1_280_000,
            "dims": [16] * 12,
            "num_rows": 64,
            "regularizer": None,
            "ranks": 64,
        },
    ],
}


@dataclass(frozen=True)
class Bench:
    """Heads at one rank, and random features for them to read."""

    launched: Launch
    case: dict[str, Any]
    part: TrainedPart

    @classmethod
    def build(cls, launched: Launch, case: dict[str, Any]) -> Bench:
        """Make the heads of a case."""
        shape = (case["dims"], case["num_labels"], 1)
        span = Span(10, 10)
        if case["shard"] == "ddp":
            part = build_part(RLPHeads(*shape, seed=0), OPTIM, ScheduleConfig(), span, ddp=True)
        elif case["shard"] == "none":
            part = build_part(RLPHeads(*shape, seed=0), OPTIM, ScheduleConfig(), span, ddp=False)
            part = average_part(part, ClassShards.of_mesh(launched.mesh()))
        else:
            heads = ShardedRLPHeads(*shape, seed=0, shards=ClassShards.of_mesh(launched.mesh()))
            part = with_pending_update(shard_part(build_part(heads, OPTIM, ScheduleConfig(), span, ddp=False)))
        return cls(launched, case, part)

    def step(self, number: int) -> float:
        """Take one step on this rank's rows; return the loss."""
        ranks, num_rows = self.launched.world_size, self.case["num_rows"]
        generator = torch.Generator().manual_seed(self.launched.rank.rank)
        taps = [torch.randn(num_rows // ranks, dim, generator=generator).requires_grad_() for dim in self.case["dims"]]
        labels_MB = torch.randint(self.case["num_labels"], (1, num_rows // ranks), generator=generator)
        kind = self.case["regularizer"]
        terms = HeadTerms(kind, tuple(range(len(taps))) if kind else ())
        valid_B = torch.ones(num_rows // ranks, dtype=torch.bool)
        losses = self.part.wrapped(taps, labels_MB, terms)
        weights = TermWeights(factor=1.0 if kind else 0.0)
        combined = combine_losses(losses, valid_B, num_rows, ranks, weights)
        (self.part.scaled(combined.heads) + combined.backbone).backward()
        self.part.update(number, self.part.gradient_norm())
        return float(combined.heads.detach())

    def workload(self) -> HeadWorkload:
        """The same in the terms of the formula."""
        dims = tuple(self.case["dims"])
        trained = dims if self.case["regularizer"] else ()
        shape = (dims, self.case["num_labels"], (1, 0), None, self.case["num_rows"])
        shard = self.case["shard"]
        return HeadWorkload(*shape, trained, False, 4, 2, fused=shard == "class", in_ranges=shard == "none")


def measure_wire(launched: Launch, case: dict[str, Any]) -> dict[str, Any]:
    """Bytes that a rank sends in a step."""
    bench = Bench.build(launched, case)
    for number in range(2):
        bench.step(number)

    def sent(num_steps: int) -> int:
        dist.barrier()
        before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
        dist.barrier()
        for number in range(num_steps):
            bench.step(number)
        dist.barrier()
        return psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before

    measured = (sent(NUM_STEPS) - sent(0)) / NUM_STEPS / launched.world_size
    work = bench.workload()
    costs = work.sharded(launched.world_size) if case["shard"] == "class" else work.whole(launched.world_size)
    return {"sent": measured, "formula": costs.traffic}


def measure_steps(launched: Launch, case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of steps, all ways in turn in each round; the slowest rank's."""
    benches = {shard: Bench.build(launched, {"shard": shard, **case}) for shard in SHARDS}
    seconds: dict[str, list[float]] = {shard: [] for shard in SHARDS}
    for number in range(NUM_ROUNDS + 2):
        first = number % len(SHARDS)
        for shard in SHARDS[first:] + SHARDS[:first]:
            dist.barrier()
            start = time.perf_counter()
            benches[shard].step(number)
            dist.barrier()
            seconds[shard].append(time.perf_counter() - start)
    counted = {shard: each[2:] for shard, each in seconds.items()}
    return {"seconds": counted, "ratios": {shard: ratio(counted[shard], counted["ddp"]) for shard in SHARDS}}


def measure_memory(launched: Launch, case: dict[str, Any]) -> dict[str, Any]:
    """Bytes of weights, gradients and states at this rank, and of the process at its peak."""
    Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    bench = Bench.build(launched, case)
    losses = [bench.step(number) for number in range(3)]
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    parameters = list(bench.part.module.parameters())
    states = [state for each in bench.part.optimizer.state.values() for state in each.values() if state.dim()]
    num_parameters = sum(each.numel() for each in parameters)
    held = 4 * (num_parameters * (1 + (case["shard"] != "class")) + sum(state.numel() for state in states))
    ranks: list[Any] = [None] * launched.world_size
    dist.all_gather_object(ranks, {"held": held, "peak": int(found[1]) * 1024 - before, "losses": losses})
    work = bench.workload()
    costs = work.sharded(launched.world_size) if case["shard"] == "class" else work.whole(launched.world_size)
    return {"ranks": ranks, "formula": costs.memory, "parameters": work.num_parameters(work.num_classes)}


def measure_simulated_ranks(case: dict[str, Any]) -> dict[str, Any]:
    """Bytes that each simulated rank holds beside the formula, errors beside whole heads, and losses."""
    found = measure_simulated(case)
    work = HeadWorkload(tuple(case["dims"]), case["num_labels"], (1, 0), None, case["num_rows"], (), False, 4, 2)
    ranks = [{"held": 4 * numbers} for numbers in found.pop("held")]
    of_process = {"process_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    return {**found, **of_process, "ranks": ranks, "formula": work.sharded(case["ranks"]).memory}


def run_rank(theme: str, number: int) -> None:
    """Measure one case at this rank, and print it at the main one."""
    host_memory.keep_freed_memory()  # as a training does
    torch.set_num_threads(1)
    if CASES[theme][number].get("shard") == "simulated":
        print(json.dumps(measure_simulated_ranks(CASES[theme][number])), flush=True)
        return
    with launch.start("cpu") as launched:
        measure = {"wire": measure_wire, "step": measure_steps}.get(theme, measure_memory)
        found = measure(launched, CASES[theme][number])
        if launched.is_main:
            print(json.dumps(found), flush=True)


def run_ranks(theme: str, number: int, num_ranks: int) -> dict[str, Any]:
    """Measure one case in processes of its own, on a loopback device of their own where that is allowed."""
    num_processes = 1 if CASES[theme][number].get("shard") == "simulated" else num_ranks
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command += [__file__, theme, "--case", str(number)]
    if os.geteuid() == 0:
        command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=env)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def rows_of(case: dict[str, Any], line: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a case in the table."""
    named = (f"{case['num_labels']:,}", str(case["regularizer"]))
    for shard, seconds in line.get("seconds", {}).items():
        yield shard, *named, "seconds a step", f"{median(seconds):.3f}", "", f"{line['ratios'][shard]:.3f} of ddp's"
    measured = [("sent a step", line["sent"])] if "sent" in line else []
    for number, rank in enumerate(line.get("ranks", [])):
        measured += [(f"{what} at rank {number}", rank[what]) for what in KINDS if what in rank]
    for what, value in measured:
        formula = line["formula"]
        yield case["shard"], *named, what, f"{value:,.0f}", f"{formula:,}", f"{value / formula:.4f}"
        if "parameters" in line:
            yield case["shard"], *named, "", f"{value / line['parameters']:.2f} a parameter", "", ""


def told_of(case: dict[str, Any], line: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a case that have no formula: errors beside whole heads, and the losses of its steps."""
    named = (case.get("shard", ""), f"{case['num_labels']:,}", str(case["regularizer"]))
    for what, error in line.get("errors", {}).items():
        yield *named, f"{what}, beside whole heads", f"{error:.1e}", "", ""
    if "process_bytes" in line:
        yield *named, "peak of the process that holds all ranks", f"{line['process_bytes']:,}", "", ""
    losses = line.get("losses") or next((rank["losses"] for rank in line.get("ranks", [])), None)
    if losses:
        yield *named, "loss of each step", ", ".join(f"{loss:.3f}" for loss in losses), "", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("theme", choices=CASES)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    if arguments.case is not None:
        run_rank(arguments.theme, arguments.case)
        return
    results = Results(f"sharded_heads_{arguments.theme}", "cpu", arguments.out)
    table = Table("shard", "K", "regulariser", "what", "measured", "formula", "ratio", title=arguments.theme)
    for number, case in enumerate(CASES[arguments.theme]):
        line = results.measure(
            partial(run_ranks, arguments.theme, number, arguments.ranks),
            **{"ranks": arguments.ranks, **case},
        )
        for row in (*rows_of(case, line), *told_of(case, line)):
            table.add_row(*row)
    console = Console(record=True, width=110)
    console.print(table)
    results.write("table.txt", console.export_text())


if __name__ == "__main__":
    main()
