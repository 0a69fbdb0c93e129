"""The part of a configuration that says how the same mathematics is computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RuntimeConfig:
    """How the same mathematics is computed; all but activation_checkpointing may change the last bits of a result."""

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
