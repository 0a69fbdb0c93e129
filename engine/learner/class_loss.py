"""The loss of the classes: softmax or sigmoid cross-entropy against one label, a smoothed one, or the two of a mixed image.

No row of soft targets is ever written out: both losses are linear in the target, so that a few logits of each row say all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlpheads.loaders.contract.batch import Partners

LossKind = Literal["cross_entropy", "bce"]
_IGNORED = torch.iinfo(torch.int64).min
"""No class: torch's default, −100, would give a target of that number the loss 0, where any other that is no class raises."""


class ClassLosses(NamedTuple):
    """Two losses of every row, float32 (B,), in nats."""

    recorded_B: Tensor
    """Cross-entropy of the row's own class alone: what ledgers and evaluations hold, whatever is trained."""
    trained_B: Tensor
    """What the backbone learns to lower."""


@dataclass(frozen=True)
class ClassLoss:
    """Which loss is trained.

    The target of class c is (1 − s)·(w·[c is the own class] + (1 − w)·[c is the partner's]) + s/C with smoothing s, C
    classes and the weight w of the row's own sample (1 where nothing is mixed), as timm's `Mixup` makes it.

    Attributes:
        kind: "cross_entropy" of the softmax; "bce", the mean over the classes of the cross-entropy of C sigmoids.
        label_smoothing: s.
        threshold: of "bce": a target above it counts as 1, any other as 0; None: targets as they are.
    """

    kind: LossKind = "cross_entropy"
    label_smoothing: float = 0.0
    threshold: float | None = None

    def __call__(self, logits_BC: Tensor, targets_B: Tensor, partners: Partners | None = None) -> ClassLosses:
        """Return the losses of logits of any float type."""
        logits_BC = logits_BC.float()
        log_p_BC = F.log_softmax(logits_BC, dim=-1)
        recorded_B = F.nll_loss(log_p_BC, targets_B, reduction="none", ignore_index=_IGNORED)
        if self.kind == "bce":
            return ClassLosses(recorded_B, self._sigmoids(logits_BC, targets_B, partners))
        trained_B = recorded_B if partners is None else -_weighted(log_p_BC, targets_B, partners)
        if self.label_smoothing:
            trained_B = (1 - self.label_smoothing) * trained_B - self.label_smoothing * log_p_BC.mean(-1)
        return ClassLosses(recorded_B, trained_B)

    def _sigmoids(self, logits_BC: Tensor, targets_B: Tensor, partners: Partners | None) -> Tensor:
        """Return mean_c softplus(z_c) − t_c·z_c."""
        num_classes = logits_BC.shape[1]
        if self.threshold is not None and partners is not None:
            dot_B = self._thresholded(logits_BC, targets_B, partners, self.threshold)
        else:
            dot_B = _at(logits_BC, targets_B) if partners is None else _weighted(logits_BC, targets_B, partners)
            dot_B = (1 - self.label_smoothing) * dot_B + self.label_smoothing * logits_BC.mean(-1)
        return F.softplus(logits_BC).mean(-1) - dot_B / num_classes

    def _thresholded(self, logits_BC: Tensor, targets_B: Tensor, partners: Partners, threshold: float) -> Tensor:
        """Return Σ_c t_c·z_c where both classes of a row count wholly or not at all."""
        same_B = partners.targets == targets_B
        own_B = same_B | (partners.weight > threshold)
        other_B = ~same_B & (1 - partners.weight > threshold)
        return own_B * _at(logits_BC, targets_B) + other_B * _at(logits_BC, partners.targets)


def _weighted(values_BC: Tensor, targets_B: Tensor, partners: Partners) -> Tensor:
    """Return the values at the two classes of each row, weighted: exactly that of the own class at weight 1."""
    return torch.lerp(_at(values_BC, partners.targets), _at(values_BC, targets_B), partners.weight)


def _at(values_BC: Tensor, targets_B: Tensor) -> Tensor:
    return values_BC.gather(1, targets_B[:, None]).squeeze(1)
