"""Weights of the network alone, in safetensors files that `model.checkpoint`, timm and others load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from rlpheads.memorization.atomic_file import atomic_file


def write_weights(path: Path, network: nn.Module, facts: Mapping[str, Any]) -> None:
    """Write a network's weights and buffers, whole or not at all.

    Args:
        path: the file; an older one is replaced.
        network: on any device; its own names are those in the file.
        facts: what is told of them, as text, in the file's header.
    """
    # copies: tied weights are two names of one tensor, which the format refuses
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in network.state_dict().items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={name: str(value) for name, value in facts.items()})
