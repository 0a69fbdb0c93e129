"""Measures of memorisation from one pass over the samples: random-label accuracy, Rademacher estimate, bits, margins.

Pure functions on tensors, computed in fp64 on the CPU whatever the device of the input, and called between epochs, never
inside a step. The last dimension is always the samples (N); any dimensions before it (taps T, draws M) are kept. Intervals
are in `intervals`, per-sample scores in `sample_scores`, training dynamics in `sample_dynamics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.memorization.arguments import (
    check_count,
    check_fractions,
    check_hits,
    check_no_nan,
    check_num_labels,
)
from rlpheads.memorization.measures.calibration import NUM_BINS, CalibrationBins
from rlpheads.memorization.measures.intervals import as_float64
from rlpheads.memorization.quantiles import quantiles

_ROWS_AT_ONCE = 2**16
_BITS_ROUNDING = 0.01
"""How far rounding (fp32 sums of products in bf16) may lift a sample's bits above log2 K."""


class Bits(NamedTuple):
    """Bits about the random labels that a head holds, each fp64 of the leading shape of its input.

    `log2_e_value` is log2 of an e-value against "the predictions do not depend on the labels" (for i.i.d. labels), and
    `p_bound` = min(1, 2^−T) the p-value that Markov's inequality makes of it: P(T ≥ log2(1/δ)) ≤ δ, with no asymptotics.
    """

    total: Tensor
    per_sample: Tensor
    per_head_parameter: Tensor
    per_network_parameter: Tensor | None
    log2_e_value: Tensor
    p_bound: Tensor


class MarginSummary(NamedTuple):
    """Margins z_y − max_{j≠y} z_j over the samples, in units of logits; `quantiles` has one more dimension, in front."""

    mean: Tensor
    quantiles: Tensor
    fraction_positive: Tensor


def random_label_accuracy(hit_N: Tensor, seen_N: Tensor | None = None) -> Tensor:
    """Random-label accuracy (RLA): the fraction of samples whose random label is predicted.

    Args:
        hit_N: bool, integer or float hits, each 0 or 1, of shape (..., N), such as (T, M, N).
        seen_N: bool (N,), the samples that count; default all. What the others hold is not looked at.

    Returns:
        fp64 of shape (...).

    Raises:
        ValueError: no sample counts, or a value among those that count is neither 0 nor 1.
    """
    hits = _select_seen(hit_N, seen_N)
    check_hits("hit_N", hits)
    return hits.mean(-1)


def rademacher_estimate(accuracy: Tensor | float, num_labels: int) -> Tensor:
    """R̂_K = (K·RLA − 1)/(K − 1) of accuracies of any shape: 0 at chance, 1 when every label is fitted; fp64.

    It equals the mean correlation of the predictions with regular-simplex codes of the labels; K = 2 gives 2·RLA − 1. It is a
    lower bound on the empirical Rademacher complexity of the class, since training does not reach the supremum.

    Raises:
        ValueError: an accuracy is NaN or outside [0, 1].
    """
    num_labels, accuracy = check_num_labels(num_labels), as_float64(accuracy)
    check_fractions("accuracy", accuracy)
    return (num_labels * accuracy - 1) / (num_labels - 1)


def stored_bits(
    bits_N: Tensor,
    num_labels: int,
    num_features: int,
    seen_N: Tensor | None = None,
    *,
    num_network_parameters: int | None = None,
) -> Bits:
    """Sum the bits b_i = log2 K + log2 p_i(y_i) of the samples: a lower bound on what is stored about the labels.

    Args:
        bits_N: bits of shape (..., N), at most log2 K. Kept in fp32 by the ledger, summed here in fp64.
        num_labels: K.
        num_features: d; a linear head has d·(K−1) parameters that matter (softmax is blind to a shift).
        seen_N: bool (N,), the samples that count; default all.
        num_network_parameters: parameters of the backbone, for a run with joint heads, whose backbone stores labels too.

    Returns:
        Bits of shape (...). For labels that were drawn i.i.d. and predictions that do not depend on them E[2^T] = 1.

    Raises:
        ValueError: bits that are NaN or above log2 K, no sample that counts, or a count below 1.
    """
    num_labels, num_features = check_num_labels(num_labels), check_count("num_features", num_features)
    if num_network_parameters is not None:
        num_network_parameters = check_count("num_network_parameters", num_network_parameters)
    selected = _select_seen(bits_N, seen_N)
    most = math.log2(num_labels)
    if not bool((selected <= most + _BITS_ROUNDING).all()):
        raise ValueError(
            f"bits_N holds NaN, or more than log2 {num_labels} = {most:.4g}, the most that log2 K + log2 p can be"
        )
    total = selected.sum(-1)
    return Bits(
        total=total,
        per_sample=total / selected.shape[-1],
        per_head_parameter=total / (num_features * (num_labels - 1)),
        per_network_parameter=None if num_network_parameters is None else total / num_network_parameters,
        log2_e_value=total,
        p_bound=torch.exp2(-total.clamp(min=0.0)),
    )


def margin_summary(
    margin_N: Tensor, seen_N: Tensor | None = None, levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
) -> MarginSummary:
    """Mean, quantiles and fraction above zero of margins of shape (..., N); a positive margin is a hit (but for ties).

    Raises:
        ValueError: no sample counts, or a margin is NaN.
    """
    selected = _select_seen(margin_N, seen_N)
    check_no_nan("margin_N", selected)
    return MarginSummary(selected.mean(-1), quantiles(selected, levels), (selected > 0).double().mean(-1))


def expected_calibration_error(confidence_N: Tensor, hit_N: Tensor, num_bins: int = NUM_BINS) -> Tensor:
    """Expected calibration error: Σ over equal-width bins of (share of the samples)·|accuracy − mean confidence|; 0-d fp64.

    Args:
        confidence_N: probability given to the predicted label, in [0, 1], shape (N,).
        hit_N: whether it was right, 0 or 1, shape (N,).
        num_bins: bins of [0, 1], closed on the right; 0 falls into the first.

    Source: see `CalibrationBins`, which an evaluation fills batch by batch.
    """
    confidence, hit = as_float64(confidence_N), as_float64(hit_N)
    if confidence.shape != hit.shape or confidence.dim() != 1 or not len(confidence):
        raise ValueError(
            f"confidence_N and hit_N must be (N,) with N ≥ 1; given {tuple(confidence.shape)}, {tuple(hit.shape)}"
        )
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError("confidence_N must lie in [0, 1]")
    check_hits("hit_N", hit)
    bins = CalibrationBins(num_bins)
    for confidence_B, hit_B in zip(confidence.split(_ROWS_AT_ONCE), hit.split(_ROWS_AT_ONCE), strict=True):
        bins.add(confidence_B, hit_B)
    return bins.error(len(hit))


def _select_seen(values_N: Tensor, seen_N: Tensor | None) -> Tensor:
    values = as_float64(values_N)
    if values.dim() == 0:
        raise ValueError("the samples are the last dimension; a scalar was given")
    if seen_N is not None:
        if seen_N.shape != values.shape[-1:]:
            raise ValueError(f"seen_N has shape {tuple(seen_N.shape)}; the values have {values.shape[-1]} samples")
        seen_N = seen_N.detach().cpu()
        check_hits("seen_N", seen_N)
        values = values[..., seen_N.bool()]
    if values.shape[-1] == 0:
        raise ValueError("no samples to measure: the last dimension is empty")
    return values
