"""What checkpoints cost a training: wall time with and without one every so many steps, and the stall of a single save.

python benchmarks/bench_checkpoint.py           # 1 GB of state, a save every 50 steps, 6 rounds: about 6 minutes on two cores
python benchmarks/bench_checkpoint.py --quick   # 1 GB, a save every 12 steps, 2 rounds: about 2 minutes

A ViT with AdamW is trained by the engine's own step on the digits, on small batches. Rounds alternate between blocks of steps
with a save at their beginning and blocks without one; a block ends when its checkpoint is on the disk. Beside it: the stall
that training meets at a save, one copy of the state to the host, and the CPU seconds of writing and hashing, as it is done
(each file hashed on its way to the disk, past the page cache) and as torch's own writer does it, without a hash and with one
by SHA-256 of the files that it wrote. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from measuring import Results, interleave, ratio
from rich.console import Console

from rlpheads.engine.config.data import DataConfig
from rlpheads.engine.config.learning import HeadsConfig, ModelConfig
from rlpheads.engine.config.run import CheckpointConfig, LogConfig, RunConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed import launch
from rlpheads.engine.model.plan import plan_model
from rlpheads.engine.report.display import Display
from rlpheads.engine.runs.checkpoint import Retention, Writers
from rlpheads.engine.runs.checkpoint_saver import StateCopy
from rlpheads.engine.runs.checkpoint_writing import write_checkpoint
from rlpheads.engine.runs.finite_content import nonfinite_tensors
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training.saving import save_checkpoint
from rlpheads.engine.training.training import Training
from rlpheads.engine.training.windows import close_window, publish_closed_window
from rlpheads.engine.training.wiring import build_training
from rlpheads.loaders.contract.batch import Batch

MODEL = {"img_size": 32, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
"""ViT-B with few patches: 86 million parameters, and with AdamW's moments 1 GB of state; a step of half a second."""
WRITING_ROUNDS = 3
OURS = "and hashed, as a run does"
SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 2}


def build(folder: Path, launched: launch.Launch, model: dict[str, int], batch_size: int = 4) -> Training:
    """Build a training of the digits, which keeps one checkpoint."""
    config = Config(
        epochs=10**6,
        batch_size=batch_size,
        device="cpu",
        log=LogConfig(tensorboard=False),
        run=RunConfig(dir=str(folder), name="benchmark"),
        data=DataConfig(workers=0, image_size=32),
        model=ModelConfig("vit_tiny_patch16_224", dict(model)),
        heads=HeadsConfig(labels=10, taps=[0]),
        checkpoint=CheckpointConfig(keep=1, keep_epochs=0),
    )
    run_folder = RunFolder(folder / "benchmark")
    run_folder.path.mkdir(parents=True)
    return build_training(config, plan_model(config, 10), open_sources(config), run_folder, launched)


def batches(training: Training) -> Iterator[Batch]:
    """Yield batches without end."""
    while True:
        yield from training.splits.trained.loader
        training.begin_next_epoch()
        training.splits.trained.loader.set_epoch(training.position.epoch)


def time_blocks(training: Training, display: Display, steps: int, rounds: int) -> dict[str, Any]:
    """Time blocks of steps with and without a save, interleaved, and the stall of each save."""
    stream, stalls = batches(training), []

    def train() -> None:
        for _ in range(steps):
            training.train_on(next(stream))
            publish_closed_window(training, display)
            if training.num_updates % training.run.config.log_every == 0:
                close_window(training)

    def train_and_save() -> None:
        start = time.perf_counter()
        save_checkpoint(training, display)
        stalls.append(time.perf_counter() - start)
        train()
        training.saver.wait()

    training.learner.train()
    seconds = interleave({"without": train, "with": train_and_save}, rounds)
    assert training.saver.last_failure is None
    return {
        "seconds": seconds,
        "with_over_without": ratio(seconds["with"], seconds["without"]),
        "step_seconds": median(seconds["without"]) / steps,
        "stall_seconds": stalls[1:],  # the first, in the warm-up, allocates the copy
    }


def cpu_and_wall(call: Callable[[], object]) -> dict[str, float]:
    """Seconds of the processor, over all threads, and of the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def time_writing(training: Training, folder: Path, launched: launch.Launch) -> dict[str, Any]:
    """Time one copy of the state, and writing it: hashed on the way, hashed afterwards, not hashed."""
    copies = StateCopy()
    state = training.learner.state() | {"ledger": training.splits.trained.ledger.tensors()}
    copied = copies.take(state)
    writers = Writers(launched.control, is_main=True)

    def write_only() -> None:
        dcp.save(copied, checkpoint_id=folder / "plain", process_group=launched.control)

    def write_and_hash_again() -> None:
        write_only()
        for path in (folder / "plain").iterdir():
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    ways = {
        OURS: lambda: write_checkpoint(folder, 1, copied, {}, writers, Retention(1)),
        "by torch's writer, and SHA-256": write_and_hash_again,
        "by torch's writer, no hash": write_only,
    }
    times: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(1 + WRITING_ROUNDS):
        for name, way in ways.items():
            times[name].append(cpu_and_wall(way))
            for written in folder.iterdir():
                shutil.rmtree(written)
    found: dict[str, Any] = {
        "ways": {
            name: {kind: median(each[kind] for each in rounds[1:]) for kind in ("cpu", "wall")}
            for name, rounds in times.items()
        }
    }
    found["check"] = median(cpu_and_wall(lambda: nonfinite_tensors(copied))["cpu"] for _ in range(5))
    found["state bytes"] = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(copied))
    found["copy"] = median(cpu_and_wall(lambda: copies.take(state))["wall"] for _ in range(5))
    return found


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for each in state.values():
            yield from _tensors(each)


def measure(steps: int, rounds: int, model: dict[str, int], folder: Path) -> dict[str, Any]:
    """Measure everything in folders below `folder`."""
    with launch.start("cpu") as launched:
        training = build(folder, launched, model)
        display = Display(Console(file=io.StringIO()), 1, 1, launched.device)
        training.train_on(next(batches(training)))  # the optimizer's moments are made here
        (folder / "writing").mkdir()
        writing = time_writing(training, folder / "writing", launched)
        return {"blocks": time_blocks(training, display, steps, rounds), "writing": writing}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield the figures in words."""
    blocks, writing = found["blocks"], found["writing"]
    yield f"state {writing['state bytes'] / 1e9:.2f} GB, a step of {blocks['step_seconds']:.2f} s"
    yield f"wall time with / without a save in every block: {blocks['with_over_without']:.3f} (asked: at most 1.05)"
    stall = median(blocks["stall_seconds"])
    over = stall / writing["copy"]
    yield f"stall of a save {stall:.3f} s, a copy {writing['copy']:.3f} s: {over:.2f} (asked: at most 1.5)"
    for name, way in writing["ways"].items():
        yield f"written {name}: {way['cpu']:.2f} CPU seconds, {way['wall']:.2f} s"
    yield f"looked at for what is not finite: {writing['check']:.2f} CPU seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a save every 12 steps, 2 rounds")
    parser.add_argument("--small", action="store_true", help="a small state: does it run?")
    parser.add_argument("--scratch", type=Path, help="where checkpoints are written; a folder of its own is made there")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    steps, rounds = (12, 2) if arguments.quick else (50, 6)
    results = Results("checkpoint", "cpu", arguments.out)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        model = SMALL if arguments.small else MODEL
        case = {"steps": steps, "rounds": rounds, "load": os.getloadavg()[0]}
        found = results.measure(lambda: measure(steps, rounds, model, Path(scratch)), **case)
    text = "\n".join(lines(found)) + "\n"
    print(text, end="")
    results.write("figures.txt", text)


if __name__ == "__main__":
    main()
