"""Probes: least-squares, logistic and two-layer classifiers of random labels, fitted from scratch to frozen features.

Every probe fits one head for each draw of the labels, all draws together, from streamed blocks of features: memory grows
with D² and M·K·D, never with the number of samples. What a probe reaches on its own training rows is its result; on
labels that the features are independent of, that is a property of the features' geometry (rank, leverages) and of n, d, K.

The least-squares and the logistic probe have an intercept and are invariant under invertible affine maps of the features:
they see which directions there are, not how large they are. The two-layer probe does see scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rlpheads.kernels.random_label_loss import random_label_loss
from rlpheads.memorization.arguments import check_count, check_num_labels
from rlpheads.memorization.baselines.head_only import head_only_rla
from rlpheads.memorization.heads.hashing import key_from_name
from rlpheads.memorization.probes.feature_blocks import Features, GaussianFeatures, RowSubset
from rlpheads.memorization.probes.feature_moments import Moments, collect_moments
from rlpheads.memorization.probes.probe_fitting import minimise_lbfgs, score_hits

CONTROL_DRAWS = 2


class ProbeFit(NamedTuple):
    """Result of fitting a probe.

    Attributes:
        accuracy_M: random-label accuracy of each draw on the rows that were fitted, fp64 (M,) on the CPU.
        rank: directions that the features span, the constant not counted.
        hit_rate_N: share of the draws that hit each row, fp64 (N,) on the CPU.
    """

    accuracy_M: Tensor
    rank: int
    hit_rate_N: Tensor


class Probe(Protocol):
    """A kind of probe."""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    def __call__(self, features: Features, labels_MN: Tensor, num_labels: int) -> ProbeFit:
        """Fit one head for each row of `labels_MN` (integers (M, N) in [0, K)) to features (N, D)."""
        ...

    def control(self, labels_MN: Tensor, num_features: int, num_labels: int) -> float:
        """Random-label accuracy of the same probe on N × D Gaussian features: the head-only control."""
        ...


def least_squares_head(moments: Moments) -> tuple[Tensor, Tensor]:
    """Weights (M, K, D) for centred features, and biases (M, K), of the regression of one-hot labels on features, fp64."""
    whitener_DR = moments.whitener_DR
    # In whitened coordinates the Gram matrix is N times the identity.
    weight_MKD = moments.label_sums_MKD @ whitener_DR @ whitener_DR.T / moments.num_samples
    return weight_MKD, moments.label_shares_MK


@dataclass(frozen=True)
class LeastSquaresProbe:
    """Regression of the centred one-hot labels on the centred features, without penalty, by streamed normal equations.

    All draws share the Gram matrix, so a draw costs little. Its accuracy on Gaussian features has a closed form
    (`rlpheads.memorization.baselines.head_only.head_only_rla`). Of many equally good solutions it takes the smallest.
    """

    name: str = "least_squares"

    def __call__(self, features: Features, labels_MN: Tensor, num_labels: int) -> ProbeFit:
        """Fit and score in two passes; see `Probe`."""
        num_labels = check_num_labels(num_labels)
        moments = collect_moments(features, labels_MN, num_labels)
        weight_MKD, bias_MK = least_squares_head(moments)

        def scores(block_BD: Tensor, draw: int) -> Tensor:
            return (block_BD - moments.mean_D) @ weight_MKD[draw].T + bias_MK[draw]

        found = score_hits(features, labels_MN, num_labels, scores)
        return ProbeFit(found.accuracy_M, moments.rank, found.hit_rate_N)

    def control(self, labels_MN: Tensor, num_features: int, num_labels: int) -> float:
        """Closed form for i.i.d. labels; see `Probe`."""
        return head_only_rla(num_labels, labels_MN.shape[-1], num_features)


@dataclass(frozen=True)
class LogisticProbe:
    """Multinomial logistic regression without penalty, by L-BFGS over whole passes in fp64.

    It is parametrised in whitened coordinates, where it converges in few passes. Below capacity the loss has no minimum:
    the fit stops where every label is fitted.

    Attributes:
        max_passes: passes over the features at most.
    """

    max_passes: int = 500
    name: str = "logistic"

    def __post_init__(self) -> None:
        check_count("max_passes", self.max_passes)

    def __call__(self, features: Features, labels_MN: Tensor, num_labels: int) -> ProbeFit:
        """Fit all draws at once; see `Probe`."""
        num_labels = check_num_labels(num_labels)
        moments = collect_moments(features, labels_MN[:0], num_labels)
        num_draws, whitener_DR = len(labels_MN), moments.whitener_DR
        weight_MKR = whitener_DR.new_zeros(num_draws, num_labels, moments.rank).requires_grad_()
        bias_MK = whitener_DR.new_zeros(num_draws, num_labels).requires_grad_()

        def head(draw: int) -> tuple[Tensor, Tensor]:
            weight_KD = weight_MKR[draw] @ whitener_DR.T
            return weight_KD, bias_MK[draw] - weight_KD @ moments.mean_D

        def loss(block_BD: Tensor, labels_B: Tensor, draw: int) -> Tensor:
            weight_KD, bias_K = head(draw)
            return random_label_loss(block_BD, weight_KD, labels_B, bias_K=bias_K).cross_entropy_B.sum()

        def scores(block_BD: Tensor, draw: int) -> Tensor:
            weight_KD, bias_K = head(draw)
            return block_BD @ weight_KD.T + bias_K

        for _ in minimise_lbfgs([weight_MKR, bias_MK], features, labels_MN, loss, self.max_passes):
            found = score_hits(features, labels_MN, num_labels, scores)
            if bool((found.accuracy_M == 1).all()):
                break
        return ProbeFit(found.accuracy_M, moments.rank, found.hit_rate_N)

    def control(self, labels_MN: Tensor, num_features: int, num_labels: int) -> float:
        """Simulate; see `Probe`."""
        return _simulated_control(self, labels_MN, num_features, num_labels)


@dataclass(frozen=True)
class TwoLayerProbe:
    """A hidden layer of rectified units and a logistic layer on it, fitted by L-BFGS for a fixed number of passes.

    The features are centred and divided by one number, so their spectrum stays. Every draw begins at the same weights,
    so that draws differ by their labels alone. The loss is not convex: read it beside its own control, no closed form.

    Attributes:
        hidden: units of the hidden layer.
        max_passes: passes over the features at most.
    """

    hidden: int = 32
    max_passes: int = 200
    name: str = "two_layer"

    def __post_init__(self) -> None:
        check_count("hidden", self.hidden)
        check_count("max_passes", self.max_passes)

    def __call__(self, features: Features, labels_MN: Tensor, num_labels: int) -> ProbeFit:
        """Fit all draws at once; see `Probe`."""
        num_labels = check_num_labels(num_labels)
        moments = collect_moments(features, labels_MN[:0], num_labels)
        parameters = self._initial_parameters(len(labels_MN), num_labels, moments)
        inner_MHD, inner_bias_MH, outer_MKH, outer_bias_MK = parameters

        def hidden(block_BD: Tensor, draw: int) -> Tensor:
            centred_BD = block_BD - moments.mean_D
            return torch.relu(centred_BD @ inner_MHD[draw].T + inner_bias_MH[draw])

        def loss(block_BD: Tensor, labels_B: Tensor, draw: int) -> Tensor:
            hidden_BH = hidden(block_BD, draw)
            rows = random_label_loss(hidden_BH, outer_MKH[draw], labels_B, bias_K=outer_bias_MK[draw], joint=True)
            assert rows.joint_B is not None
            # One value twice: the outer layer's gradient comes from the one, the inner layer's from the other.
            return (rows.cross_entropy_B + rows.joint_B - rows.joint_B.detach()).sum()

        def scores(block_BD: Tensor, draw: int) -> Tensor:
            return hidden(block_BD, draw) @ outer_MKH[draw].T + outer_bias_MK[draw]

        for _ in minimise_lbfgs(parameters, features, labels_MN, loss, self.max_passes):
            found = score_hits(features, labels_MN, num_labels, scores)
            if bool((found.accuracy_M == 1).all()):
                break
        return ProbeFit(found.accuracy_M, moments.rank, found.hit_rate_N)

    def control(self, labels_MN: Tensor, num_features: int, num_labels: int) -> float:
        """Simulate; see `Probe`."""
        return _simulated_control(self, labels_MN, num_features, num_labels)

    def _initial_parameters(self, num_draws: int, num_labels: int, moments: Moments) -> list[Tensor]:
        """Return inner weights and biases, outer weights and biases; scales as He et al. (2015) for unit features."""
        num_features = len(moments.mean_D)
        key = key_from_name("two-layer probe", self.hidden, num_features, num_labels)
        generator = torch.Generator().manual_seed(key)
        inner_HD = torch.randn(self.hidden, num_features, generator=generator, dtype=torch.float64)
        outer_KH = torch.randn(num_labels, self.hidden, generator=generator, dtype=torch.float64)
        spread = moments.total_variance.sqrt()
        inner_HD = inner_HD.to(spread) * math.sqrt(2) / torch.where(spread > 0, spread, 1.0)
        outer_KH = outer_KH.to(spread) / math.sqrt(self.hidden)
        layers = [inner_HD, inner_HD.new_zeros(self.hidden), outer_KH, outer_KH.new_zeros(num_labels)]
        return [tensor.expand(num_draws, *tensor.shape).clone().requires_grad_() for tensor in layers]


@dataclass(frozen=True)
class ClassBlockProbe:
    """A probe for labels that are drawn inside each class: one of its kind for each class, on that class's rows alone.

    Labels are in [0, C·K) and say which class a row has (`rlpheads.memorization.heads.class_blocks`). The features are read
    once for each class and pass.

    Attributes:
        probe: the kind.
    """

    probe: Probe

    @property
    def name(self) -> str:
        """That of the kind."""
        return self.probe.name

    def __call__(self, features: Features, labels_MN: Tensor, num_labels: int) -> ProbeFit:
        """Fit the classes one after another; the accuracy is over all rows, the rank the least of a class."""
        num_labels = check_num_labels(num_labels)
        num_draws, num_samples = labels_MN.shape
        hits_M, ranks = torch.zeros(num_draws, dtype=torch.float64), []
        hit_rate_N = torch.zeros(num_samples, dtype=torch.float64)
        for rows_R in _rows_by_class(labels_MN, num_labels):
            fit = self.probe(RowSubset(features, rows_R), labels_MN[:, rows_R] % num_labels, num_labels)
            hits_M += fit.accuracy_M * len(rows_R)
            hit_rate_N[rows_R] = fit.hit_rate_N
            ranks.append(fit.rank)
        return ProbeFit(hits_M / num_samples, min(ranks), hit_rate_N)

    def control(self, labels_MN: Tensor, num_features: int, num_labels: int) -> float:
        """Average the kind's control over the rows of the classes."""
        total = 0.0
        for rows_R in _rows_by_class(labels_MN, num_labels):
            total += len(rows_R) * self.probe.control(labels_MN[:, rows_R] % num_labels, num_features, num_labels)
        return total / labels_MN.shape[-1]


def _rows_by_class(labels_MN: Tensor, num_labels: int) -> list[Tensor]:
    class_N = labels_MN[0].cpu() // num_labels
    return [torch.nonzero(class_N == number)[:, 0] for number in class_N.unique()]


def _simulated_control(probe: Probe, labels_MN: Tensor, num_features: int, num_labels: int) -> float:
    """Fit the probe to Gaussian features and the first few draws."""
    features = GaussianFeatures(labels_MN.shape[-1], num_features)
    return float(probe(features, labels_MN[:CONTROL_DRAWS], num_labels).accuracy_M.mean())


PROBES: dict[str, type[LeastSquaresProbe] | type[LogisticProbe] | type[TwoLayerProbe]] = {
    probe.name: probe for probe in (LeastSquaresProbe, LogisticProbe, TwoLayerProbe)
}
"""The probes by name."""
