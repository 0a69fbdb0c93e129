"""A dataset's images written into the store that the ffcv loader reads: estimate, progress and summary."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from rlpheads.engine.commands.verify_tree import print_remarks
from rlpheads.engine.config.data import DataConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.config.streams import stream_seed
from rlpheads.engine.runs.sources import scan_cache
from rlpheads.engine.terminal.text import shell_word
from rlpheads.loaders.adapters.libraries import check_ffcv
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.manifest import ExifPolicy
from rlpheads.loaders.sources.beton import StoreFacts
from rlpheads.loaders.sources.datasets import open_dataset, split_key
from rlpheads.loaders.store.estimate import estimate
from rlpheads.loaders.store.image_encoding import Encoding
from rlpheads.loaders.store.write_ffcv import Job, write_beton

IMAGENET_IMAGES = (1_281_167, 50_000)
"""Training and held-out images of ImageNet-1k."""


@dataclass(frozen=True)
class ConvertOptions:
    """What is converted, and how.

    Attributes:
        dataset: As data.dataset of a run.
        root: As data.root.
        val_fraction: As data.val_fraction.
        seed: As seed: with `val_fraction` it decides what is held out.
        out: Folder of the store.
        encoding: How images are stored.
        exif: As data.exif.
        on_error: As data.on_error.
        workers: Processes that encode; 0 encodes in this one.
        page_size: Bytes of FFCV's pages.
    """

    dataset: str
    root: Path | None
    val_fraction: float | None
    seed: int
    out: Path
    encoding: Encoding
    exif: ExifPolicy
    on_error: Literal["raise", "skip"]
    workers: int
    page_size: int


def convert(options: ConvertOptions, console: Console) -> None:
    """Print how large the store becomes and how long it takes, write it, and print what was written.

    Raises:
        DatasetError: FFCV is not installed, the dataset cannot be opened, the store is there already or has no room.
        ImageReadError: an image cannot be read, and `on_error` is "raise".
        LoaderError: an encoding process died.
        OSError: the store cannot be written.
    """
    torch.set_num_threads(1)  # for the estimate: an encoding process has one
    check_ffcv()
    jobs = _plan_jobs(options)
    print_remarks([job.source.manifest for job in jobs], console)
    num_images = sum(job.source.manifest.num_samples for job in jobs)
    costs = estimate(jobs[-1].source, jobs[-1].encoding)
    num_bytes = sum(costs.file_bytes(job.source.manifest.num_samples, job.page_size) for job in jobs)
    imagenet_bytes = sum(costs.file_bytes(count, options.page_size) for count in IMAGENET_IMAGES)
    seconds_per_image = costs.seconds_per_image / max(1, options.workers)
    ours = _costs_text(num_bytes, num_images * seconds_per_image)
    imagenet = _costs_text(imagenet_bytes, sum(IMAGENET_IMAGES) * seconds_per_image)
    console.print(f"{num_images:,} images: about {ours} on {max(1, options.workers)} process(es)")
    console.print(f"ImageNet-1k at this rate, {sum(IMAGENET_IMAGES):,} images: {imagenet}")
    _check_room(jobs, num_bytes)
    console.print(_summary_table(jobs, _write(jobs, console)))
    flags = " ".join(map(shell_word, _training_flags(options)))
    console.print(f"train with: {flags}", markup=False, soft_wrap=True)


def _training_flags(options: ConvertOptions) -> list[str]:
    """Return the settings of a run on the store: those that it was made with, where they are not a run's defaults."""
    settings: dict[str, object] = {"data.root": options.out, "data.loader": "ffcv"}
    default = DataConfig()
    for name in ("dataset", "val_fraction", "exif", "on_error"):
        if (given := getattr(options, name)) != getattr(default, name):
            settings[f"data.{name}"] = given
    seed = options.seed
    if seed != Config().seed and split_key(options.dataset, options.val_fraction, seed) is not None:
        settings["seeds.split"] = seed
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def _plan_jobs(options: ConvertOptions) -> list[Job]:
    """Return what is to be written of each split.

    Raises:
        DatasetError: If the dataset cannot be opened, or the store is there already.
    """
    if options.out.exists() and not options.out.is_dir():
        raise DatasetError(f"{options.out} is a file; a store is a folder: name another")
    seed = stream_seed(options.seed, "split")
    cache = scan_cache(rescan=True)  # runs take the listing up
    splits = open_dataset(
        options.dataset,
        options.root,
        val_fraction=options.val_fraction,
        seed=seed,
        cache=cache,
        exif=options.exif,
    )
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


def _costs_text(num_bytes: float, seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    duration = f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
    return f"{_format_bytes(num_bytes)}, {duration}"


def _check_room(jobs: list[Job], num_bytes: float) -> None:
    """Raise DatasetError if the disk has no room for so many bytes, less those that an earlier start has written."""
    folder = next(parent for parent in (jobs[0].path.parent, *jobs[0].path.parent.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    written = sum(job.sidecar(".partial").stat().st_size for job in jobs if job.sidecar(".partial").exists())
    if num_bytes > free + written:
        raise DatasetError(
            f"{folder} has {_format_bytes(free)} left, and the store takes about {_format_bytes(num_bytes)}: "
            "name a folder on another disk, or make the images smaller (--long or --short)"
        )


def _write(jobs: list[Job], console: Console) -> list[StoreFacts]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn())
    facts = []
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        for job in jobs:
            task = progress.add_task(job.path.name, total=job.source.manifest.num_samples)
            facts.append(write_beton(job, lambda num_images, task=task: progress.advance(task, num_images)))  # type: ignore[misc]
    return facts


def _summary_table(jobs: list[Job], facts: list[StoreFacts]) -> Table:
    table = Table("file", "images", "unreadable", "size", "fingerprint")
    for job, each in zip(jobs, facts, strict=True):
        counts = f"{job.source.manifest.num_samples:,}", f"{len(each.unreadable):,}"
        table.add_row(str(job.path), *counts, _format_bytes(each.num_bytes), each.fingerprint[:16])
    return table


def _format_bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
