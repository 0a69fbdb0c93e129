"""What the settings mean to the loaders."""

from __future__ import annotations

import torch

from rlpheads.engine.config.data import DaliConfig
from rlpheads.loaders.contract.dali_options import DaliOptions


def dali_options(settings: DaliConfig, device: torch.device) -> DaliOptions:
    """Return where DALI decodes for a model on `device`."""
    on_gpu = device.type == "cuda" and settings.decode != "cpu"
    return DaliOptions(
        device_id=(device.index or 0) if on_gpu else None,
        hardware_share=settings.hardware_share,
        largest_image=settings.largest_image,
    )
