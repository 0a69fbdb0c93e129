"""Memory by class: what of each class's images is known beyond what images that were never trained on show.

Classes are judged together: the intervals of a column hold over all classes (and taps) at once, by Bonferroni's correction, so
that one of a thousand classes does not stand out by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rlpheads.memorization.arguments import check_count, check_fractions, check_hits, check_open_fraction
from rlpheads.memorization.measures.canaries import canary_auc
from rlpheads.memorization.measures.estimates import (
    UNKNOWN,
    Estimated,
    mean_difference,
    mean_estimate,
    share_difference,
    share_estimate,
)
from rlpheads.memorization.measures.rank_correlation import Correlation, spearman


class ClassRows(NamedTuple):
    """Class `target_N` (integers) and class loss `loss_N` (nats) of the images of one split that were seen."""

    target_N: Tensor
    loss_N: Tensor


class RandomLabelHits(NamedTuple):
    """What heads hit of the training images' random labels, beside heads refitted to fresh labels.

    `hit_TMN`: hits of the heads' own draws, 0 or 1, (T, M, N). `refit_rate_TN`: share of `refit_draws` fresh draws that a
    refit on the same features hits, (T, N); None where nothing was refitted.
    """

    hit_TMN: Tensor
    refit_rate_TN: Tensor | None = None
    refit_draws: int = 0


@dataclass(frozen=True)
class ClassMemory:
    """One class.

    Attributes:
        num_train: its training images that were seen.
        num_heldout: its held-out images.
        loss: mean class loss of its training images, nats.
        loss_excess: mean class loss of its held-out images less that.
        membership_auc: probability that a held-out image of it has a higher loss than a training image; .5 where nothing
            tells them apart.
        rla_T: random-label accuracy of its training images at each tap.
        excess_T: that less what a refit to fresh labels reaches on the same images; unknown without a refit.
    """

    num_train: int
    num_heldout: int
    loss: Estimated
    loss_excess: Estimated
    membership_auc: Estimated
    rla_T: tuple[Estimated, ...] = ()
    excess_T: tuple[Estimated, ...] = ()


def memory_by_class(
    train: ClassRows,
    heldout: ClassRows,
    num_classes: int,
    hits: RandomLabelHits | None = None,
    level: float = 0.95,
) -> tuple[ClassMemory, ...]:
    """Measure every class.

    Args:
        train: training images without augmentation, weights at rest.
        heldout: held-out images.
        num_classes: C.
        hits: what heads know of the training images, in their order; None without heads.
        level: coverage of the intervals of a column together.

    Raises:
        ValueError: shapes that do not fit together, or hits and shares that are none.
    """
    num_classes = check_count("num_classes", num_classes)
    check_open_fraction("level", level)
    for name, rows in (("train", train), ("heldout", heldout)):
        if rows.target_N.dim() != 1 or rows.target_N.shape != rows.loss_N.shape:
            raise ValueError(
                f"{name}: target_N and loss_N must be (N,); given {tuple(rows.target_N.shape)} and {tuple(rows.loss_N.shape)}"
            )
    if hits is not None:
        _check_label_hits(hits, len(train.target_N))
    of_train, of_heldout = (_places_by_class(rows.target_N.cpu(), num_classes) for rows in (train, heldout))
    losses = train.loss_N.cpu(), heldout.loss_N.cpu()
    return tuple(
        _of_class((inside, outside), losses, hits, num_classes, level)
        for inside, outside in zip(of_train, of_heldout, strict=True)
    )


def size_correlation(classes: tuple[ClassMemory, ...], values_C: list[float]) -> Correlation:
    """Spearman's correlation over the classes of a value with the number of training images: below 0, memory sits in the tail.

    Classes whose value is NaN are left out.
    """
    known = [(each.num_train, value) for each, value in zip(classes, values_C, strict=True) if not math.isnan(value)]
    sizes, values = torch.tensor(known, dtype=torch.float64).reshape(-1, 2).T
    return spearman(sizes, values)


def _places_by_class(target_N: Tensor, num_classes: int) -> Sequence[Tensor]:
    """Return for each class where its rows are, ascending: one sort, not a pass over all rows for each class."""
    ordered, order_N = target_N.sort(stable=True)
    ends = torch.searchsorted(ordered, torch.arange(num_classes + 1, dtype=ordered.dtype))
    return [order_N[first:last] for first, last in pairwise(ends.tolist())]


def _of_class(
    places: tuple[Tensor, Tensor],
    losses: tuple[Tensor, Tensor],
    hits: RandomLabelHits | None,
    num_classes: int,
    level: float,
) -> ClassMemory:
    """Measure the class whose training and held-out images are in these places."""
    inside, outside = (loss_N[each] for loss_N, each in zip(losses, places, strict=True))
    alone = 1 - (1 - level) / num_classes
    auc = UNKNOWN
    if len(inside) and len(outside):
        auc = Estimated(*canary_auc(outside, inside, level=alone))
    rla_T: tuple[Estimated, ...] = ()
    excess_T: tuple[Estimated, ...] = ()
    if hits is not None:
        rla_T, excess_T = _label_memory(hits, places[0], 1 - (1 - level) / (num_classes * max(1, len(hits.hit_TMN))))
    return ClassMemory(
        num_train=len(inside),
        num_heldout=len(outside),
        loss=mean_estimate(inside, alone),
        loss_excess=mean_difference(outside, inside, alone),
        membership_auc=auc,
        rla_T=rla_T,
        excess_T=excess_T,
    )


def _label_memory(
    hits: RandomLabelHits, places_S: Tensor, level: float
) -> tuple[tuple[Estimated, ...], tuple[Estimated, ...]]:
    """Return random-label accuracy and its excess over the refit at each tap, of the chosen images."""
    num_chosen, num_draws = len(places_S), hits.hit_TMN.shape[1]
    if not num_chosen:
        return (UNKNOWN,) * len(hits.hit_TMN), (UNKNOWN,) * len(hits.hit_TMN)
    own_T = hits.hit_TMN.cpu()[:, :, places_S].double().mean((1, 2)).tolist()
    own_trials, refit_trials = num_chosen * num_draws, num_chosen * hits.refit_draws
    rla_T = tuple(share_estimate(own, own_trials, level) for own in own_T)
    if hits.refit_rate_TN is None:
        return rla_T, (UNKNOWN,) * len(rla_T)
    refit_T = hits.refit_rate_TN.cpu()[:, places_S].double().mean(1).tolist()
    pairs = zip(own_T, refit_T, strict=True)
    return rla_T, tuple(share_difference(own, own_trials, refit, refit_trials, level) for own, refit in pairs)


def _check_label_hits(hits: RandomLabelHits, num_samples: int) -> None:
    shape = tuple(hits.hit_TMN.shape)
    if len(shape) != 3 or shape[1] < 1 or shape[2] != num_samples:
        raise ValueError(f"hit_TMN must have shape (T, M, {num_samples}), M ≥ 1; given {shape}")
    check_hits("hit_TMN", hits.hit_TMN)
    if hits.refit_rate_TN is None:
        return
    check_count("refit_draws", hits.refit_draws)
    if tuple(hits.refit_rate_TN.shape) != (shape[0], num_samples):
        raise ValueError(
            f"refit_rate_TN must have shape ({shape[0]}, {num_samples}); given {tuple(hits.refit_rate_TN.shape)}"
        )
    check_fractions("refit_rate_TN", hits.refit_rate_TN)
