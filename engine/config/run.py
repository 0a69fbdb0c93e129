"""Settings of the run itself: its folder, what it measures and keeps and how often, and how it uses the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RunConfig:
    """The run folder, and what happens when a run is already there."""

    dir: str = "runs"
    """Folder that holds the run folders."""
    name: str = ""
    """Name of the run folder; empty: the name of the last --config file without its suffix."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: continue from the newest complete checkpoint, if any; must: fail without one; never: fail if a run is
    there."""
    overwrite: bool = False
    """Delete an existing run folder of this name first."""
    takeover: bool = False
    """Take the folder from a run on another host at once, where a start looks for a minute whether it is alive. One that is
    alive after all ends."""


@dataclass(frozen=True)
class EvalConfig:
    """Evaluations between epochs."""

    every: int = 1
    """Epochs between evaluations on the held-out images."""
    clean_every: int = 1
    """Epochs between clean passes over the training set, without augmentation and with fixed weights; 0: at the end
    only."""
    refit: Literal["auto", "on", "off"] = "auto"
    """Refit heads by least squares to fresh labels on the features of each clean pass: what a head reaches without memory
    of its labels, the line beside trained heads. auto: where the features of all taps take at most 1 GiB; larger ones
    are for rlpheads audit."""
    overhead: bool = True
    """When a run of 60 steps or more is done, time up to ten steps with heads and ten without, in turn on its last batch,
    for what heads cost; that moves only weights which are saved already."""
    batch_size: int | None = None
    """Global batch size of evaluations; null: that of training."""
    image_size: int | None = None
    """Side of the images in evaluations, clean passes and audits, in pixels; null: data.image_size."""


@dataclass(frozen=True)
class LedgerConfig:
    """Ledgers, the per-sample records."""

    every: int = 1
    """Epochs between ledgers that are written; the last epoch always has one; 0: the last only."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints, from which a run resumes."""

    every: int = 1
    """Epochs between checkpoints; the last epoch and a stop signal always write one."""
    every_steps: int | None = None
    """Optimizer steps between checkpoints, besides those of epochs; null: none."""
    every_minutes: float | None = None
    """Minutes between checkpoints, since the last one inside an epoch; null: none."""
    keep: int = 2
    """Number of newest checkpoints that are kept."""
    keep_epochs: int = 2
    """Number of newest checkpoints of ends of epochs that are kept, whatever steps, minutes and stops add; 0: as many
    as keep leaves."""
    best: bool = False
    """Keep the network's weights of the best epoch by early_stopping.metric, in weights/best.safetensors; the averaged
    ones where that is a figure of theirs."""
    weights_every: int | None = None
    """Epochs between copies of the network's weights alone, in weights/epoch=0007.safetensors, which are never
    deleted; 0: after the last epoch only; null: none."""
    background: bool = True
    """Asynchronous checkpoints: training goes on while a copy of the state is written. The copy takes as much memory of
    the host as the state does; false: training waits."""
    on_failure: Literal["warn", "stop"] = "warn"
    """A checkpoint that cannot be written. warn: said at the next step, and the run goes on, unless it is the last;
    stop: the run ends."""
    max_failures: int = 3
    """Number of checkpoints in a row that cannot be written after which the run ends, with on_failure warn."""
    on_damage: Literal["fallback", "stop"] = "fallback"
    """A newest checkpoint that is damaged. fallback: it is set aside, named, and the run goes on from the one before;
    stop: end the start and change nothing."""


@dataclass(frozen=True)
class DistributedConfig:
    """Hangs: how long ranks wait for each other. Changes no result."""

    timeout: float | None = None
    """Seconds without progress, or without a sign of life, after which a rank counts as hung, which ends the run. null: 5
    times the slowest phase of its kind so far (step, batch, checkpoint, ...), at least 45; 45 without a sign of life."""

    start_timeout: float = 1800
    """Seconds for what is done for the first time, which may compile: the meeting of the ranks, and each kind of phase while
    a rank works at it. Without a sign of work of any rank (cores used, bytes moved, new lines of code) timeout holds."""


@dataclass(frozen=True)
class LogConfig:
    """Loggers that get the lines of metrics.jsonl, too. Changes no result."""

    summary: Literal["narrow", "wide"] = "narrow"
    """Columns of summary.csv. narrow: timm's, accuracy and excess of the random labels by tap, times; wide: every figure of
    an epoch's line."""
    tensorboard: bool = True
    """Write TensorBoard's files into the run folder's tensorboard/, for `tensorboard --logdir`."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases. offline: into the run folder's wandb/, to be sent by `wandb sync`; online: sent during the
    run."""
    wandb_project: str = "rlpheads"
    """Project of the run in W&B and trackio."""
    trackio: bool = False
    """Record in trackio too, which keeps figures on this machine, for `trackio show`."""
    images: int = 0
    """Number of first batches of the run that are drawn, as the network gets them, with the classes of both images of a mixed
    row: figures/batch_0001.png, and in TensorBoard. Each makes its step wait."""


@dataclass(frozen=True)
class ProfileConfig:
    """Steps that torch's profiler traces, into profile/ in the run folder. Changes no result."""

    first: int | None = None
    """First optimizer step that is traced, from 0; the first few of a run are slow. null: no trace."""
    steps: int = 5
    """Number of steps that are traced."""
    ranks: Literal["main", "all"] = "main"
    """Which ranks write a trace."""


@dataclass(frozen=True)
class RuntimeConfig:
    """Memory, speed and determinism; but for activation_checkpointing and profile, last bits may change."""

    activation_checkpointing: bool = False
    """Activation checkpointing: recompute the network's activations in the backward pass instead of keeping them: less
    memory, a third more work. Changes no result."""
    compile: bool | Literal["reduce-overhead", "max-autotune"] = False
    """Compile network and heads with torch.compile, without graph breaks, and on a GPU the augmentation; not heads that are
    sharded or updated fused. reduce-overhead: with CUDA graphs, which take more memory; max-autotune: also measure several
    kernels for each product, for minutes at the first step."""
    channels_last: bool = True
    """Channels-last memory format of the network's convolution weights, as images have it: tensor cores prefer it, and
    otherwise weights or their gradients are copied in every step."""
    tf32: bool = False
    """Allow TF32 on a GPU: matrix products and convolutions in fp32 round their inputs."""
    cudnn_benchmark: bool = False
    """cuDNN autotuning: try its convolution algorithms and keep the fastest."""
    deterministic: bool = False
    """Use deterministic algorithms only, and end the run where there is none."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
