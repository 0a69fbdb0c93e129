"""What one of several real ranks does in the tests of sharded heads; torchrun starts it, the main rank prints one JSON line.

python -m torch.distributed.run --standalone --nproc-per-node N tests/helpers/sharded_ranks.py compare
… sharded_ranks.py draws NUMBER
… sharded_ranks.py checkpoint FOLDER NUMBER class | none | "none, whole"
… sharded_ranks.py average LABELS MIN_RANGE_NUMBERS HIDDEN (0: linear heads, of features of 6, 9 and 9 numbers)
"""

import hashlib
import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from simulated_ranks import GlobalBatch, HeadProblem, HeadResults, evaluate_whole, gradient_of, weights_of
from torch import Tensor

from rlpheads.engine.config.learning import LossScaleConfig, OptimConfig, ScheduleConfig
from rlpheads.engine.distributed import launch
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.learner import averaged_part
from rlpheads.engine.learner.parts import TrainedPart, build_part, with_loss_scale
from rlpheads.engine.learner.schedule import Span
from rlpheads.engine.learner.sharded_part import shard_part
from rlpheads.engine.runs import checkpoint
from rlpheads.engine.runs.checkpoint import Retention, Writers
from rlpheads.engine.runs.checkpoint_writing import write_checkpoint
from rlpheads.memorization.heads.class_shards import ClassShards
from rlpheads.memorization.heads.combined_loss import TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import HeadTerms

KINDS = ("unlikelihood", "uniform", "reversal", "entropy")
OPTIMS = [
    OptimConfig(lr=0.01, weight_decay=0.1, clip_norm=0.1),
    OptimConfig("momentum", lr=1.0, weight_decay=0.1, clip_value=1e-4),
    OptimConfig("lion", lr=0.01, weight_decay=0.1, clip_value=1e-4),
]
"""The last without a step of torch's own that leaves itself out; those without a norm to clip with a loss scale."""
NUM_ROWS = 240  # of the global batch: as many at 1, 3, 5 and 16 ranks


def compare(launched: Launch) -> dict[str, float]:
    """Errors of the native loss over real ranks against whole heads in this process, and hits that differ."""
    errors = {}
    for number, kind in enumerate(KINDS):
        mixed = number % 2 == 0
        problem = HeadProblem(3001, 48 // launched.world_size, mixed=mixed, dtype=torch.float32, seed=number)
        terms = HeadTerms(kind, (0, 2), joint=True, impl="tiled_cpu")
        batch = problem.batch(launched.world_size)
        expected = evaluate_whole(problem, batch, terms)
        errors |= {f"{kind} {name}": error for name, error in own_errors(launched, problem, batch, terms, expected)}
    return errors


def compare_drawn(launched: Launch, number: int) -> dict[str, float]:
    """Largest error of each of some problems that are drawn, mostly of few labels, and how many hits differ in all.

    Memory that nobody wrote holds NaN meanwhile.
    """
    torch.use_deterministic_algorithms(True)  # which fill what `empty` returns
    assert torch.utils.deterministic.fill_uninitialized_memory
    draw, found = random.Random(launched.world_size), {"hits that differ": 0.0}
    for seed in range(number):
        problem = HeadProblem(
            draw.choice((2, 3, 7, 10, 31, 129, 400)),
            draw.randint(1, 5),
            num_draws=draw.randint(1, 2),
            mixed=draw.random() < 0.5,
            options=draw.choice(({}, {}, {"hidden": 5}, {"num_blocks": 3}, {"num_blocks": 3, "hidden": 5})),
            dtype=torch.float32,
            seed=seed,
        )
        kind = draw.choice((None, *KINDS))
        regularized = () if kind is None else draw.choice(((0,), (0, 2), (0, 1, 2)))
        terms = HeadTerms(kind, regularized, joint=draw.random() < 0.5)
        batch = problem.batch(launched.world_size)
        errors = dict(own_errors(launched, problem, batch, terms, evaluate_whole(problem, batch, terms)))
        found["hits that differ"] += errors.pop("hits that differ")
        found[f"{problem} {terms}"] = max(errors.values(), key=lambda error: (math.isnan(error), error))
    return found


def own_errors(
    launched: Launch, problem: HeadProblem, batch: GlobalBatch, terms: HeadTerms, expected: HeadResults
) -> list[tuple[str, float]]:
    """Errors of this rank's part."""
    shards = ClassShards.of_mesh(launched.mesh())
    heads, rows = problem.own_part(shards), slice(shards.rank * problem.rows_per_rank, None)
    rows = slice(rows.start, rows.start + problem.rows_per_rank)
    taps = [tap[rows].clone().requires_grad_() for tap in batch.taps]
    pair = None if batch.pair is None else (batch.pair[0][:, rows], batch.pair[1][rows])
    gathered = heads(taps, batch.labels_MG[:, rows], terms, pair, batch.valid_G[rows])
    num_rows = int(batch.valid_G.sum())
    combine_losses(gathered, batch.valid_G[rows], num_rows, shards.world_size, weights_of(terms)).total.backward()
    heads.sum_replicated_gradients()
    whole = {id(parameter) for parameter in heads.replicated_parameters()}
    held = slice(*shards.start_and_stop(problem.num_labels * problem.options.get("num_blocks", 1)))
    found = [
        (name, relative_error(getattr(gathered.losses, name), value))
        for name, value in expected.losses._asdict().items()
        if value is not None and value.dtype != torch.bool
    ]
    found.append(("hits that differ", float((gathered.losses.hit_TMB != expected.losses.hit_TMB).sum())))
    for name, parameter in heads.named_parameters():
        all_classes = expected.gradients[name]
        own = all_classes if id(parameter) in whole else all_classes[held]
        found.append((name, relative_error(parameter.grad, own, all_classes)))
    for number, tap in enumerate(taps):
        of_tap = expected.taps[number]
        found.append((f"tap {number}", relative_error(gradient_of(tap) / shards.world_size, of_tap[rows], of_tap)))
    return found


def save_and_load(launched: Launch, folder: Path, number: int, shard: str) -> dict[str, Any]:
    """Load the last checkpoint in the folder, if there is one; say what was loaded; train two steps, save, and say what."""
    problem = HeadProblem(
        37, NUM_ROWS // launched.world_size, dtype=torch.float32, seed=0, options={"hidden": 5}, num_draws=1
    )
    if shard == "class":
        sharded = problem.own_part(ClassShards.of_mesh(launched.mesh()))
        part: TrainedPart = shard_part(build_part(sharded, OPTIMS[0], ScheduleConfig(), Span(10, 10), ddp=False))
    else:
        part = averaged(problem, OPTIMS[0], launched, 2**30 if shard == "none, whole" else 1)
    told: dict[str, Any] = {}
    if (last := checkpoint.list_whole(folder)) != []:
        for parameter in part.module.parameters():
            parameter.data.fill_(7.0)  # nothing of what was built may be left
        state = state_of(part)
        checkpoint.load(last[-1], state, launched)
        part.load_optimizer_state(state["optimizer"])
        told["loaded"], told["loss"] = digest(state_of(part)), loss_of(part, problem, launched)
    for step in range(2):
        loss_of(part, problem, launched, backward=True)
        part.update(2 * number + step, part.gradient_norm())
    told["saved"], told["saved loss"] = digest(state_of(part)), loss_of(part, problem, launched)
    writers = Writers(launched.control, launched.is_main)
    write_checkpoint(folder, number, state_of(part), {}, writers, Retention(10))
    return told


def averaged(problem: HeadProblem, optim: OptimConfig, launched: Launch, min_numbers: int) -> TrainedPart:
    """Whole heads that ranks step in ranges where weights have so many numbers."""
    averaged_part.MIN_RANGE_NUMBERS = min_numbers
    part = build_part(problem.whole_heads(), optim, ScheduleConfig(), Span(10, 10), ddp=False)
    return averaged_part.average_part(part, ClassShards.of_mesh(launched.mesh()))


def train_both_ways(launched: Launch, num_labels: int, min_numbers: int, hidden: int) -> list[dict[str, Any]]:
    """Train whole heads under DDP and with gradients that travel as they are made, by several optimizers; say how both end."""
    options = {"hidden": hidden} if hidden else {}
    problem = HeadProblem(
        num_labels, NUM_ROWS // launched.world_size, dtype=torch.float32, seed=0, options=options, num_draws=1
    )
    return [both_ways(launched, problem, optim, min_numbers) for optim in OPTIMS]


def both_ways(launched: Launch, problem: HeadProblem, optim: OptimConfig, min_numbers: int) -> dict[str, Any]:
    """How far apart two ways of training end, what the other one's optimizer holds, and whether all is well with it."""
    ddp = build_part(problem.whole_heads(), optim, ScheduleConfig(), Span(10, 10), ddp=True)
    parts = [ddp, averaged(problem, optim, launched, min_numbers)]
    if optim.clip_norm is None:
        config, device = LossScaleConfig(initial=1024.0), torch.device("cpu")
        parts = [with_loss_scale(replace(part, waits=True), config, device) for part in parts]
    norms: list[list[Tensor]] = []
    for part in parts:
        norms.append([])
        for step in range(20):
            with part.without_sync():
                loss_of(part, problem, launched, backward=True)
            loss_of(part, problem, launched, backward=True)
            norms[-1].append(part.gradient_norm())
            part.update(step, norms[-1][-1])
    errors = {f"norm {step}": relative_error(*each) for step, each in enumerate(zip(*norms, strict=True))}
    theirs, ours = (part.module.named_parameters() for part in parts)
    errors |= {name: relative_error(other, one) for (name, one), (_, other) in zip(theirs, ours, strict=True)}
    part, kept = parts[1], digest(state_of(parts[1]))
    loss_of(part, problem, launched, backward=True)
    part.update(20, part.gradient_norm(), torch.tensor(True))
    ranks: list[Any] = [None] * launched.world_size
    dist.all_gather_object(ranks, digest(part.module.state_dict()))
    states = {
        name: [state.numel() for state in part.optimizer.state[own].values() if state.dim()]
        for name, own in zip(dict(part.module.named_parameters()), part.stepped, strict=True)
    }
    untouched = digest(state_of(part)) == kept
    return {"errors": errors, "states": states, "untouched": untouched, "different_weights": len(set(ranks))}


def relative_error(found: Tensor, expected: Tensor, whole: Tensor | None = None) -> float:
    """Error of a part, relative to the whole: of few rows and classes, gradients may cancel to nearly nothing."""
    norm = (expected if whole is None else whole).double().norm().clamp(min=1e-30)
    return float((found.detach().double() - expected.double()).norm() / norm)


def state_of(part: TrainedPart) -> dict[str, Any]:
    return {"heads": part.module.state_dict(), "optimizer": part.optimizer_state()}


def loss_of(part: TrainedPart, problem: HeadProblem, launched: Launch, *, backward: bool = False) -> float:
    """The loss of one global batch, which is the same at any number of ranks."""
    batch, rank = problem.batch(launched.world_size), launched.rank.rank
    rows = slice(rank * problem.rows_per_rank, (rank + 1) * problem.rows_per_rank)
    taps, labels_MB, valid_B = [tap[rows] for tap in batch.taps], batch.labels_MG[:, rows], batch.valid_G[rows]
    of_all = {"valid_B": valid_B} if hasattr(part.module, "shards") else {}
    losses = part.wrapped(taps, labels_MB, HeadTerms(), None, **of_all)
    total = combine_losses(losses, valid_B, int(batch.valid_G.sum()), launched.world_size, TermWeights())
    if backward:
        part.scaled(total.heads).backward()
    mean = total.heads.detach() / launched.world_size
    dist.all_reduce(mean)
    return float(mean)


def digest(state: dict[str, Any]) -> str:
    """Hash of every tensor and number of a state, put together from all ranks."""
    found = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                add(f"{name}.{key}", value[key])
        elif isinstance(value, (list, tuple)):
            for place, each in enumerate(value):
                add(f"{name}.{place}", each)
        elif isinstance(value, Tensor):
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            found.update(f"{name} {tuple(whole.shape)}".encode() + whole.detach().numpy().tobytes())
        elif not name.endswith(".lr"):  # the schedule sets it before each step
            found.update(f"{name} {value}".encode())

    add("", state)
    return found.hexdigest()


def main() -> None:
    torch.set_num_threads(1)
    with launch.start("cpu") as launched:
        command, *arguments = sys.argv[1:]
        if command in ("compare", "draws"):
            own = compare(launched) if command == "compare" else compare_drawn(launched, int(arguments[0]))
            told: Any = [None] * launched.world_size
            dist.all_gather_object(told, own)
        elif command == "average":
            told = train_both_ways(launched, *map(int, arguments))
        else:
            told = save_and_load(launched, Path(arguments[0]), int(arguments[1]), arguments[2])
        if launched.is_main:
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
