"""The part of a configuration that says how the same mathematics is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


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
