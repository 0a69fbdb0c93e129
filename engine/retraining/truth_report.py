"""How every score of a run agrees with the ground truth, and what both say as networks grow wider."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from rlpheads.engine.retraining.subset_training import SubsetNetworks
from rlpheads.memorization.measures.estimates import Estimated, mean_estimate
from rlpheads.memorization.measures.rank_correlation import Correlation
from rlpheads.memorization.measures.subset_retraining import (
    MEMORIZED,
    ScoreAgreement,
    score_agreement,
    share_falling,
    subset_memorization,
    truth_reliability,
)

TRUTH = "memorisation (ground truth)"


@dataclass(frozen=True)
class RunTruth:
    """The ground truth of a run's images, and how its scores agree with it.

    Attributes:
        run: name of the run.
        width: parameters of its network.
        num_networks: R.
        truth_N: memorisation of every image; NaN where unknown.
        scores: every score of the run, (N,) each, by name.
        mean: mean memorisation over the images.
        num_memorized: images whose memorisation is at least `MEMORIZED`.
        standard_error: typical standard error of one image's memorisation.
        reliability: of the estimate from R networks; its root bounds what a score can reach.
        inside_accuracy: mean accuracy of the networks on images that they were trained on.
        outside_accuracy: that on the others.
        agreement: of each score.
    """

    run: str
    width: int
    num_networks: int
    truth_N: Tensor
    scores: Mapping[str, Tensor]
    mean: Estimated
    num_memorized: int
    standard_error: float
    reliability: float
    inside_accuracy: float
    outside_accuracy: float
    agreement: dict[str, ScoreAgreement]

    def content(self) -> dict[str, Any]:
        """Return what truth.json holds."""
        agreement = {
            name: {"spearman": found.correlation._asdict(), "auc": found.auc._asdict()}
            for name, found in self.agreement.items()
        }
        names = ("run", "num_networks", "num_memorized", "standard_error", "reliability")
        return {
            **{name: getattr(self, name) for name in names},
            "network_parameters": self.width,
            "inside_accuracy": self.inside_accuracy,
            "outside_accuracy": self.outside_accuracy,
            "mean": self.mean._asdict(),
            "scores": agreement,
            "memorization": self.truth_N.tolist(),
        }


def judge_scores(run: str, width: int, networks: SubsetNetworks, scores: Mapping[str, Tensor]) -> RunTruth:
    """Compare a run's scores, (N,) each, with what networks on subsets say of the same images."""
    truth = subset_memorization(networks.hit_GN, networks.inside_GN)
    known_N = ~truth.value_N.isnan()
    return RunTruth(
        run=run,
        width=width,
        num_networks=len(networks.hit_GN),
        truth_N=truth.value_N,
        scores=scores,
        mean=mean_estimate(truth.value_N[known_N]),
        num_memorized=int((truth.value_N >= MEMORIZED).sum()),
        standard_error=float(truth.standard_error_N[known_N].median()) if bool(known_N.any()) else math.nan,
        reliability=truth_reliability(networks.hit_GN, networks.inside_GN),
        inside_accuracy=float(truth.inside_N.nanmean()),
        outside_accuracy=float(truth.outside_N.nanmean()),
        agreement={name: score_agreement(score_N, truth.value_N) for name, score_N in scores.items()},
    )


def truth_lines(found: RunTruth) -> Iterator[str]:
    """Yield what the networks found, in words."""
    yield (
        f"{found.run}: {found.num_networks} networks of {found.width} parameters are right on "
        f"{100 * found.inside_accuracy:.1f} % of the images that they were trained on, and on "
        f"{100 * found.outside_accuracy:.1f} % of the others"
    )
    mean = f"{found.mean.value:.4f} [{found.mean.low:.4f}, {found.mean.high:.4f}]"
    yield (
        f"memorisation: {mean} on average, at least {MEMORIZED} for {found.num_memorized} of {len(found.truth_N)} images; "
        f"standard error of one image {found.standard_error:.3f}; reliability {found.reliability:.2f}, so that a perfect score "
        f"has a rank correlation of about {math.sqrt(max(0.0, found.reliability)):.2f}"
    )


def agreement_table(found: RunTruth) -> Table:
    """Return the table of a run's scores, those that agree best first, whatever their sign."""
    table = Table(
        title=f"{found.run}: scores of one run against the ground truth (95 % intervals over images)",
        title_justify="left",
        caption=f"AUC: memorised (at least {MEMORIZED}) against the other images; a sign tells which way a score points",
        caption_justify="left",
        padding=(0, 1),
    )
    table.add_column("score")
    for name in ("Spearman", "AUC"):
        table.add_column(name, justify="right")
    for name, each in sorted(found.agreement.items(), key=lambda item: -_strength(item[1])):
        rho, low, high, _ = each.correlation
        table.add_row(name, _signed(rho, low, high), _signed(*each.auc, sign=""))
    return table


@dataclass(frozen=True)
class WidthTrend:
    """How a score changes from the smallest to the largest of several networks.

    Attributes:
        means: of the score over the images, by network, the smallest first.
        falling: share of the images whose score falls, among those where it changes.
        falls_as_truth: whether it goes the way of the ground truth for most images, its own sign taken from its correlations
            with the truth; None where an interval holds .5, and where the correlations of no network, or of two with opposite
            signs, leave out 0.
    """

    means: tuple[float, ...]
    falling: Estimated
    falls_as_truth: bool | None


def width_trends(runs: Sequence[RunTruth]) -> dict[str, WidthTrend]:
    """Compare runs on the same images whose networks differ in size: the trend of the truth, and of each score of all."""
    runs = sorted(runs, key=lambda run: run.width)
    first, last = runs[0], runs[-1]
    truth = share_falling(first.truth_N, last.truth_N)
    trends = {TRUTH: WidthTrend(tuple(run.mean.value for run in runs), truth, None)}
    for name in (name for name in first.scores if all(name in run.scores for run in runs)):
        falling = share_falling(first.scores[name], last.scores[name])
        means = tuple(float(torch.as_tensor(run.scores[name]).nanmean()) for run in runs)
        points_up = _points_up([run.agreement[name].correlation for run in runs])
        agrees = None
        if points_up is not None and truth.excludes(0.5) and falling.excludes(0.5):
            agrees = ((falling.value > 0.5) == (truth.value > 0.5)) == points_up
        trends[name] = WidthTrend(means, falling, agrees)
    return trends


def trend_table(runs: Sequence[RunTruth], trends: Mapping[str, WidthTrend]) -> Table:
    """Return the table of what changes with the network's size."""
    runs = sorted(runs, key=lambda run: run.width)
    table = Table(title="from the smallest to the largest network", title_justify="left", padding=(0, 1))
    table.add_column("score")
    for run in runs:
        table.add_column(f"mean, {run.width} parameters", justify="right")
    table.add_column("falls for", justify="right")
    table.add_column("goes the truth's way", justify="right")
    for name, trend in trends.items():
        falls = trend.falling
        share = "–" if math.isnan(falls.value) else f"{falls.value:.0%} [{falls.low:.0%}, {falls.high:.0%}]"
        way = {True: "yes", False: "no", None: "–"}[trend.falls_as_truth]
        table.add_row(name, *(f"{mean:.4g}" for mean in trend.means), share, way)
    return table


def _points_up(correlations: Sequence[Correlation]) -> bool | None:
    """Whether a score is high where the truth is: the sign of the correlations that leave out 0, if they share one."""
    signs = {found.rho > 0 for found in correlations if found.low > 0 or found.high < 0}
    return signs.pop() if len(signs) == 1 else None


def _strength(found: ScoreAgreement) -> float:
    rho = found.correlation.rho
    return -1.0 if math.isnan(rho) else abs(rho)


def _signed(value: float, low: float, high: float, sign: str = "+") -> str:
    return "–" if math.isnan(value) else f"{value:{sign}.3f} [{low:{sign}.2f}, {high:{sign}.2f}]"
