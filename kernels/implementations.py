"""Which implementation of the loss `impl` means, by device and size."""

from torch import Tensor

from rlpheads.kernels import arguments
from rlpheads.kernels.gpu import triton_loss

IMPLS = ("auto", "batched", "reference", "tiled_cpu", "triton")
"""What `impl` may be."""

MAX_SMALL_LOGITS = 2**15
"""Entries of B x K up to which `auto` writes all logits out on a CPU: below, a call costs more than its arithmetic."""

MAX_SMALL_LABELS = 192
"""Labels K up to which it does so at any number of rows: the logits are small beside the features then."""

MAX_WRITTEN_LABELS, MAX_WRITTEN_LOGITS = 2048, 2**21
"""Labels and entries up to which it does so, too: a product less is worth more than what lies in a cache."""


MAX_BFLOAT16_LABELS, MAX_BFLOAT16_LOGITS = 10_000, 2**24
"""The same for bfloat16 on a processor that multiplies it: tiles widen it, and take 1.3 to 2 times as long."""

MAX_BATCHED_LABELS_ON_GPU = 512
"""Labels K up to which `auto` writes all logits out on a GPU: launches cost more than arithmetic there. Not measured yet."""


def resolve_impl(impl: str, features_BD: Tensor, num_labels: int, *, in_bfloat16: bool = False) -> str:
    """Return the implementation that `impl` means on this device and size: one of `IMPLS` but `auto`.

    Args:
        impl: as for `random_label_loss`.
        features_BD: the features (B, D).
        num_labels: K.
        in_bfloat16: whether matrix products of all logits would be in bfloat16 on a CPU (`written_rows.product_dtype`).

    Raises:
        ValueError: there is none of that name, or it does not run there.
    """
    if impl == "batched":
        return impl
    kernel = resolve_kernel(impl, features_BD, num_labels)
    num_rows = features_BD.shape[0]
    writes_out = kernel == "reference" or _writes_out(features_BD.device.type, num_rows, num_labels, in_bfloat16)
    return "batched" if impl == "auto" and writes_out else kernel


def resolve_kernel(impl: str, features_BD: Tensor, num_classes: int) -> str:
    """Return the name in `stages.KERNELS` of the local stages for a range of so many classes, else like `resolve_impl`."""
    arguments.check_known_name("impl", impl, IMPLS)
    on_cpu = features_BD.device.type == "cpu"
    if impl == "batched":
        return "reference"
    if impl == "auto" and on_cpu:
        is_small = num_classes <= MAX_SMALL_LABELS or features_BD.shape[0] * num_classes <= MAX_SMALL_LOGITS
        return "reference" if is_small else "tiled_cpu"
    reason = triton_loss.unsupported_reason(features_BD) if impl in ("auto", "triton") else None
    if impl == "auto":
        return "reference" if reason else "triton"
    if impl == "triton" and reason:
        raise ValueError(f"impl 'triton' {reason}: use 'auto' or 'reference'")
    if impl == "tiled_cpu" and not on_cpu:
        raise ValueError(
            f"impl 'tiled_cpu' runs on the CPU; the features are on {features_BD.device}: use 'auto' or 'reference'"
        )
    return impl


def _writes_out(device: str, num_rows: int, num_labels: int, in_bfloat16: bool) -> bool:
    """Whether `auto` writes all logits out, where they are not so few that it does anyway."""
    if device == "cpu":
        labels, logits = MAX_WRITTEN_LABELS, MAX_WRITTEN_LOGITS
        if in_bfloat16:
            labels, logits = MAX_BFLOAT16_LABELS, MAX_BFLOAT16_LOGITS
        return num_labels <= labels and num_rows * num_labels <= logits
    return num_labels <= MAX_BATCHED_LABELS_ON_GPU
