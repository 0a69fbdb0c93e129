"""`rlpheads convert`: a dataset's images into the store that the ffcv loader reads."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from rlpheads.engine.config.streams import stream_seed
from rlpheads.loaders.contract.errors import DatasetError, ImageReadError, LoaderError
from rlpheads.loaders.factory import check_ffcv
from rlpheads.loaders.sources.beton import StoreFacts
from rlpheads.loaders.sources.datasets import open_dataset, split_key
from rlpheads.loaders.store.image_encoding import Encoding
from rlpheads.loaders.store.write_ffcv import Estimate, Job, estimate, write_beton

IMAGENET_IMAGES = 1_281_167 + 50_000
"""Training and held-out images of ImageNet-1k."""


@dataclass(frozen=True)
class ConvertOptions:
    """What the command line says.

    Attributes:
        dataset: As data.dataset of a run.
        root: As data.root.
        val_fraction: As data.val_fraction.
        seed: As seed: with `val_fraction` it decides what is held out.
        out: Folder of the store.
        encoding: How images are stored.
        on_error: As data.on_error.
        workers: Processes that encode; 0 encodes in this one.
        page_size: Bytes of FFCV's pages.
    """

    dataset: str
    root: str | None
    val_fraction: float | None
    seed: int
    out: Path
    encoding: Encoding
    on_error: Literal["raise", "skip"]
    workers: int
    page_size: int


def run_convert(options: ConvertOptions) -> int:
    """Write the store; say beforehand how large it becomes and how long it takes. Return the exit code."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    torch.set_num_threads(1)  # for the estimate: an encoding process has one
    try:
        check_ffcv()
        jobs = _jobs(options)
        _tell_the_estimate(jobs, console)
        facts = _write(jobs, console)
    except (DatasetError, ImageReadError, LoaderError, OSError) as error:
        print(f"error: {error}{_remedy(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 130
    console.print(_summary(jobs, facts))
    console.print(f"train with: --data.root {options.out} --data.loader ffcv", soft_wrap=True)
    return 0


def _jobs(options: ConvertOptions) -> list[Job]:
    """Return what is to be written of each split.

    Raises:
        DatasetError: If the dataset cannot be opened, or the store is there already.
    """
    if options.out.exists() and not options.out.is_dir():
        raise DatasetError(f"{options.out} is a file; a store is a folder: name another")
    seed = stream_seed(options.seed, "split")
    splits = open_dataset(options.dataset, options.root, val_fraction=options.val_fraction, seed=seed)
    key = split_key(options.dataset, options.val_fraction, seed)
    paths = [options.out / f"{source.manifest.split}.beton" for source in splits]
    if all(path.exists() for path in paths):
        raise DatasetError(f"{options.out} is a store already; name another folder, or delete it first")
    return [
        Job(
            source=source,
            path=path,
            dataset=options.dataset,
            split_key=key,
            encoding=options.encoding,
            on_error=options.on_error,
            num_workers=options.workers,
            page_size=options.page_size,
        )
        for source, path in zip(splits, paths, strict=True)
        if not path.exists()  # an earlier start may have finished it
    ]


def _tell_the_estimate(jobs: list[Job], console: Console) -> None:
    """Say how large the store becomes and how long it takes, and the same for ImageNet.

    Raises:
        DatasetError: If the disk has less room than that.
    """
    few = estimate(jobs[-1].source, jobs[-1].encoding)
    num_images = sum(job.source.manifest.num_samples for job in jobs)
    processes = max(1, jobs[0].num_workers)
    console.print(f"{num_images:,} images: about {_costs(few, num_images, processes)} on {processes} process(es)")
    console.print(f"ImageNet-1k at this rate, {IMAGENET_IMAGES:,} images: {_costs(few, IMAGENET_IMAGES, processes)}")
    folder = next(parent for parent in (jobs[0].path.parent, *jobs[0].path.parent.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    begun = sum(job.beside(".partial").stat().st_size for job in jobs if job.beside(".partial").exists())
    if few.bytes_per_image * num_images > free + begun:
        raise DatasetError(
            f"{folder} has {_bytes(free)} left, and the store takes about {_bytes(few.bytes_per_image * num_images)}: "
            "name a folder on another disk, or make the images smaller (--long or --short)"
        )


def _costs(few: Estimate, num_images: int, processes: int) -> str:
    seconds = few.seconds_per_image * num_images / processes
    hours, rest = divmod(round(seconds), 3600)
    duration = f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
    return f"{_bytes(few.bytes_per_image * num_images)}, {duration}"


def _write(jobs: list[Job], console: Console) -> list[StoreFacts]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn())
    facts = []
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for job in jobs:
            task = progress.add_task(job.path.name, total=job.source.manifest.num_samples)
            facts.append(write_beton(job, lambda num_images, task=task: progress.advance(task, num_images)))  # type: ignore[misc]
    return facts


def _summary(jobs: list[Job], facts: list[StoreFacts]) -> Table:
    table = Table("file", "images", "unreadable", "size", "fingerprint")
    for job, each in zip(jobs, facts, strict=True):
        counts = f"{job.source.manifest.num_samples:,}", f"{len(each.unreadable):,}"
        table.add_row(str(job.path), *counts, _bytes(each.num_bytes), each.fingerprint[:16])
    return table


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _remedy(error: Exception) -> str:
    if isinstance(error, ImageReadError):
        return (
            ". Start again with --data.on_error skip to go on without it, its index and the reason noted in the store"
        )
    if isinstance(error, (OSError, LoaderError)):
        return ". What was written stays: the same command goes on from there"
    return ""
