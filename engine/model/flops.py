"""FLOP of a training image, peaks of devices, and model FLOP utilisation (MFU).

A multiply-add counts as two FLOP. Only matrix products and convolutions are counted, forward and backward, as the mathematics
needs them: what is computed a second time (activation checkpointing, tiles of the loss) is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from rlpheads.engine.config.learning import HeadsConfig
from rlpheads.engine.config.schema import Config, Precision
from rlpheads.engine.model.tapped_model import TappedModel

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
"""Peak FLOP per second of dense matrices, by the full device name after "NVIDIA ": other variants have other clocks.

From NVIDIA's data sheets, whose figures in TFLOP/s are quoted beside each entry. A star marks a figure with sparsity; dense
matrices get half of it.
"""

_NUM_IMAGES = 2  # batch normalisation needs more than one


@dataclass(frozen=True)
class ImageFlops:
    """FLOP of one training image, forward and backward, of the network and of the heads, audit heads included."""

    network: int
    heads: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.network + self.heads


@dataclass(frozen=True)
class Utilisation:
    """FLOP of an image and peak of the devices, from which images per second give MFU.

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


def utilisation(config: Config, network: int | None, heads: int, device: torch.device, world_size: int) -> Utilisation:
    """Return what a run's images per second are compared with.

    Args:
        config: settings of the run.
        network: FLOP of an image in the network, as `network_flops` counts them.
        heads: FLOP of an image's heads, as `head_flops` counts them.
        device: this rank's device; the others have the same.
        world_size: number of ranks.
    """
    peak = None
    if device.type == "cuda":
        peak = peak_flops(torch.cuda.get_device_name(device), config.precision, tf32=config.runtime.tf32)
    return Utilisation(
        None if network is None else ImageFlops(network, heads), None if peak is None else peak * world_size
    )


def network_flops(model: TappedModel, image_size: int, *, frozen: bool = False) -> int | None:
    """Count the FLOP of one image's forward and backward pass through a network on the meta device.

    Args:
        model: the network, on the meta device; it is left in training mode.
        image_size: side of the images in pixels.
        frozen: count the forward pass alone.

    Returns:
        FLOP; None where the model's code reads values of tensors, which the meta device does not have.
    """
    model.train()
    images = torch.empty(_NUM_IMAGES, 3, image_size, image_size, device="meta")
    try:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(not frozen):
            logits, _ = model(images)
            if not frozen:
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
    """Count a product with the weight (K, D) for the output, for the weight's gradient, and for the features' gradient."""
    if settings.hidden is None:
        return 2 * settings.num_labels * dim * (2 + reaches_features)
    hidden = 2 * settings.hidden * dim * (2 + reaches_features)
    return 2 * settings.num_labels * settings.hidden * 3 + hidden


def peak_flops(device_name: str, precision: Precision, *, tf32: bool) -> float | None:
    """Return a device's peak, dense FLOP per second in this precision; None for one not in the table, or a MIG slice.

    Args:
        device_name: as `torch.cuda.get_device_name` says.
        precision: autocast type.
        tf32: whether products in fp32 are rounded to TF32.
    """
    kind = "half" if precision != "fp32" else "tf32" if tf32 else "fp32"
    variant = device_name.removeprefix("NVIDIA ")
    return next((peaks[kind] for pattern, peaks in _PEAKS if re.fullmatch(pattern, variant)), None)
