"""Known answers from training small networks: perfect fit, regularisers, label noise, detachment.

Plain torch loops over full batches, with the heads, the loss and the labels that a run uses; nothing of the engine. A few
seconds each on one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from rlpheads.kernels.random_label_loss import random_label_loss
from rlpheads.memorization.heads.combined_loss import TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import HeadLosses, HeadTerms
from rlpheads.memorization.heads.labels import label_table
from rlpheads.memorization.heads.rlp_heads import RLPHeads
from rlpheads.memorization.measures.label_measures import random_label_accuracy, stored_bits
from rlpheads.memorization.measures.sample_dynamics import (
    HITS_IN_A_ROW,
    first_learned_epoch,
    learned_for_good_epoch,
    noisy_label_auc,
)
from rlpheads.memorization.validation.known_answer import Check, KnownAnswer

NUM_LABELS = 10
KINDS = ("unlikelihood", "uniform", "reversal", "entropy")


class Classifier(nn.Module):
    """Two hidden layers on flat inputs; returns the class logits and the last hidden layer, which is the tap."""

    def __init__(self, num_inputs: int, num_hidden: int, num_classes: int, seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Linear(num_inputs, num_hidden), nn.GELU(), nn.Linear(num_hidden, num_hidden), nn.GELU()
            )
            self.classifier = nn.Linear(num_hidden, num_classes)

    def forward(self, inputs_BI: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, I) to logits (B, C) and tap (B, D)."""
        tap_BD = self.body(inputs_BI)
        return self.classifier(tap_BD), tap_BD


@dataclass(frozen=True)
class Problem:
    """Samples with classes and random labels of one draw."""

    inputs_NI: Tensor
    classes_N: Tensor
    labels_MN: Tensor


def perfect_fit() -> Sequence[KnownAnswer]:
    """Joint training (μ=1) of a small MLP, n=1000, K=10: everything is memorised, nothing held out is."""
    generator = torch.Generator().manual_seed(0)
    inputs_NI = torch.randn(3000, 64, generator=generator)
    labels_MN = label_table(1000, NUM_LABELS, num_draws=1, seed=0, split="train")
    held_out_MN = label_table(2000, NUM_LABELS, num_draws=1, seed=0, split="heldout")
    problem = Problem(inputs_NI[:1000], torch.zeros(1000, dtype=torch.long), labels_MN)
    model, heads = Classifier(64, 256, 2, seed=0), RLPHeads([256], NUM_LABELS, 1, seed=0)
    _train(model, heads, problem, TermWeights(joint=1.0), num_steps=300)
    fitted = _measure(model, heads, problem.inputs_NI, labels_MN)
    held_out = _measure(model, heads, inputs_NI[1000:], held_out_MN)
    bits = stored_bits(fitted.bits_TMB, NUM_LABELS, num_features=256)
    return [
        KnownAnswer("accuracy", 1.0, float(random_label_accuracy(fitted.hit_TMB)), 0.0),
        KnownAnswer("bits per sample (log2 10 = 3.3219)", 3.32, float(bits.per_sample), 0.0, at_least=True),
        KnownAnswer("held-out accuracy", 0.1, float(random_label_accuracy(held_out.hit_TMB)), 0.03),
    ]


def regularizer_gradients() -> Sequence[KnownAnswer]:
    """Regularisers: largest distance between gradient and finite differences, fp64."""
    generator = torch.Generator().manual_seed(0)
    weight_KD = torch.randn(7, 16, generator=generator, dtype=torch.float64)
    labels_B = torch.arange(6)
    direction_BD = weight_KD[labels_B] / weight_KD[labels_B].square().sum(1, keepdim=True)
    features_BD = direction_BD * torch.linspace(-8, 24, 6, dtype=torch.float64).unsqueeze(1)
    label_probability_B = (features_BD @ weight_KD.T).softmax(1)[torch.arange(6), labels_B]
    span = f"p_y from {label_probability_B.min():.0e} to 1 − {1 - label_probability_B.max():.0e}"
    return [
        KnownAnswer(f"{kind}, {span}", 0.0, _gradient_distance(kind, features_BD, weight_KD, labels_B), 1e-6)
        for kind in KINDS
    ]


def regularizer_effect() -> Sequence[KnownAnswer]:
    """Regularisers at λ=1: how far the head's own accuracy falls below that of λ=0 (500 digits)."""
    problem = _digits(num_samples=500)
    free = _own_accuracy(problem, "unlikelihood", 0.0)
    return [
        KnownAnswer(
            f"fall with {kind}, from {free:.2f}", 0.1, free - _own_accuracy(problem, kind, 1.0), 0.0, at_least=True
        )
        for kind in ("unlikelihood", "uniform")
    ]


def noise_is_learned_last() -> Sequence[KnownAnswer]:
    """Noise is learned last: digits with 20 % flipped classes, a small MLP.

    The network learns most digits in its first epoch, before the first measurement, so the first hit passes too. It does not
    where the first measurements are of a network that is still untrained (`docs/canaries.md`).
    """
    problem = _digits()
    generator = torch.Generator().manual_seed(1)
    num_samples = len(problem.classes_N)
    noisy_N = torch.rand(num_samples, generator=generator) < 0.2
    shift_N = torch.randint(1, 10, (num_samples,), generator=generator)
    given_N = torch.where(noisy_N, (problem.classes_N + shift_N) % 10, problem.classes_N)
    model = Classifier(64, 256, 10, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    hits = []
    for _ in range(60):
        for rows_B in torch.randperm(num_samples, generator=generator).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(problem.inputs_NI[rows_B])[0], given_N[rows_B]).backward()
            optimizer.step()
        with torch.no_grad():
            hits.append(model(problem.inputs_NI)[0].argmax(1) == given_N)
    hit_EN = torch.stack(hits)
    scores = {
        f"first-learned epoch ({HITS_IN_A_ROW} in a row)": first_learned_epoch(hit_EN),
        "learned for good": learned_for_good_epoch(hit_EN),
        "first hit": first_learned_epoch(hit_EN, 1),
    }
    return [
        KnownAnswer(f"AUC, {name}", 0.85, float(noisy_label_auc(score_N, noisy_N)), 0.0, at_least=True)
        for name, score_N in scores.items()
    ]


def detachment() -> Sequence[KnownAnswer]:
    """Backbone with heads at λ=0 against one without heads: parameters that differ in any bit."""
    problem = _digits(num_samples=500)
    alone, with_heads = Classifier(64, 64, 10, seed=0), Classifier(64, 64, 10, seed=0)
    _train(alone, None, problem, TermWeights(), num_steps=20)
    _train(with_heads, RLPHeads([64], 10, 1, seed=0), problem, TermWeights(), num_steps=20)
    differing = sum(int((a != b).sum()) for a, b in zip(alone.parameters(), with_heads.parameters(), strict=True))
    return [KnownAnswer("differing parameters after 20 steps", 0, differing, 0)]


def _train(
    model: Classifier,
    heads: RLPHeads | None,
    problem: Problem,
    weights: TermWeights,
    num_steps: int,
    kind: str = "uniform",
) -> None:
    """Full-batch Adam on the class loss and, with heads, on their terms; the heads have an optimizer of their own."""
    terms = HeadTerms(kind if weights.factor else None, (0,) if weights.factor else (), joint=weights.joint > 0)
    optimizers = [torch.optim.Adam(module.parameters(), lr=2e-3) for module in (model, heads) if module is not None]
    valid_N = torch.ones(len(problem.classes_N), dtype=torch.bool)
    for _ in range(num_steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        logits_NC, tap_ND = model(problem.inputs_NI)
        loss = F.cross_entropy(logits_NC, problem.classes_N)
        if heads is not None:
            losses = heads([tap_ND], problem.labels_MN, terms)
            loss = loss + combine_losses(losses, valid_N, len(valid_N), 1, weights).total
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()


@torch.no_grad()
def _measure(model: Classifier, heads: RLPHeads, inputs_NI: Tensor, labels_MN: Tensor) -> HeadLosses:
    return heads([model(inputs_NI)[1]], labels_MN, HeadTerms())


def _own_accuracy(problem: Problem, kind: str, factor: float) -> float:
    """Random-label accuracy, on the training samples, of the head that was trained along with the network."""
    model, heads = Classifier(64, 256, 10, seed=0), RLPHeads([256], NUM_LABELS, 1, seed=0)
    _train(model, heads, problem, TermWeights(factor=factor), num_steps=150, kind=kind)
    return float(random_label_accuracy(_measure(model, heads, problem.inputs_NI, problem.labels_MN).hit_TMB))


def _digits(num_samples: int | None = None) -> Problem:
    digits = load_digits()
    inputs_NI = torch.from_numpy(digits.data[:num_samples]).float() / 8 - 1
    labels_MN = label_table(len(inputs_NI), NUM_LABELS, num_draws=1, seed=0, split="train")
    return Problem(inputs_NI, torch.from_numpy(digits.target[:num_samples]).long(), labels_MN)


def _gradient_distance(kind: str, features_BD: Tensor, weight_KD: Tensor, labels_B: Tensor) -> float:
    """Largest error of the gradient over every feature of every row, by central differences."""

    def loss(features_BD: Tensor) -> Tensor:
        value = random_label_loss(features_BD, weight_KD, labels_B, regularizer=kind).regularizer_B
        assert value is not None
        return value.sum()

    leaf_BD = features_BD.clone().requires_grad_()
    (gradient_BD,) = torch.autograd.grad(loss(leaf_BD), leaf_BD)
    half = 1e-5
    steps = half * torch.eye(features_BD.numel(), dtype=features_BD.dtype).view(-1, *features_BD.shape)
    slopes = torch.stack(
        [(loss(features_BD + step_BD) - loss(features_BD - step_BD)) / (2 * half) for step_BD in steps]
    )
    return float((slopes - gradient_BD.flatten()).abs().max())


CHECKS: tuple[Check, ...] = (
    perfect_fit,
    regularizer_gradients,
    regularizer_effect,
    noise_is_learned_last,
    detachment,
)
