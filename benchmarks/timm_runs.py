"""Whole runs of timm's train.py and of engine/train.py on the same tree of JPEGs, for bench_step.py."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from measuring import ratio_interval

HERE = Path(__file__).resolve().parent
ROWS = 16
MODEL = "vit_tiny_patch16_224"
PROGRAMS = ("engine", "timm")


def make_tree(folder: Path, steps: int) -> Path:
    """Make a tree with the images of so many steps."""
    tree = folder / f"tree_{steps}"
    command = [sys.executable, str(HERE / "make_photo_tree.py"), str(tree), "--train", str(ROWS * steps), "--val", "16"]
    subprocess.run(command, check=True, capture_output=True)
    return tree


def command_of(program: str, tree: Path, precision: str, folder: Path) -> list[str]:
    """Return the command of one epoch over a tree: the same network, batch, optimizer, crops and number of workers."""
    if program == "timm":
        amp = ["--amp", "--amp-dtype", "bfloat16"] if precision == "bf16" else []
        words = [sys.executable, "train.py", str(tree), "--model", MODEL, "--batch-size", str(ROWS), "--epochs", "1"]
        words += ["--opt", "adamw", "--lr", "1e-3", "--warmup-epochs", "0", "--workers", "2", "--device", "cpu"]
        return [*words, "--color-jitter", "0", "--train-interpolation", "bilinear", "--output", str(folder), *amp]
    flags = {
        "data.dataset": "imagefolder",
        "data.root": tree,
        "data.image_size": 224,
        "data.workers": 2,
        "model.name": MODEL,
        "heads.taps": "none",
        "batch_size": ROWS,
        "epochs": 1,
        "precision": precision,
        "device": "cpu",
        "eval.clean_every": 0,
        "log.tensorboard": "false",
        "run.dir": folder,
        "run.name": "engine",
        "run.overwrite": "true",
    }
    words = [sys.executable, str(HERE.parent / "engine" / "train.py")]
    return words + [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def run(program: str, checkout: Path, tree: Path, precision: str, folder: Path) -> dict[str, float]:
    """Run to the end; return seconds of the clock and of all its processes."""
    command = command_of(program, tree, precision, folder)
    start, log = time.perf_counter(), folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=checkout if program == "timm" else None, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text()[-4000:]}")
    return {"wall": time.perf_counter() - start, "cpu": used.ru_utime + used.ru_stime}


def measure_runs(checkout: Path, precision: str, runs: int, *, quick: bool) -> dict[str, Any]:
    """Run both programs over few and over more steps, in turns, `runs` times; each round begins with the other one."""
    few, more = (5, 15) if quick else (10, 70)
    found: dict[str, list[dict[str, float]]] = {program: [] for program in PROGRAMS}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        trees = {steps: make_tree(folder, steps) for steps in (few, more)}
        for number in range(runs):
            for program in PROGRAMS if number % 2 else PROGRAMS[::-1]:
                short, long = (run(program, checkout, trees[steps], precision, folder) for steps in (few, more))
                found[program].append({kind: (long[kind] - short[kind]) / (more - few) for kind in short})
    return {"seconds_a_step": found, "steps": [few, more]}


def lines_of_runs(precision: str, found: dict[str, Any]) -> list[str]:
    """Return the figures in words; above 1 the engine is faster."""
    said = []
    for kind, words in (("wall", "seconds"), ("cpu", "processor seconds")):
        engine, timm = ([each[kind] for each in found["seconds_a_step"][program]] for program in PROGRAMS)
        quotients = [theirs / ours for ours, theirs in zip(engine, timm, strict=True)]
        low, high = ratio_interval(timm, engine)
        said.append(
            f"{MODEL}, {precision}, B={ROWS}, JPEGs, runs of {found['steps'][1]} steps: engine {median(engine):.3f}, "
            f"timm {median(timm):.3f} {words} a step: {median(quotients):.2f} [{low:.2f}, {high:.2f}] x timm "
            "(asked: at least 1.0)"
        )
    return said
