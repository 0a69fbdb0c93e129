"""Whole runs of timm's train.py and of engine/train.py on the same tree of JPEGs, for bench_step.py."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from measuring import ratio_interval

HERE = Path(__file__).resolve().parent
ROWS = 16
PROGRAMS = ("engine", "timm")


class Pairing(NamedTuple):
    """What both programs train, and how many times as fast as timm's the engine is to be."""

    model: str
    precision: str
    asked: float


PAIRINGS = (
    Pairing("vit_tiny_patch16_224", "fp32", 1.0),
    Pairing("vit_tiny_patch16_224", "bf16", 1.0),
    Pairing("resnet18", "fp32", 1.2),
)


def make_tree(folder: Path, steps: int) -> Path:
    """Make a tree with the images of so many steps."""
    tree = folder / f"tree_{steps}"
    command = [sys.executable, str(HERE / "make_photo_tree.py"), str(tree), "--train", str(ROWS * steps), "--val", "16"]
    subprocess.run(command, check=True, capture_output=True)
    return tree


def command_of(program: str, pairing: Pairing, tree: Path, folder: Path) -> list[str]:
    """Return the command of one epoch over a tree: the same network, batch, optimizer, crops and number of workers.

    The engine's is the first of two and ends by `max_steps`: behind a last epoch it would read the training images once more.
    """
    if program == "timm":
        amp = ["--amp", "--amp-dtype", "bfloat16"] if pairing.precision == "bf16" else []
        words = [
            sys.executable,
            "train.py",
            str(tree),
            "--model",
            pairing.model,
            "--batch-size",
            str(ROWS),
            "--epochs",
            "1",
        ]
        words += ["--opt", "adamw", "--lr", "1e-3", "--warmup-epochs", "0", "--workers", "2", "--device", "cpu"]
        return [*words, "--color-jitter", "0", "--train-interpolation", "bilinear", "--output", str(folder), *amp]
    flags = {
        "data.dataset": "imagefolder",
        "data.root": tree,
        "data.image_size": 224,
        "data.workers": 2,
        "model.name": pairing.model,
        "heads.taps": "none",
        "batch_size": ROWS,
        "epochs": 2,
        "max_steps": len(list(tree.glob("train/*/*"))) // ROWS,
        "precision": pairing.precision,
        "device": "cpu",
        "eval.clean_every": 0,
        "log.tensorboard": "false",
        "run.dir": folder,
        "run.name": "engine",
        "run.overwrite": "true",
    }
    words = [sys.executable, str(HERE.parent / "engine" / "train.py")]
    return words + [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def run(program: str, pairing: Pairing, checkout: Path, tree: Path, folder: Path) -> dict[str, float]:
    """Run to the end; return seconds of the clock and of all its processes, their page faults, and those of the first alone."""
    command = command_of(program, pairing, tree, folder)
    start, log = time.perf_counter(), folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=checkout if program == "timm" else None, stdout=output, stderr=subprocess.STDOUT
        )
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        own_faults = _page_faults(process.pid)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-4000:]}")
    cpu_seconds = used.ru_utime + used.ru_stime
    faults = {"faults": float(used.ru_minflt), "own_faults": float(own_faults)}
    return {"wall": time.perf_counter() - start, "cpu": cpu_seconds, **faults}


def _page_faults(pid: int) -> int:
    """Return the minor page faults of one process without its children, which may have ended, but is not waited for yet."""
    behind_the_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(behind_the_name[7])


def measure_runs(checkout: Path, pairing: Pairing, runs: int, *, quick: bool) -> dict[str, Any]:
    """Run both programs over few and over more steps, in turns, `runs` times; each round begins with the other one."""
    few, more = (5, 15) if quick else (10, 70)
    found: dict[str, list[dict[str, float]]] = {program: [] for program in PROGRAMS}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        trees = {steps: make_tree(folder, steps) for steps in (few, more)}
        for number in range(runs):
            for program in PROGRAMS if number % 2 else PROGRAMS[::-1]:
                short, long = (run(program, pairing, checkout, trees[steps], folder) for steps in (few, more))
                found[program].append({kind: (long[kind] - short[kind]) / (more - few) for kind in short})
    return {"seconds_a_step": found, "steps": [few, more]}


def lines_of_runs(pairing: Pairing, found: dict[str, Any]) -> list[str]:
    """Return the figures in words; above 1 the engine is faster."""
    said = []
    name = f"{pairing.model}, {pairing.precision}, B={ROWS}, JPEGs, runs of {found['steps'][1]} steps"
    of_engine, of_timm = (found["seconds_a_step"][program] for program in PROGRAMS)
    for kind, words in (("wall", "seconds"), ("cpu", "processor seconds")):
        engine, timm = ([each[kind] for each in rounds] for rounds in (of_engine, of_timm))
        quotients = [theirs / ours for ours, theirs in zip(engine, timm, strict=True)]
        low, high = ratio_interval(timm, engine)
        said.append(
            f"{name}: engine {median(engine):.3f}, timm {median(timm):.3f} {words} a step: "
            f"{median(quotients):.2f} [{low:.2f}, {high:.2f}] x timm (asked: at least {pairing.asked})"
        )
    own, all_of_them = (
        [round(median(each[kind] for each in rounds)) for rounds in (of_engine, of_timm)]
        for kind in ("own_faults", "faults")
    )
    faults = f"engine {own[0]} ({all_of_them[0]} with its loaders), timm {own[1]} ({all_of_them[1]})"
    return [*said, f"{name}: page faults a step: {faults} (asked: at most 100)"]
