"""Heads of few labels on a GPU: their features and weights in one stack each, one batched product for all heads.

What narrower heads lack is zeros. A stack is written by one call, the cast included.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlpheads.kernels.batched.written_rows import WrittenHeads, WrittenRows, written_rows
from rlpheads.kernels.gpu import few_labels, triton_loss
from rlpheads.kernels.rows.row_softmax import row_labels


def uses_stacks(device: torch.device) -> bool:
    """Whether heads are multiplied in stacks there: on a GPU, and where Triton's interpreter stands for one."""
    return device.type != "cpu" or triton_loss.INTERPRETS


def stacked_rows(
    heads: WrittenHeads,
    labels: tuple[Tensor, Tensor | None],
    kind: str | None,
    wanted: tuple[bool, bool],
    dtype: torch.dtype,
) -> WrittenRows:
    """See `written_rows`; `labels`: those of the rows (L, R), and the weight (R,) of the first of two, None for one."""
    logits_RK = stacked_logits(heads, dtype)
    if few_labels.runs_few_labels(heads.features[0], logits_RK.shape[1], dtype):
        return WrittenRows._make(few_labels.written_rows_by_triton(logits_RK, *labels, kind, wanted))
    return written_rows(logits_RK, row_labels(*labels, dtype), kind, wanted)


def stacked_logits(heads: WrittenHeads, dtype: torch.dtype) -> Tensor:
    """See `batched_logits`."""
    features_HBD, weights_HKD, biases_HK = (
        _stack(heads.features, dtype),
        _stack(heads.weights, dtype),
        _stacked_biases(heads.biases, dtype),
    )
    if biases_HK is None:
        return torch.bmm(features_HBD, weights_HKD.mT).flatten(0, 1)
    return torch.baddbmm(biases_HK[:, None], features_HBD, weights_HKD.mT).flatten(0, 1)


def stacked_class_gradients(
    features: Sequence[Tensor], gradient_RK: Tensor, upstream_R: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """See `batched_class_gradients`."""
    scaled_HBK = (gradient_RK * upstream_R[:, None]).unflatten(0, (len(features), -1))
    weights_HKD = torch.bmm(scaled_HBK.mT, _stack(features, gradient_RK.dtype))
    of_weights = [each_KD[:, : x_BD.shape[1]] for each_KD, x_BD in zip(weights_HKD.unbind(), features, strict=True)]
    return of_weights, list(scaled_HBK.sum(1).unbind())


def stacked_feature_gradients(
    weights: Sequence[Tensor], gradient_RK: Tensor, upstream_R: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """See `batched_feature_gradients`; rounded to a dtype."""
    gradient_HBK = (gradient_RK * upstream_R[:, None]).unflatten(0, (len(weights), -1))
    features_HBD = torch.bmm(gradient_HBK, _stack(weights, gradient_RK.dtype)).to(dtype)
    return [each_BD[:, : weight_KD.shape[1]] for each_BD, weight_KD in zip(features_HBD.unbind(), weights, strict=True)]


def _stack(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The matrices of all heads in a dtype, padded with zeros to the widest; one that all have in common is not copied."""
    if all(matrix is matrices[0] for matrix in matrices):
        return matrices[0].to(dtype).expand(len(matrices), -1, -1)
    widths = [matrix.shape[1] for matrix in matrices]
    empty = matrices[0].new_empty if min(widths) == max(widths) else matrices[0].new_zeros
    stacked = empty((len(matrices), matrices[0].shape[0], max(widths)), dtype=dtype)
    torch._foreach_copy_(
        [each[:, :width] for each, width in zip(stacked.unbind(), widths, strict=True)], list(matrices)
    )
    return stacked


def _stacked_biases(biases: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor | None:
    """The biases of all heads, (H, K), 0 where a head has none; None where none has."""
    given = [bias_K for bias_K in biases if bias_K is not None]
    if not given:
        return None
    zeros_K = given[0] if len(given) == len(biases) else torch.zeros_like(given[0])
    return torch.stack([zeros_K if bias_K is None else bias_K for bias_K in biases]).to(dtype)
