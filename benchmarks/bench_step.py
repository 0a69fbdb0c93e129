"""A training step of the engine beside a bare loop of the same network, and beside timm's own train.py.

python benchmarks/bench_step.py                     # ViT-Ti at 224 pixels, batches of 16: half an hour on two quiet cores
python benchmarks/bench_step.py --quick             # fewer cases and rounds: minutes
python benchmarks/bench_step.py --device cuda       # ViT-S/16 and ResNet-50, batches of 256 in bf16
python benchmarks/bench_step.py --small             # micro models, on any device: does it run?
python benchmarks/bench_step.py --timm CHECKOUT     # whole runs of CHECKOUT/train.py (pytorch-image-models) and engine/train.py
python benchmarks/bench_step.py --timm CHECKOUT --model resnet18    # of this network alone

In one process: the engine's step (0, 1 and 12 taps; K labels; fp32 and bf16; with and without RandAugment and mixup) takes
turns with a bare loop: timm's model, cross-entropy, fused AdamW, the same batch of bytes normalised. The bound by arithmetic of
a step with heads is the measured step without, the bare products of the heads at their own shapes (forward, and the weight's
gradient: nothing else trains on them here; each by the fastest of the device's libraries and layouts), and what their update
moves at the rate of a copy, all measured here: 28 bytes a parameter, or 24 where it takes the gradient as it is made. On a GPU
every call is timed from an idle device to an idle device. The micro model's line says what the engine adds to a step by the
host's clock alone, in milliseconds.

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
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from bench_checkpoint import batches
from bench_random_label_loss import floor_of
from loss_contenders import floors_together, make_problem
from measuring import Results, interleave, ratio, ratio_interval
from timm_runs import PAIRINGS, lines_of_runs, measure_runs

from rlpheads.engine.config.data import AugmentConfig, DataConfig, MixConfig, SyntheticConfig
from rlpheads.engine.config.learning import HeadsConfig, ModelConfig
from rlpheads.engine.config.run import LogConfig, RunConfig, RuntimeConfig
from rlpheads.engine.config.schema import Config, Precision
from rlpheads.engine.distributed import launch
from rlpheads.engine.learner.shard_choice import fuses_update
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.model.plan import plan_model
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training.training import Training
from rlpheads.engine.training.wiring import build_training
from rlpheads.kernels.implementations import resolve_kernel

Device = Literal["cpu", "cuda"]
MICRO = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 2}
STEPS_A_WINDOW = Config.log_every
"""Steps of an epoch, at whose end the window's figures are read, as in a run."""

BYTES_OF_ADAMW = 24
"""Moved a parameter: weight and two moments, read and written, 4 bytes each."""
BYTES_OF_GRADIENT = 4
"""Read a parameter, where gradients are kept until the update; the bare products' time has their being written."""
VIT_TI, VIT_S, RESNET = "vit_tiny_patch16_224", "vit_small_patch16_224", "resnet50"
NAMES = {VIT_TI: "ViT-Ti", VIT_S: "ViT-S/16", RESNET: "ResNet-50"}
RESNET_TAPS = [f"layer{stage}.{block}" for stage, blocks in enumerate((3, 4, 6, 3), 1) for block in range(blocks)]


class Case(NamedTuple):
    """A step that is timed."""

    taps: int
    labels: int = 10
    precision: Precision = "fp32"
    augmented: bool = False
    side: int = 224
    rows: int = 16
    micro: bool = False
    model: str = VIT_TI
    compile: bool | Literal["reduce-overhead", "max-autotune"] = False

    @property
    def tap_names(self) -> Any:
        """Where heads read: the first blocks, of the ResNet the last."""
        if not self.taps:
            return "none"
        return RESNET_TAPS[-self.taps :] if self.model == RESNET else list(range(self.taps))


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

SMALL = (Case(0, micro=True, side=32, rows=8), Case(2, 300, "bf16", augmented=True, micro=True, side=32, rows=8))
GPU = (
    Case(0, micro=True, side=32, rows=8),
    *(Case(taps, labels, "bf16", rows=256, model=VIT_S) for taps, labels in ((0, 10), (12, 1_000), (12, 100_000))),
    Case(0, precision="bf16", augmented=True, rows=256, model=VIT_S),
    *(Case(taps, 1_000, "bf16", rows=256, model=RESNET) for taps in (0, 12)),
)


def config_of(case: Case, folder: Path, device: Device = "cpu") -> Config:
    """Return the settings of a case: computed images, nothing beside the step."""
    augment = AugmentConfig(policy="rand" if case.augmented else "none")
    return Config(
        epochs=10**6,
        batch_size=case.rows,
        device=device,
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
        model=ModelConfig(case.model, dict(MICRO) if case.micro else {}),
        heads=HeadsConfig(labels=case.labels, taps=case.tap_names),
        runtime=RuntimeConfig(channels_last=case.model == RESNET, compile=case.compile),
    )


def engine_step(case: Case, folder: Path, launched: launch.Launch) -> tuple[Training, Callable[[], None]]:
    """Return a training, and a call that takes its next step on a batch that is at hand."""
    config = config_of(case, folder, "cuda" if launched.device.type == "cuda" else "cpu")
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


def bare_step(case: Case, folder: Path, device: torch.device) -> Callable[[], None]:
    """Return a call that takes a step of the same network without anything that the engine does besides."""
    model = build_model(config_of(case, folder), 10).backbone.train().to(device)
    if case.model == RESNET:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randint(256, (case.rows, 3, case.side, case.side), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)  # as loaders deliver them
    targets = torch.randint(10, (case.rows,), device=device)
    constants = ((0.017, 0.0175, 0.0174), (-2.1, -2.0, -1.8))
    scale, offset = (torch.tensor(values, device=device).view(3, 1, 1) for values in constants)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            loss = F.cross_entropy(model(images * scale + offset), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def head_products(case: Case, dims: tuple[int, ...], device: torch.device) -> dict[str, Callable[[], object]]:
    """Return calls that make a bare product of all heads, by its name in `loss_contenders.floors`."""
    # on a CPU heads multiply in float32 under autocast, too: see RLPHeads.forward
    dtype = torch.bfloat16 if case.precision == "bf16" and device.type == "cuda" else torch.float32
    problems = [make_problem(case.rows, case.labels, dim, dtype, device.type) for dim in dims]
    calls = floors_together(problems)
    return {name: calls[name] for name in calls if not name.startswith("features")}  # which nothing trains here


def update_bytes(case: Case, dims: tuple[int, ...], config: Config, device: torch.device) -> int:
    """Return the bytes that the update of the heads has to move."""
    is_made_in_tiles = (
        resolve_kernel("auto", torch.empty(case.rows, dims[0], device=device), case.labels) != "reference"
    )
    keeps_gradient = not (is_made_in_tiles and fuses_update(config, device, is_averaged=False))
    num_parameters = sum(case.labels * (dim + 1) for dim in dims)
    return num_parameters * (BYTES_OF_ADAMW + BYTES_OF_GRADIENT * keeps_gradient)


def copied(num_bytes: int, device: torch.device) -> Callable[[], None]:
    """Return a call that moves so many bytes: half of them are read, half written."""
    source = torch.zeros(max(num_bytes // 8, 1), device=device)
    there = torch.empty_like(source)

    def copy() -> None:
        there.copy_(source)

    return copy


def measure(case: Case, rounds: int, device: Device = "cpu") -> dict[str, Any]:
    """Time the engine's step and what it is read beside, in turns."""
    with ExitStack() as open_now:
        folder = Path(open_now.enter_context(tempfile.TemporaryDirectory()))
        launched = open_now.enter_context(launch.start(device))
        training, engine = engine_step(case, folder / "engine", launched)
        contenders: dict[str, Callable[[], object]] = {"engine": engine}
        contenders["bare"] = bare_step(case, folder, launched.device)
        products: dict[str, Callable[[], object]] = {}
        if case.taps:
            _, contenders["without heads"] = engine_step(case._replace(taps=0), folder / "without", launched)
            dims = training.learner.dims
            products = head_products(case, dims, launched.device)
            contenders["copy"] = copied(update_bytes(case, dims, training.run.config, launched.device), launched.device)
        rounds *= 20 if case.micro else 1
        seconds = interleave({**contenders, **products}, rounds, warmup=3, device=launched.device.type)
        product_seconds = {name: seconds.pop(name) for name in products}
        if products:
            seconds["products"] = floor_of("ours, measuring only", product_seconds)
        return {"seconds": seconds, "product_seconds": product_seconds}


def line(case: Case, seconds: dict[str, list[float]]) -> str:
    """Return a case's figures in words."""
    engine, bare = seconds["engine"], seconds["bare"]
    low, high = ratio_interval(engine, bare)
    name = "micro ViT" if case.micro else NAMES[case.model]
    what = f"{name}, B={case.rows}, {case.precision}" + (", RandAugment and mixup" if case.augmented else "")
    heads = f", {case.taps} taps x K={case.labels:,}" if case.taps else ", 0 taps"
    said = f"{what}{heads}: {1e3 * median(engine):.1f} ms, {ratio(engine, bare):.3f} [{low:.3f}, {high:.3f}] of the bare loop"
    if case.taps:
        parts = (seconds[part] for part in ("without heads", "products", "copy"))
        bound = [sum(times) for times in zip(*parts, strict=True)]
        low, high = ratio_interval(engine, bound)
        return (
            f"{said}; {ratio(engine, bound):.3f} [{low:.3f}, {high:.3f}] of the arithmetic bound (asked: at most 1.15)"
        )
    if case.micro:
        added = [1e3 * (over - under) for over, under in zip(engine, bare, strict=True)]
        return f"{said}; {median(added):+.2f} ms a step (asked: at most 0.3)"
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 rounds; on a CPU fewer cases, too")
    parser.add_argument("--small", action="store_true", help="micro models: does it run?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, help="rounds of each case")
    parser.add_argument(
        "--timm", type=Path, metavar="CHECKOUT", help="compare whole runs with this checkout's train.py"
    )
    parser.add_argument("--model", choices=sorted({pairing.model for pairing in PAIRINGS}), help="with --timm: only it")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (5 if arguments.quick else 15)
    results, said = Results("step", arguments.device, arguments.out), []
    if arguments.timm:
        runs = arguments.rounds or (2 if arguments.quick else 5)
        for pairing in (each for each in PAIRINGS if arguments.model in (None, each.model)):
            found = results.measure(
                partial(measure_runs, arguments.timm, pairing, runs, quick=arguments.quick),
                **pairing._asdict(),
                runs=runs,
                quick=arguments.quick,
            )
            said += lines_of_runs(pairing, found)
            print(*said[-3:], sep="\n", flush=True)
    else:
        cases = GPU if arguments.device == "cuda" else QUICK if arguments.quick else FULL
        for case in SMALL if arguments.small else cases:
            call = partial(measure, case, rounds, arguments.device)
            found = results.measure(call, rounds=rounds, **case._asdict())
            said.append(line(case, found["seconds"]))
            print(said[-1], flush=True)
    text = "\n".join(said) + "\n"
    results.write("figures.txt", text)


if __name__ == "__main__":
    main()
