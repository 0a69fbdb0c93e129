"""How much arithmetic a training needs, and which share of what the device could do it is (MFU).

Counted is what the mathematics needs: a multiply-add is two FLOP, matrix products and convolutions alone, forward and
backward, nothing that is computed a second time (activation checkpointing, tiles of the loss).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from rlpheads.engine.config.learning import HeadsConfig
from rlpheads.engine.config.schema import Config, Precision
from rlpheads.engine.model.builder import build_model

_PEAKS: tuple[tuple[str, Mapping[str, float]], ...] = (
    # A100 data sheet 2188504 (May 2022): FP32 19.5, TF32 156 | 312*, BF16 and FP16 312 | 624*; SXM and PCIe alike
    (r"A100-(SXM4|PCIE)-[48]0GB|A100 80GB PCIe", {"half": 312e12, "tf32": 156e12, "fp32": 19.5e12}),
    # nvidia.com/en-us/data-center/h100, column SXM: FP32 67, TF32 989*, BF16 and FP16 1979*
    (r"H100 80GB HBM3", {"half": 989.5e12, "tf32": 494.5e12, "fp32": 67e12}),
    # the same table, column NVL; H200 data sheet, column NVL: FP32 60, TF32 835*, BF16 and FP16 1671*
    (r"H[12]00 NVL", {"half": 835.5e12, "tf32": 417.5e12, "fp32": 60e12}),
    # H100 data sheet and white paper 1.04, column PCIe: FP32 51, TF32 756*, BF16 and FP16 1513*
    (r"H100 PCIe", {"half": 756.5e12, "tf32": 378e12, "fp32": 51e12}),
    # H200 data sheet, column SXM: FP32 67, TF32 989*, BF16 and FP16 1979*
    (r"H200", {"half": 989.5e12, "tf32": 494.5e12, "fp32": 67e12}),
    # Blackwell data sheet (October 2025), a GPU of HGX B200: FP32 75, TF32 2200*, BF16 and FP16 4500*
    (r"B200", {"half": 2250e12, "tf32": 1100e12, "fp32": 75e12}),
)
"""Dense FLOP per second by device name behind "NVIDIA ", whole: other variants have other clocks.

From NVIDIA's publications, in TFLOP/s, as public pages quote them. A star marks what holds for sparse matrices, of which
dense ones get the half.
"""

_NUM_IMAGES = 2  # batch normalisation needs more than one


@dataclass(frozen=True)
class ImageFlops:
    """FLOP of one training image, forward and backward: of the network, and of the heads (audit heads too)."""

    network: int
    heads: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.network + self.heads


@dataclass(frozen=True)
class Utilisation:
    """What turns images per second into MFU.

    Attributes:
        flops: FLOP of one image, or None where they cannot be counted.
        peak: FLOP per second of all devices together, or None where the device is not known.
    """

    flops: ImageFlops | None
    peak: float | None

    def figures(self, images_per_second: float) -> dict[str, float]:
        """Return `mfu` and the heads' part of it, `mfu_heads`, in [0, 1]; nothing where either is not known."""
        if self.flops is None or self.peak is None:
            return {}
        share = images_per_second / self.peak
        return {"mfu": share * self.flops.total, "mfu_heads": share * self.flops.heads}


def utilisation(config: Config, num_classes: int, heads: int, device: torch.device, world_size: int) -> Utilisation:
    """Return what a run's rates are held against.

    Args:
        config: settings of the run.
        num_classes: outputs of the classifier.
        heads: FLOP of an image's heads, as `head_flops` counts them.
        device: this rank's device; the others have the same.
        world_size: number of ranks.
    """
    network = network_flops(config, num_classes)
    peak = None
    if device.type == "cuda":
        peak = peak_flops(torch.cuda.get_device_name(device), config.precision, tf32=config.runtime.tf32)
    return Utilisation(
        None if network is None else ImageFlops(network, heads), None if peak is None else peak * world_size
    )


def network_flops(config: Config, num_classes: int) -> int | None:
    """Count one image's way through the configured network and back, on the meta device, where nothing is computed.

    Returns:
        FLOP; of the way forward alone where the network is frozen. None where the model looks at its numbers, which the
        meta device does not have.
    """
    size = config.data.image_size
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build_model(config, num_classes).train()
        images = torch.empty(_NUM_IMAGES, 3, size, size)
        try:
            with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(not config.model.frozen):
                logits, _ = model(images)
                if not config.model.frozen:
                    logits.sum().backward()
        except (RuntimeError, NotImplementedError, AssertionError):
            return None
    return counter.get_total_flops() // _NUM_IMAGES


def head_flops(settings: HeadsConfig, dims: Sequence[int], regularized: Sequence[int], num_audit_draws: int) -> int:
    """Return the FLOP of one image's heads, forward and backward, from their shapes.

    Args:
        settings: number of labels, draws, hidden units, weight of the joint term.
        dims: width D of every tap.
        regularized: positions of the taps whose heads are regularised.
        num_audit_draws: draws of the audit heads, whose gradient never reaches the features.
    """
    total = 0
    for position, dim in enumerate(dims):
        reaches_features = settings.joint > 0 or position in regularized
        total += settings.draws * _one_head(settings, dim, reaches_features=reaches_features)
        total += num_audit_draws * _one_head(settings, dim, reaches_features=False)
    return total


def _one_head(settings: HeadsConfig, dim: int, *, reaches_features: bool) -> int:
    """A product with a weight of K x D is needed forward, for the weight's gradient, and for that of what comes in."""
    if settings.hidden is None:
        return 2 * settings.num_labels * dim * (2 + reaches_features)
    hidden = 2 * settings.hidden * dim * (2 + reaches_features)
    return 2 * settings.num_labels * settings.hidden * 3 + hidden


def peak_flops(device_name: str, precision: Precision, *, tf32: bool) -> float | None:
    """Return a device's dense FLOP per second in this precision; None for one that is not in the table, or a part of one.

    Args:
        device_name: as `torch.cuda.get_device_name` says.
        precision: autocast type.
        tf32: whether products in fp32 are rounded to TF32.
    """
    kind = "half" if precision != "fp32" else "tf32" if tf32 else "fp32"
    variant = device_name.removeprefix("NVIDIA ")
    return next((peaks[kind] for pattern, peaks in _PEAKS if re.fullmatch(pattern, variant)), None)
