"""Autocast: weights and optimizer states are fp32, forward and backward run in the configured type."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from rlpheads.engine.config.schema import Precision

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(precision: Precision) -> torch.dtype:
    """Return the type in which matrix products of a forward pass run."""
    return _DTYPES.get(precision, torch.float32)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which a forward pass runs."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])
