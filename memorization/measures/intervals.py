"""Confidence intervals for random-label accuracy: Wilson, exact binomial, Student's t and bootstrap over draws, McDiarmid.

Which one to use: `binomial_bounds` asks whether a head that cannot know the labels explains an accuracy; `wilson_interval`
is for one accuracy over independent samples; `draw_interval` and `cluster_bootstrap` are for a mean (any statistic) over
independent draws of the labels, which is the one for *trained* heads; `mcdiarmid_half_width` bounds the exact
supremum over a class of functions and nothing else.

Everything is computed in fp64 on the CPU, whatever the device of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from rlpheads.memorization.arguments import check_count, check_finite, check_num_labels, check_open_fraction

HELD_OUT_LEVEL = 1.0 - 1e-4
"""Level of the standing held-out check: two-sided, one false alarm in 10,000 checks."""


class Interval(NamedTuple):
    """A two-sided interval for each element of a quantity.

    `low` and `high` are fp64 tensors on the CPU of the quantity's shape, `level` the probability with which it covers.
    """

    low: Tensor
    high: Tensor
    level: float

    def contains(self, value: Tensor | float) -> Tensor:
        """Whether `value` (broadcast against the ends) lies inside, ends included; bool."""
        value = as_float64(value)
        return (self.low <= value) & (value <= self.high)


def as_float64(values: Tensor | float) -> Tensor:
    """`values` as an fp64 tensor on the CPU, detached. A Python float never passes through fp32 on its way."""
    return torch.as_tensor(values, dtype=torch.float64).detach().cpu()


def wilson_interval(num_hits: Tensor | float, num_samples: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion.

    Args:
        num_hits: whole numbers of hits, any shape, between 0 and `num_samples`.
        num_samples: n ≥ 1 independent samples behind every element.
        level: nominal coverage in (0, 1).

    Returns:
        Interval of accuracies in [0, 1], of the shape of `num_hits`. It contains num_hits / num_samples.

    Raises:
        ValueError: hits that are NaN, out of range or no whole numbers.

    Source: E. B. Wilson, JASA 22 (1927) 209-212, without continuity correction.
    """
    hits = as_float64(num_hits)
    # An accuracy times n may be a rounding away from whole; an accuracy, or a percentage with a fraction, is not.
    if bool(((hits - hits.round()).abs() > 1e-6 * hits.abs().clamp(min=1.0)).any()):
        raise ValueError(
            "num_hits counts hits, in whole numbers; a fraction was given (an accuracy in place of its hits?)"
        )
    return effective_wilson_interval(hits, num_samples, level)


def effective_wilson_interval(num_hits: Tensor | float, num_samples: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of an effective number of trials, whose hits need not be whole; see `wilson_interval`.

    Source: Korn and Graubard, Survey Methodology 24 (1998) 193-201, for effective sample sizes.
    """
    num_samples = check_count("num_samples", num_samples)
    check_open_fraction("level", level)
    hits = as_float64(num_hits)
    if not bool(((hits >= 0) & (hits <= num_samples)).all()):
        raise ValueError(f"num_hits must lie between 0 and num_samples = {num_samples}, and not be NaN")
    z = float(stats.norm.isf((1 - level) / 2))
    proportion = hits / num_samples
    spread = z * torch.sqrt(proportion * (1 - proportion) / num_samples + z * z / (4 * num_samples**2))
    scale = 1 + z * z / num_samples
    centre = proportion + z * z / (2 * num_samples)
    # The ends are exactly 0 and 1 at no hit and at all hits; rounding must not move them past the estimate.
    low = torch.minimum((centre - spread) / scale, proportion).clamp(min=0.0)
    high = torch.maximum((centre + spread) / scale, proportion).clamp(max=1.0)
    return Interval(low, high, level)


def binomial_bounds(num_samples: int, num_labels: int, level: float = HELD_OUT_LEVEL) -> Interval:
    """Bounds of chance accuracy under the null of label-independent predictions: exact two-sided Binomial(n, 1/K).

    Args:
        num_samples: n ≥ 1. Independent draws of the labels add up: M draws over n samples are M·n.
        num_labels: K ≥ 2.
        level: 1 − error; each tail is left with at most error / 2.

    Returns:
        Interval of two 0-d accuracies. `contains(hits / num_samples)` is False with probability at most 1 − level.
    """
    num_samples, num_labels = check_count("num_samples", num_samples), check_num_labels(num_labels)
    check_open_fraction("level", level)
    tail = (1 - level) / 2
    null = stats.binom(num_samples, 1.0 / num_labels)
    return Interval(as_float64(null.ppf(tail) / num_samples), as_float64(null.isf(tail) / num_samples), level)


def draw_interval(values: Tensor, level: float = 0.95, dim: int = -1) -> Interval:
    """Student's t interval for the mean over independent draws of the labels.

    Args:
        values: one value for each draw along `dim` (M ≥ 2), such as accuracies of shape (T, M).
        level: nominal coverage.
        dim: the dimension of the draws; it is reduced.

    Raises:
        ValueError: fewer than two draws (with one draw use `wilson_interval`), or a value that is not finite.
    """
    check_open_fraction("level", level)
    values = as_float64(values)
    num_draws = _num_draws(values, dim)
    check_finite("values", values)
    mean = values.mean(dim)
    half = float(stats.t.isf((1 - level) / 2, num_draws - 1)) * values.std(dim, correction=1) / math.sqrt(num_draws)
    return Interval(mean - half, mean + half, level)


def cluster_bootstrap(
    values: Tensor,
    statistic: Callable[[Tensor], Tensor] | None = None,
    *,
    dim: int = -1,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Bootstrap clustered by draw: whole draws are resampled, so that what is shared inside a draw stays together.

    The quantiles are those of the expanded percentile bootstrap, which corrects the narrowness of the plain one at few
    draws: its tail is Φ(−√(M/(M−1))·t_{tail, M−1}). For means its coverage is nominal within two points from M = 10 draws on.

    Args:
        values: draws along `dim` (M ≥ 2), with further dimensions of any size, such as hits of shape (M, N).
        statistic: takes a tensor shaped like `values` and returns the statistic; default: the mean over `dim`.
        dim: the dimension of the draws.
        level: nominal coverage.
        num_resamples: bootstrap samples; `statistic` is called that often.
        seed: of the resampling, at least 0; the same seed gives the same interval.

    Returns:
        Interval of the statistic's shape.

    Source: T. Hesterberg, The American Statistician 69 (2015) 371-386, section 5.3.
    """
    check_open_fraction("level", level)
    num_resamples, seed = check_count("num_resamples", num_resamples), check_count("seed", seed, 0)
    values = as_float64(values)
    num_draws = _num_draws(values, dim)
    check_finite("values", values)
    chosen_RM = torch.from_numpy(np.random.default_rng(seed).integers(num_draws, size=(num_resamples, num_draws)))
    reduce = statistic if statistic is not None else (lambda resampled: resampled.mean(dim))
    replicates = torch.stack([as_float64(reduce(values.index_select(dim, chosen_M))) for chosen_M in chosen_RM])
    stretch = math.sqrt(num_draws / (num_draws - 1))
    tail = float(stats.norm.cdf(-stretch * stats.t.isf((1 - level) / 2, num_draws - 1)))
    low, high = np.quantile(replicates.numpy(), [tail, 1 - tail], axis=0)  # torch.quantile stops at 2^24 elements
    return Interval(as_float64(low), as_float64(high), level)


def mcdiarmid_half_width(num_samples: int, num_draws: int, num_labels: int, error: float = 0.05) -> float:
    """Half-width c·√(ln(2/error) / (2·n·M)), c = K/(K−1), around a Rademacher estimate averaged over M draws.

    It holds for the exact supremum over a fixed class (changing one label moves it by at most c/n) with probability at
    least 1 − error, and is conservative. A trained head is not the supremum: use the interval across draws for those.

    Source: McDiarmid's bounded-differences inequality (1989).
    """
    num_samples, num_draws = check_count("num_samples", num_samples), check_count("num_draws", num_draws)
    num_labels = check_num_labels(num_labels)
    check_open_fraction("error", error)
    return num_labels / (num_labels - 1) * math.sqrt(math.log(2 / error) / (2 * num_samples * num_draws))


def _num_draws(values: Tensor, dim: int) -> int:
    if values.dim() == 0 or values.shape[dim] < 2:
        given = 1 if values.dim() == 0 else values.shape[dim]
        raise ValueError(f"an interval across draws needs at least 2 draws; {given} given (one draw: wilson_interval)")
    return values.shape[dim]
