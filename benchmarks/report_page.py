"""How long `rlpheads report` takes on a run the size of ImageNet, and how large its page is: ledgers of random rows.

python benchmarks/report_page.py                        # 1.28 M samples, 12 taps, 10 ledgers of each phase: minutes to make
python benchmarks/report_page.py --samples 20000        # seconds
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from rlpheads.engine import cli
from rlpheads.engine.config.command_line import dump_config, parse_config
from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import LedgerMetadata
from rlpheads.memorization.records.sample_file import SplitSamples, write_samples

NUM_LABELS, NUM_CLASSES = 1000, 1000


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--samples", type=int, default=1_281_167, help="training images; held-out ones are 50,000 at most"
    )
    parser.add_argument("--taps", type=int, default=12)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--ledgers", type=int, default=10, help="epochs that have ledgers")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        make_run(folder, arguments.samples, arguments.taps, arguments.draws, arguments.ledgers)
        began, cpu = time.perf_counter(), time.process_time()
        code = cli.main(["report", str(folder)])
        seconds, cpu, page = time.perf_counter() - began, time.process_time() - cpu, folder / "report.html"
        if code == 0:
            size = page.stat().st_size / 1e6
            print(f"{seconds:.1f} s ({cpu:.1f} s of processors), {size:.1f} MB, on {torch.get_num_threads()} threads")
    return code


def make_run(folder: Path, num_samples: int, num_taps: int, num_draws: int, num_ledgers: int) -> None:
    """Write a run folder of random rows: settings, epoch lines, samples, and ledgers of three phases."""
    folder.mkdir()
    flags = [
        "--config",
        "digits_vit",
        "--heads.labels",
        str(NUM_LABELS),
        "--heads.draws",
        str(num_draws),
        "--run.name",
        "run",
    ]
    (folder / "config.yaml").write_text(dump_config(parse_config(flags)))
    sizes = {"train": num_samples, "val": min(num_samples, 50_000)}
    write_samples(folder / "samples.parquet", [_names(split, size) for split, size in sizes.items()], _class_names())
    lines = []
    for epoch in range(num_ledgers):
        for phase, split in (("running", "train"), ("clean", "train"), ("heldout", "val")):
            if phase == "running" or epoch == num_ledgers - 1:
                _write_ledger(folder, epoch, phase, split, sizes[split], num_taps, num_draws)
        lines.append(_epoch_line(epoch, num_taps))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _class_names() -> list[str]:
    return [f"n{number:08d}" for number in range(NUM_CLASSES)]


def _names(split: str, size: int) -> SplitSamples:
    names = [
        f"n{number % NUM_CLASSES:08d}/n{number % NUM_CLASSES:08d}_{number}.JPEG".encode() for number in range(size)
    ]
    offsets = np.cumsum([0, *map(len, names)]).astype(np.int64)
    classes = np.arange(size) % NUM_CLASSES
    return SplitSamples(split, "f" * 64, np.frombuffer(b"".join(names), np.uint8), offsets, classes, classes, {})


def _write_ledger(folder: Path, epoch: int, phase: str, split: str, size: int, num_taps: int, num_draws: int) -> None:
    generator = torch.Generator().manual_seed(epoch)
    ledger, index = Ledger(size, num_taps, num_draws), torch.arange(size)
    loss = torch.rand(size, generator=generator) * (6 - 5 * epoch / 100)
    bits = torch.randn(num_taps, num_draws, size, generator=generator)
    hit = torch.rand(num_taps, num_draws, size, generator=generator) < 1 / NUM_LABELS
    ledger.record(
        index,
        index % NUM_CLASSES,
        loss,
        loss < 2,
        hit,
        bits,
        bits,
        predicted_B=index % 997,
        confidence_B=torch.exp(-loss),
    )
    metadata = LedgerMetadata(
        "f" * 64, 0, NUM_LABELS, tuple(range(num_taps)), num_draws, epoch, phase, split, step=epoch + 1
    )
    ledger.write_parquet(folder / "ledger" / f"epoch={epoch:04d}" / f"{phase}.parquet", metadata)


def _epoch_line(epoch: int, num_taps: int) -> dict[str, object]:
    figures = {"train_loss": 6 - epoch / 20, "eval_loss": 6 - epoch / 20, "eval_top1": epoch / 100, "lr": 1e-3}
    taps = {f"rla_{phase}": [1 / NUM_LABELS] * num_taps for phase in ("running", "clean", "heldout")}
    refit = {"fresh_refit_clean": [0.01] * num_taps, "fresh_refit_half_width_clean": [0.0005] * num_taps}
    return {"kind": "epoch", "epoch": epoch, "step": epoch + 1, **figures, **taps, **refit, "images_per_second": 1000.0}


if __name__ == "__main__":
    sys.exit(main())
