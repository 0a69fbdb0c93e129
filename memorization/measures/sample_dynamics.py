"""Training dynamics of each sample: first-learned epoch, forgetting events, dataset maps, loss traces, noise AUC.

The first dimension is the epochs (E, in order), the last the samples (N). Epochs are positions in what is given, so a ledger
that was written every fifth epoch counts in fives. fp64 on the CPU whatever the device of the input.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from rlpheads.memorization.arguments import check_count, check_finite, check_hits
from rlpheads.memorization.measures.intervals import as_float64
from rlpheads.memorization.quantiles import quantiles


class DatasetMap(NamedTuple):
    """Dataset map, fp64 (N,): mean and standard deviation over epochs of the probability of the class, and fraction of hits."""

    confidence_N: Tensor
    variability_N: Tensor
    correctness_N: Tensor


HITS_IN_A_ROW = 3
"""Hits in a row that count as learning. The literal first hit is `first_learned_epoch(hit_EN, 1)`."""


def first_learned_epoch(hit_EN: Tensor, consecutive: int = HITS_IN_A_ROW) -> Tensor:
    """Position of the first epoch that begins a run of hits of each sample; E (one past the last) for none. int64 (N,).

    Never-learned samples thus rank last, as a noise score needs it.

    Args:
        hit_EN: hits, each 0 or 1, (E, N).
        consecutive: how many hits in a row; a run that the last epoch cuts short counts. With 1, the literal first hit, a
            chance hit of an untrained network counts as learning: with C classes one sample in C is hit in any of the
            first epochs. Three in a row happen by chance once in C³, if the guesses are independent.
    """
    consecutive = check_count("consecutive", consecutive)
    hit_EN = _checked_history(hit_EN)
    run_EN = hit_EN.clone()
    for ahead in range(1, min(consecutive, len(hit_EN))):
        run_EN[:-ahead] &= hit_EN[ahead:]
    ever_N = run_EN.any(0)
    return torch.where(ever_N, run_EN.to(torch.uint8).argmax(0), len(hit_EN))


def learned_for_good_epoch(hit_EN: Tensor) -> Tensor:
    """First-split learning time: position of the first epoch from which each sample was hit to the end. int64 (N,).

    It is E for a sample missed in the last epoch. Chance hits of an untrained network do not move it, unlike the first hit.

    Source: Maini et al., Characterizing Datapoints via Second-Split Forgetting (NeurIPS 2022), first-split learning time.
    """
    hit_EN = _checked_history(hit_EN)
    return len(hit_EN) - hit_EN.flip(0).to(torch.int64).cumprod(0).sum(0)


def forgetting_events(hit_EN: Tensor) -> Tensor:
    """How often each sample was hit in one epoch and missed in the next. int64 (N,); 0 for a sample never learned.

    Source: Toneva et al., An Empirical Study of Example Forgetting (ICLR 2019).
    """
    hit_EN = _checked_history(hit_EN)
    return (hit_EN[:-1] & ~hit_EN[1:]).sum(0)


def dataset_map(class_loss_EN: Tensor, class_hit_EN: Tensor) -> DatasetMap:
    """Dataset cartography: confidence, variability and correctness of each sample.

    Args:
        class_loss_EN: cross-entropy of the class in nats without label smoothing, (E, N); the probability is exp(−loss).
            At least 0; where it is NaN, so are the sample's confidence and variability.
        class_hit_EN: whether the class was predicted, (E, N).

    Source: Swayamdipta et al., Dataset Cartography (EMNLP 2020); the standard deviation divides by E, as there.
    """
    hit_EN = _checked_history(class_hit_EN)
    if class_loss_EN.shape != hit_EN.shape:
        raise ValueError(f"losses have shape {tuple(class_loss_EN.shape)}, hits {tuple(hit_EN.shape)}; they must agree")
    loss_EN = as_float64(class_loss_EN)
    if bool((loss_EN < 0).any()):
        raise ValueError(
            f"class_loss_EN holds {float(loss_EN.nan_to_num(nan=0.0).min())}; a cross-entropy is at least 0"
        )
    probability_EN = torch.exp(-loss_EN)
    return DatasetMap(probability_EN.mean(0), probability_EN.std(0, correction=0), hit_EN.double().mean(0))


def cumulative_loss(class_loss_EN: Tensor) -> Tensor:
    """Cumulative sample loss (CSL): the sum of each sample's class loss over the epochs, in nats; fp64 (N,).

    Source: Ravikumar et al., Towards Memorization Estimation: Fast, Formal and Free (ICML 2025).
    """
    return _checked_losses(class_loss_EN).sum(0)


def loss_trace_iqr(class_loss_EN: Tensor) -> Tensor:
    """LT-IQR: the inter-quartile range of each sample's class loss over the epochs, in nats; fp64 (N,).

    A sample that is learned late, against what the others teach, has a loss that falls far.

    Source: Pollock et al., Free Record-Level Privacy Risk Evaluation Through Artifact-Based Methods (2024).
    """
    low_N, high_N = quantiles(_checked_losses(class_loss_EN).T, (0.25, 0.75))
    return high_N - low_N


def noisy_label_auc(score_N: Tensor, noisy_N: Tensor) -> Tensor:
    """Probability that a mislabelled sample scores above a clean one, ties counting half (area under the ROC curve); 0-d fp64.

    Args:
        score_N: higher means more suspect, such as `first_learned_epoch`, (N,).
        noisy_N: whether the sample's class was flipped, 0 or 1, (N,).
    """
    noisy = noisy_N.detach().cpu()
    check_hits("noisy_N", noisy)
    noisy = noisy.bool()
    score = as_float64(score_N)
    if score.shape != noisy.shape or score.dim() != 1:
        raise ValueError(f"score_N and noisy_N must be (N,); given {tuple(score.shape)} and {tuple(noisy.shape)}")
    num_noisy, num_clean = int(noisy.sum()), int((~noisy).sum())
    if not num_noisy or not num_clean:
        raise ValueError(f"an AUC needs noisy and clean samples; given {num_noisy} noisy and {num_clean} clean")
    if bool(score.isnan().any()):
        raise ValueError("score_N holds NaN, which has no rank")
    rank = torch.from_numpy(stats.rankdata(score.numpy()))
    return (rank[noisy].sum() - num_noisy * (num_noisy + 1) / 2) / (num_noisy * num_clean)


def _checked_losses(class_loss_EN: Tensor) -> Tensor:
    losses = as_float64(class_loss_EN)
    if losses.dim() != 2 or 0 in losses.shape:
        raise ValueError(f"losses must have shape (E, N), neither 0; given {tuple(losses.shape)}")
    check_finite("class_loss_EN", losses)
    return losses


def _checked_history(hit_EN: Tensor) -> Tensor:
    if hit_EN.dim() != 2 or 0 in hit_EN.shape:
        raise ValueError(f"a history must have shape (E, N), neither 0; given {tuple(hit_EN.shape)}")
    hit_EN = hit_EN.detach().cpu()
    check_hits("a history of hits", hit_EN)
    return hit_EN.bool()
