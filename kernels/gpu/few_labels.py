"""Rows of heads with few labels on a GPU, from logits that are written out: all values and dL/dz in one launch.

Imports Triton at the first call only, so that the rest of the package runs where there is none.
"""

import torch
from torch import Tensor

from rlpheads.kernels.gpu.triton_loss import unsupported_reason

MAX_LABELS = 1024
"""Labels of a row that one block holds; beyond, PyTorch makes of the logits what is needed."""


def runs_few_labels(features_BD: Tensor, num_labels: int, dtype: torch.dtype) -> bool:
    """Whether the kernel runs there, for sums in this dtype."""
    return dtype == torch.float32 and num_labels <= MAX_LABELS and unsupported_reason(features_BD) is None


def written_rows_by_triton(
    logits_RK: Tensor,
    index_LR: Tensor,
    first_weight_R: Tensor | None,
    kind: str | None,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """The members of `rlpheads.kernels.batched.written_rows.WrittenRows`, from labels (L, R) and the weight of the first."""
    from rlpheads.kernels.gpu import triton_gradient_launch

    logits_RK, index_LR = logits_RK.contiguous(), index_LR.contiguous()
    empty = logits_RK.new_empty
    matrices = [empty(logits_RK.shape) if is_wanted else None for is_wanted in wanted]
    values, hit_R = tuple(empty(len(logits_RK)) for _ in range(6)), empty(len(logits_RK), dtype=torch.bool)
    if len(logits_RK):
        triton_gradient_launch.finish_written_rows(
            logits_RK, index_LR, first_weight_R, kind, (values, hit_R, *matrices)
        )
    cross_entropy_R, _, *others = values
    return (cross_entropy_R, *others, hit_R, *matrices)
