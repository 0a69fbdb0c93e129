"""The random labels of a run: K, chosen once when it begins (`heads.labels: auto`), and the table of every sample's labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.engine.config.errors import refusal
from rlpheads.engine.config.files import read_config_file
from rlpheads.engine.config.schema import Config
from rlpheads.engine.config.streams import stream_seed
from rlpheads.engine.distributed.launch import Rank, choose_device
from rlpheads.engine.learner.learner import num_audit_draws
from rlpheads.engine.learner.shard_choice import (
    SHARE_FOR_HEADS,
    HeadDemand,
    head_workload,
    in_units,
    memory_of_rank,
)
from rlpheads.engine.model.plan import ModelPlan
from rlpheads.engine.runs.sources import Sources
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.memorization.baselines.head_only import auto_labels, capacity_warning, head_only_rla
from rlpheads.memorization.records.ledger_file import LabelSource
from rlpheads.memorization.records.ledger_labels import labels_from


class SettledLabels(NamedTuple):
    """A configuration whose heads.labels is a number, and what the user should be told about it."""

    config: Config
    warnings: tuple[str, ...]


def settle_labels_in_memory(config: Config, plan: ModelPlan, sources: Sources, folder: Path) -> SettledLabels:
    """Settle the number of labels by images and features, and then by the memory of this rank. Arguments: see `settle_labels`.

    Raises:
        ConfigError: the heads take more memory than there is.
    """
    is_open = config.heads.labels == "auto" and _labels_in_folder(folder) is None
    settled = settle_labels(config, plan, sources, folder)
    if not plan.dims:
        return settled
    config, rank = settled.config, Rank.from_environment()
    device = choose_device(config.device, rank.local_rank)
    work = head_workload(config, plan.dims, plan.num_classes, num_audit_draws(config), device)
    demand = HeadDemand(config, work, rank.world_size, device)
    return fit_into_memory(settled, demand, memory_of_rank(device), is_open=is_open)


def settle_labels(config: Config, plan: ModelPlan, sources: Sources, folder: Path) -> SettledLabels:
    """Replace `heads.labels: auto` by a number; say where the heads alone fit nearly everything.

    The choice is `rlpheads.memorization.baselines.head_only.auto_labels` for the training images and the widest tap, whose
    heads have the most parameters. A run that was begun keeps the number that it was begun with, whatever would be chosen now.

    Args:
        config: settings of the run.
        plan: of its model.
        sources: its images.
        folder: the run folder, which may hold the settings of a run that goes on.
    """
    if not plan.dims:
        return SettledLabels(config, ())
    manifest = sources.train.manifest
    num_samples = manifest.num_samples // config.heads.num_blocks(len(manifest.classes))  # of one block's head
    num_samples, num_features = max(num_samples, 1), max(plan.dims)
    if config.heads.labels != "auto":
        warning = capacity_warning(config.heads.labels, num_samples, num_features, config.heads.label_balance)
        return SettledLabels(config, _label_warnings(warning))
    choice = auto_labels(num_samples, num_features, config.heads.label_balance)
    begun = _labels_in_folder(folder)
    if begun not in (None, choice.num_labels):
        return settle_labels(with_labels(config, begun), plan, sources, folder)
    return SettledLabels(with_labels(config, choice.num_labels), _label_warnings(choice.warning))


def fit_into_memory(settled: SettledLabels, demand: HeadDemand, memory: float, *, is_open: bool) -> SettledLabels:
    """Keep the heads within a rank's memory: by fewer labels where their number was open.

    Args:
        settled: what `settle_labels` returned.
        demand: what heads take.
        memory: bytes of a rank's memory.
        is_open: whether heads.labels was auto and is not what a run was begun with. Heads then get half of the memory.

    Raises:
        ConfigError: the heads take more than there is; it says what would fit.
    """
    given = demand.config.heads.num_labels
    share = SHARE_FOR_HEADS if is_open else 1.0
    taken = demand.costs(given).memory
    if taken <= memory * share:
        return settled
    most = demand.most_labels(memory * share)
    said = f"heads of {given:,} labels take {in_units(taken)} a rank, which has {in_units(memory)}"
    if is_open and most >= 2:
        line = f"heads.labels auto: {most:,}, not the {given:,} that the images allow: {said}"
        return SettledLabels(with_labels(settled.config, most), (*settled.warnings, line))
    ways = [f"at most {most:,} labels"] if most >= 2 else []
    if (held := demand.ranks_that_hold(given, memory)) is not None:
        ways.append(f"heads.shard class over {held[0]} ranks ({held[1]})")
    raise refusal("heads.labels", given, f"{' or '.join(ways) or 'a smaller model'}: {said}")


def head_baselines(config: Config, manifest: Manifest, dims: Sequence[int]) -> list[float]:
    """Return what a least-squares head alone reaches at every tap, on features that know nothing of the labels.

    Args:
        config: settings of the run, K settled.
        manifest: of the training images.
        dims: width D of every tap.
    """
    heads = config.heads
    num_samples = max(1, manifest.num_samples // heads.num_blocks(len(manifest.classes)))  # of one block's head
    return [head_only_rla(heads.num_labels, num_samples, dim, heads.label_balance) for dim in dims]


def label_source(config: Config, manifest: Manifest) -> LabelSource:
    """Return what the random labels of a split are computed from."""
    balance = config.heads.balance
    if balance == "balanced" and manifest.split != "train":
        balance = "iid"  # held-out labels are always i.i.d.
    return LabelSource(stream_seed(config.seed_of("labels"), "labels"), balance)


def run_labels(config: Config, manifest: Manifest, num_draws: int, device: torch.device | str | None = None) -> Tensor:
    """Return the random labels of a split in a run: int32 (M, N), in [0, K), or in [0, C·K) with labels for each class.

    Args:
        config: settings of the run, K settled.
        manifest: the split.
        num_draws: M; the draws of the audit heads come behind those of the heads.
        device: where the table is computed and lives.
    """
    source, num_labels = label_source(config, manifest), config.heads.num_labels
    return labels_from(source, manifest.split, torch.from_numpy(manifest.targets), num_labels, num_draws, device=device)


def _labels_in_folder(folder: Path) -> int | None:
    """Return K of the run in this folder, if there is one."""
    path = folder / "config.yaml"
    return read_config_file(str(path))["heads"]["labels"] if path.exists() else None


def with_labels(config: Config, num_labels: int) -> Config:
    """Return the settings with a given K."""
    return replace(config, heads=replace(config.heads, labels=num_labels))


def _label_warnings(warning: str | None) -> tuple[str, ...]:
    return () if warning is None else (f"heads.labels: {warning}",)
