"""Settings of the run itself: its folder, what it measures and keeps and how often, and how it uses the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RunConfig:
    """Where a run is written, and what happens when it is already there."""

    dir: str = "runs"
    """Folder that holds the run folders."""
    name: str = ""
    """Name of the run folder; empty: the name of the last --config file without its suffix."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: continue from the newest whole checkpoint, if any; must: fail without one; never: fail if a run is there."""
    overwrite: bool = False
    """Delete an existing run folder of this name first."""


@dataclass(frozen=True)
class EvalConfig:
    """What is measured between epochs."""

    every: int = 1
    """Epochs between evaluations on the held-out split."""
    clean_every: int = 1
    """Epochs between passes over the training set without augmentation and with weights at rest; 0: at the end only."""
    batch_size: int | None = None
    """Global batch of an evaluation; null: the training batch."""


@dataclass(frozen=True)
class LedgerConfig:
    """The per-sample record."""

    every: int = 1
    """Epochs between written ledgers; the last epoch is always written; 0: the last only."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What a run can be continued from."""

    every: int = 1
    """Epochs between checkpoints; the last epoch and a stop signal always write one."""
    keep: int = 2
    """Newest checkpoints that are kept."""


@dataclass(frozen=True)
class LogConfig:
    """Where the lines of metrics.jsonl go besides. Changes no result."""

    tensorboard: bool = True
    """Write the run folder's tensorboard/ for `tensorboard --logdir`."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases. offline: into the run folder's wandb/, to be sent by `wandb sync`; online: sent as the run goes."""
    wandb_project: str = "rlpheads"
    """W&B project of the run."""


@dataclass(frozen=True)
class ProfileConfig:
    """Which steps torch's profiler traces; written under profile/ in the run folder. Changes no result."""

    first: int | None = None
    """Number of the first traced optimizer step, from 0, best behind the slow first ones; null: no trace."""
    steps: int = 5
    """How many steps are traced."""
    ranks: Literal["main", "all"] = "main"
    """Which ranks write a trace."""


@dataclass(frozen=True)
class RuntimeConfig:
    """How the same mathematics is computed; but for activation_checkpointing and profile, last bits of results may change."""

    activation_checkpointing: bool = False
    """Compute the network's activations again in the backward pass instead of keeping them: less memory, a third more
    work. Changes no result."""
    compile: bool = False
    """Compile network and heads with torch.compile, without graph breaks."""
    channels_last: bool = False
    """Keep the network's convolution weights with the channels last, which GPUs' tensor cores prefer."""
    tf32: bool = False
    """Let matrix products and convolutions in fp32 round their inputs to TF32 on a GPU."""
    cudnn_benchmark: bool = False
    """Let cuDNN try its convolution algorithms and keep the fastest."""
    deterministic: bool = False
    """Use deterministic algorithms alone, and end the run where there is none."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
