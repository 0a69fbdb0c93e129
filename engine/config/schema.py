"""The configuration of a run: frozen dataclasses, one a concern; their field docstrings are the help.

`Config` holds the settings of the whole; its sections are in `data`, `learning` and `run` beside this file. Every field
that changes a result is here, and the resolved configuration is written into the run folder once, at start.
`rlpheads.engine.config.command_line` turns files and flags into a `Config`; the checks that need more than one field are in
`rlpheads.engine.checks.settings`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlpheads.engine.config.data import DataConfig
from rlpheads.engine.config.learning import (
    EarlyStoppingConfig,
    HeadsConfig,
    LossScaleConfig,
    ModelConfig,
    OptimConfig,
    RegularizerConfig,
    ScheduleConfig,
    StabilityConfig,
)
from rlpheads.engine.config.run import (
    CheckpointConfig,
    DistributedConfig,
    EvalConfig,
    LedgerConfig,
    LogConfig,
    RunConfig,
    RuntimeConfig,
)

Precision = Literal["fp32", "bf16", "fp16"]


RandomSource = Literal["split", "weights", "order", "labels", "subset", "canaries"]


@dataclass(frozen=True)
class SeedsConfig:
    """Seeds of single sources of chance, to hold one still or to move it alone; null: seed."""

    split: int | None = None
    """Which images are held out, where a data set has no split of its own."""
    weights: int | None = None
    """Initial weights of the network, heads and audit heads."""
    order: int | None = None
    """Order of the training images, their crops and augmentation."""
    labels: int | None = None
    """Random labels."""
    subset: int | None = None
    """Which training images data.subset keeps."""
    canaries: int | None = None
    """Which images have noisy labels or are canaries."""


@dataclass(frozen=True)
class Config:
    """One training run."""

    seed: int = 0
    """Seed of all streams of random numbers."""
    epochs: int = 90
    """Passes over the training set."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; the learning rate schedule still spans all epochs. null: no limit."""
    batch_size: int = 1024
    """Global batch size: samples of one optimizer step over all ranks."""
    accumulate: int = 1
    """Gradient accumulation: number of micro-batches that a rank's share of the batch is split into."""
    precision: Precision = "fp32"
    """Mixed precision: autocast type of forward and backward passes; weights and optimizer states stay fp32."""
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the run. auto: CUDA where there is one, else the CPU."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl and updates of the progress display. Changes no result."""
    plugins: list[str] = field(default_factory=list)
    """Modules to import at the start, such as my_package.my_module: they register models and optimizers with timm, and have
    callbacks or a data set (docs/plugins.md). Commands on a run folder import them only where they are told to."""
    verbose: bool = False
    """Print a line when a checkpoint is written."""
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    regularizer: RegularizerConfig = field(default_factory=RegularizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def evaluation_size(self) -> int:
        """Side of the images in evaluations, clean passes and audits, in pixels."""
        return self.data.image_size if self.eval.image_size is None else self.eval.image_size

    def seed_of(self, source: RandomSource) -> int:
        """Return the seed of one source of chance."""
        chosen: int | None = getattr(self.seeds, source)
        return self.seed if chosen is None else chosen
