"""A training step of the engine beside a bare loop of the same network, and beside timm's own train.py.

python benchmarks/bench_step.py                     # ViT-Ti at 224 pixels, batches of 16: half an hour on two quiet cores
python benchmarks/bench_step.py --quick             # fewer cases and rounds: minutes
python benchmarks/bench_step.py --timm CHECKOUT     # whole runs of CHECKOUT/train.py (pytorch-image-models) and engine/train.py

In one process: the engine's step (0, 1 and 12 taps; K labels; fp32 and bf16; with and without RandAugment and mixup) takes
turns with a bare loop: timm's model, cross-entropy, fused AdamW, the same batch of bytes normalised. The bound by arithmetic of
a step with heads is the measured step without, the bare products of the heads at their own shapes (forward, and the weight's
gradient: nothing else trains on them here), and 28 bytes a parameter of theirs at the rate of a copy, all measured here. The
micro model's line says what the engine adds to a step by the host's clock alone, in milliseconds.

By whole runs, on a tree of JPEGs: seconds a step are those between a run of few and a run of more steps, so that start and end
cancel; processor seconds beside them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from bench_checkpoint import batches
from measuring import Results, interleave, ratio, ratio_interval
from timm_runs import PAIRINGS, lines_of_runs, measure_runs

from rlpheads.engine.config.data import AugmentConfig, DataConfig, MixConfig, SyntheticConfig
from rlpheads.engine.config.learning import HeadsConfig, ModelConfig
from rlpheads.engine.config.run import LogConfig, RunConfig
from rlpheads.engine.config.schema import Config, Precision
from rlpheads.engine.distributed import launch
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.model.plan import plan_model
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training.training import Training
from rlpheads.engine.training.wiring import build_training

MICRO = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 2}
STEPS_A_WINDOW = Config.log_every
"""Steps of an epoch, at whose end the window's figures are read, as in a run."""

BYTES_A_PARAMETER = 28
"""Read and written by AdamW: weight, gradient and two moments read, weight and moments written, 4 bytes each."""


class Case(NamedTuple):
    """A step that is timed."""

    taps: int
    labels: int = 10
    precision: Precision = "fp32"
    augmented: bool = False
    side: int = 224
    rows: int = 16
    micro: bool = False


FULL = (
    Case(0, micro=True, side=32, rows=8),
    *(
        Case(0, precision=precision, augmented=augmented)
        for precision in ("fp32", "bf16")
        for augmented in (False, True)
    ),
    *(Case(taps, labels) for taps in (1, 12) for labels in (10, 1_000, 100_000)),
    *(Case(12, labels, "bf16") for labels in (10, 1_000)),
)
QUICK = (Case(0, micro=True, side=32, rows=8), Case(0), Case(0, precision="bf16"), Case(12, 10), Case(12, 1_000))


def config_of(case: Case, folder: Path) -> Config:
    """Return the settings of a case: computed images, nothing beside the step."""
    taps: Any = list(range(case.taps)) if case.taps else "none"
    augment = AugmentConfig(policy="rand" if case.augmented else "none")
    return Config(
        epochs=10**6,
        batch_size=case.rows,
        device="cpu",
        precision=case.precision,
        log=LogConfig(tensorboard=False),
        run=RunConfig(dir=str(folder), name="benchmark"),
        data=DataConfig(
            dataset="synthetic",
            workers=0,
            image_size=case.side,
            synthetic=SyntheticConfig(train=STEPS_A_WINDOW * case.rows, val=16),
            augment=augment,
            mix=MixConfig(mixup=0.8 if case.augmented else 0.0),
        ),
        model=ModelConfig("vit_tiny_patch16_224", dict(MICRO) if case.micro else {}),
        heads=HeadsConfig(labels=case.labels, taps=taps),
    )


def engine_step(case: Case, folder: Path, launched: launch.Launch) -> tuple[Training, Callable[[], None]]:
    """Return a training, and a call that takes its next step on a batch that is at hand."""
    config = config_of(case, folder)
    run_folder = RunFolder(folder / "benchmark")
    run_folder.path.mkdir(parents=True)
    training = build_training(config, plan_model(config, 10), open_sources(config), run_folder, launched)
    training.learner.train()
    stream = batches(training)
    at_hand = [next(stream) for _ in range(4)]

    def step() -> None:
        training.train_on(at_hand[training.num_updates % len(at_hand)])
        if not training.epoch_has_steps_left:
            training.begin_next_epoch()
            training.gauges.meters.begin_read(training.num_updates)
            training.gauges.meters.finish_read()

    return training, step


def bare_step(case: Case, folder: Path) -> Callable[[], None]:
    """Return a call that takes a step of the same network without anything that the engine does besides."""
    config = config_of(case, folder)
    model = build_model(config, 10).backbone.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randint(256, (case.rows, 3, case.side, case.side), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)  # as loaders deliver them
    targets = torch.randint(10, (case.rows,))
    scale, offset = (torch.tensor(values).view(3, 1, 1) for values in ((0.017, 0.0175, 0.0174), (-2.1, -2.0, -1.8)))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
            loss = F.cross_entropy(model(images * scale + offset), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def head_products(case: Case, dims: tuple[int, ...]) -> Callable[[], None]:
    """Return a call that makes the bare products of all heads: output, weight's gradient; features are not trained on them."""
    shapes = [(torch.randn(case.rows, dim), torch.randn(case.labels, dim)) for dim in dims]
    gradients = [torch.randn(case.rows, case.labels) for _ in dims]

    def products() -> None:
        for (features_BD, weight_KD), gradient_BK in zip(shapes, gradients, strict=True):
            features_BD @ weight_KD.T
            gradient_BK.T @ features_BD

    return products


def copied(num_parameters: int) -> Callable[[], None]:
    """Return a call that moves as many bytes as an update of so many parameters does."""
    source = torch.zeros(max(num_parameters * BYTES_A_PARAMETER // 8, 1))  # read once and written once
    there = torch.empty_like(source)

    def copy() -> None:
        there.copy_(source)

    return copy


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Time the engine's step and what it is read beside, in turns."""
    with ExitStack() as open_now:
        folder = Path(open_now.enter_context(tempfile.TemporaryDirectory()))
        launched = open_now.enter_context(launch.start("cpu"))
        training, engine = engine_step(case, folder / "engine", launched)
        contenders: dict[str, Callable[[], object]] = {"engine": engine, "bare": bare_step(case, folder)}
        if case.taps:
            _, contenders["without heads"] = engine_step(case._replace(taps=0), folder / "without", launched)
            dims = training.learner.dims
            contenders["products"] = head_products(case, dims)
            contenders["copy"] = copied(sum(case.labels * (dim + 1) for dim in dims))
        return {"seconds": interleave(contenders, rounds * (20 if case.micro else 1), warmup=3)}


def line(case: Case, seconds: dict[str, list[float]]) -> str:
    """Return a case's figures in words."""
    engine, bare = seconds["engine"], seconds["bare"]
    low, high = ratio_interval(engine, bare)
    name = "micro ViT" if case.micro else "ViT-Ti"
    what = f"{name}, B={case.rows}, {case.precision}" + (", RandAugment and mixup" if case.augmented else "")
    heads = f", {case.taps} taps x K={case.labels:,}" if case.taps else ", 0 taps"
    said = f"{what}{heads}: {1e3 * median(engine):.1f} ms, {ratio(engine, bare):.3f} [{low:.3f}, {high:.3f}] of the bare loop"
    if case.micro:
        added = [1e3 * (over - under) for over, under in zip(engine, bare, strict=True)]
        return f"{said}; {median(added):+.2f} ms a step (asked: at most 0.3)"
    if case.taps:
        bound = [
            sum(parts) for parts in zip(*(seconds[part] for part in ("without heads", "products", "copy")), strict=True)
        ]
        low, high = ratio_interval(engine, bound)
        return (
            f"{said}; {ratio(engine, bound):.3f} [{low:.3f}, {high:.3f}] of the arithmetic bound (asked: at most 1.15)"
        )
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases, 5 rounds")
    parser.add_argument("--rounds", type=int, help="rounds of each case")
    parser.add_argument(
        "--timm", type=Path, metavar="CHECKOUT", help="compare whole runs with this checkout's train.py"
    )
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (5 if arguments.quick else 15)
    results, said = Results("step", "cpu", arguments.out), []
    if arguments.timm:
        runs = arguments.rounds or (2 if arguments.quick else 5)
        for pairing in PAIRINGS:
            found = results.measure(
                partial(measure_runs, arguments.timm, pairing, runs, quick=arguments.quick),
                **pairing._asdict(),
                runs=runs,
                quick=arguments.quick,
            )
            said += lines_of_runs(pairing, found)
            print(*said[-3:], sep="\n", flush=True)
    else:
        for case in QUICK if arguments.quick else FULL:
            found = results.measure(partial(measure, case, rounds), rounds=rounds, **case._asdict())
            said.append(line(case, found["seconds"]))
            print(said[-1], flush=True)
    text = "\n".join(said) + "\n"
    results.write("figures.txt", text)


if __name__ == "__main__":
    main()
