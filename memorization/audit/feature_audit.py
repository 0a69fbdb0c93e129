"""The audit: what frozen features hold of the training set, read by probes that are refitted from nothing.

A head that was trained along with the backbone stores random labels itself, and a regulariser can fool it and leave the
memory in place. So probes of one kind, with equal n and K, are fitted to three things and compared:

* *label excess* = accuracy on the run's own labels − on fresh labels, both on training features. Positive: the features
  hold something about the very labels that the run was trained with. Exactly 0 in expectation where the backbone never saw
  them (λ = 0 and no joint heads).
* *membership excess* = accuracy on fresh labels on training features − on held-out features, at equal n. Not 0: images
  that were trained on are told apart more (or less) easily than images that were not.

Both are differences of accuracies in [0, 1]. Features and labels come in, figures go out: never a model or a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from rlpheads.memorization.arguments import check_count, check_fraction
from rlpheads.memorization.audit.feature_blocks import Features, RowSubset
from rlpheads.memorization.audit.probe_heads import Probe
from rlpheads.memorization.heads.class_blocks import into_class_blocks
from rlpheads.memorization.heads.labels import Balance, hash64, label_table, stream_key
from rlpheads.memorization.measures.intervals import as_float64, draw_interval

LEAST_DRAWS = 4
"""Fresh draws below which an interval would say next to nothing: Student's t with 2 degrees of freedom is at 4.3."""


@dataclass(frozen=True)
class Excess:
    """A difference of two random-label accuracies with its two-sided interval."""

    value: float
    low: float
    high: float
    level: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    @property
    def is_positive(self) -> bool:
        """Whether it is above 0, and not by luck: the whole interval is."""
        return self.low > 0

    @property
    def is_negative(self) -> bool:
        """Whether it is below 0, and not by luck."""
        return self.high < 0


@dataclass(frozen=True)
class LabelExcess(Excess):
    """A label excess: its interval speaks about these features and these own labels, `luck` about whether it means anything.

    Attributes:
        luck: what the excess stays within, either way, with probability `level` where the features know nothing of the
            own labels.
    """

    luck: float

    @property
    def is_positive(self) -> bool:
        """Whether it is above what luck explains."""
        return self.value > self.luck

    @property
    def is_negative(self) -> bool:
        """Whether it is further below 0 than luck explains."""
        return self.value < -self.luck


@dataclass(frozen=True, eq=False)
class AuditLabels:
    """Every label that an audit fits a probe to.

    Attributes:
        num_labels: K.
        own_MN: the run's own labels of the training samples, integers (M, N).
        fresh_FN: labels of the training samples that the run never saw, drawn in the same manner (F, N).
        members_E: training rows of the comparison at equal n, ascending (E,), E = min(N, held-out samples).
        heldout_E: held-out rows of that comparison, ascending (E,).
        members_FE: fresh i.i.d. labels of the former (F, E).
        non_members_FE: fresh i.i.d. labels of the latter (F, E).
    """

    num_labels: int
    own_MN: Tensor
    fresh_FN: Tensor
    members_E: Tensor
    heldout_E: Tensor
    members_FE: Tensor
    non_members_FE: Tensor


@dataclass(frozen=True)
class FeatureAudit:
    """What the probes found on one tap's features; accuracies in [0, 1].

    Attributes:
        own_M: accuracy on each of the run's own draws, N training rows.
        fresh_F: accuracy on each fresh draw, the same rows.
        members_F: accuracy on each fresh draw, E training rows.
        heldout_F: accuracy on each fresh draw, E held-out rows.
        label_excess: mean of `own_M` − mean of `fresh_F`.
        membership_excess: mean of `members_F` − mean of `heldout_F`.
        rank: directions that the N training rows span.
        member_rank: directions that the E training rows span.
        heldout_rank: directions that the E held-out rows span.
    """

    own_M: tuple[float, ...]
    fresh_F: tuple[float, ...]
    members_F: tuple[float, ...]
    heldout_F: tuple[float, ...]
    label_excess: LabelExcess
    membership_excess: Excess
    rank: int
    member_rank: int
    heldout_rank: int


@dataclass(frozen=True)
class HeadControl:
    """What the probe reaches by itself, on Gaussian features of the same n and d.

    Attributes:
        all_rows: with all N training rows: beside `own_M` and `fresh_F`.
        equal_rows: with E rows: beside `members_F` and `heldout_F`.
    """

    all_rows: float
    equal_rows: float


def draw_audit_labels(
    own_MN: Tensor,
    num_heldout: int,
    num_labels: int,
    *,
    num_draws: int,
    seed: int,
    balance: Balance = "iid",
    classes: tuple[Tensor, Tensor] | None = None,
) -> AuditLabels:
    """Draw fresh labels and choose the rows of the comparison at equal n; all keyed by `seed`.

    Args:
        own_MN: the run's own labels of the training samples, integers (M, N).
        num_heldout: held-out samples.
        num_labels: K.
        num_draws: F, fresh draws, at least 4.
        seed: another stream than that of the run's own labels.
        balance: how the run's own labels were drawn, which `fresh_FN` must share to be comparable.
        classes: of the training samples (N,) and of the held-out ones, where each class has K labels of its own: fresh
            labels are then such labels too (`rlpheads.memorization.heads.class_blocks`), as the own ones must be.

    Raises:
        ValueError: fewer than 4 draws, or sizes out of range.
    """
    check_count("the number of fresh draws", num_draws, LEAST_DRAWS)
    check_count("the number of held-out samples", num_heldout)
    num_samples = own_MN.shape[-1]
    num_equal = min(num_samples, num_heldout)

    members_E = keyed_subset(num_samples, num_equal, stream_key("audited members", seed))
    heldout_E = keyed_subset(num_heldout, num_equal, stream_key("audited held-out", seed))

    def table(rows_R: Tensor, side: int, split: str, how: Balance = "iid") -> Tensor:
        labels_FR = label_table(len(rows_R), num_labels, num_draws=num_draws, seed=seed, split=split, balance=how)
        return labels_FR if classes is None else into_class_blocks(labels_FR, classes[side][rows_R], num_labels)

    return AuditLabels(
        num_labels=num_labels,
        own_MN=own_MN,
        fresh_FN=table(torch.arange(num_samples), 0, "fresh", balance),
        members_E=members_E,
        heldout_E=heldout_E,
        members_FE=table(members_E, 0, "members"),
        non_members_FE=table(heldout_E, 1, "held-out"),
    )


def audit_features(
    train: Features, heldout: Features, labels: AuditLabels, probe: Probe, level: float = 0.95
) -> FeatureAudit:
    """Fit the probes and take the differences.

    Args:
        train: features of the training samples (N, D), in the order of `labels.own_MN`.
        heldout: features of the held-out samples, as wide.
        labels: what to fit, from `draw_audit_labels`.
        probe: which kind of probe.
        level: nominal coverage of the intervals.

    Raises:
        ValueError: features and labels do not fit together.
    """
    num_own, num_labels = len(labels.own_MN), labels.num_labels
    every_MN = torch.cat([labels.own_MN.cpu(), labels.fresh_FN.cpu()])  # together: they share what the probe can share
    fit = probe(train, every_MN, num_labels)
    own_M, fresh_F = fit.accuracy_M[:num_own], fit.accuracy_M[num_own:]
    members = probe(RowSubset(train, labels.members_E), labels.members_FE, num_labels)
    non_members = probe(RowSubset(heldout, labels.heldout_E), labels.non_members_FE, num_labels)
    return FeatureAudit(
        own_M=tuple(own_M.tolist()),
        fresh_F=tuple(fresh_F.tolist()),
        members_F=tuple(members.accuracy_M.tolist()),
        heldout_F=tuple(non_members.accuracy_M.tolist()),
        label_excess=label_excess(own_M, fresh_F, level),
        membership_excess=membership_excess(members.accuracy_M, non_members.accuracy_M, level),
        rank=fit.rank,
        member_rank=members.rank,
        heldout_rank=non_members.rank,
    )


def head_control(labels: AuditLabels, num_features: int, probe: Probe) -> HeadControl:
    """Fit the probe to Gaussian features of the same n and d (least squares: closed form)."""
    return HeadControl(
        all_rows=probe.control(labels.fresh_FN, num_features, labels.num_labels),
        equal_rows=probe.control(labels.members_FE, num_features, labels.num_labels),
    )


def label_excess(own_M: Tensor, fresh_F: Tensor, level: float = 0.95) -> LabelExcess:
    """Mean over the run's own draws minus the accuracy expected of fresh labels, with two statements about it.

    * The interval is for these features and these own labels, both held fixed: then the own accuracy is a plain number,
      and what is uncertain is the fresh labels' expectation. It is Student's t interval of the mean over fresh draws.
    * `luck` answers whether the features know the own labels at all. If they do not, own and fresh labels are
      exchangeable, and the excess stays within t_{M+F−2}·s·√(1/M + 1/F) with probability `level` (s pooled). With one own
      draw that is the prediction interval of one more fresh draw.

    Nothing is claimed about other labels, or the same training begun anew: own draws that features do know scatter more
    than fresh ones, by how much one run cannot tell. Compare several runs for that (`rlpheads study`).

    Args:
        own_M: accuracies, M ≥ 1.
        fresh_F: accuracies, F ≥ 2.
        level: nominal coverage.

    Raises:
        ValueError: no own or fewer than two fresh draws.

    Source: Student's t; for luck e.g. Hahn and Meeker, Statistical Intervals (1991), section 4.8.
    """
    check_fraction("level", level)
    own, fresh = as_float64(own_M), as_float64(fresh_F)
    check_count("the number of own draws", len(own))
    check_count("the number of fresh draws", len(fresh), 2)
    expected = draw_interval(fresh, level)
    freedom = len(own) + len(fresh) - 2
    squares = sum(float((group - group.mean()).square().sum()) for group in (own, fresh))
    error = math.sqrt(squares / freedom * (1 / len(own) + 1 / len(fresh)))
    return LabelExcess(
        value=float(own.mean() - fresh.mean()),
        low=float(own.mean() - expected.high),
        high=float(own.mean() - expected.low),
        level=level,
        luck=float(stats.t.isf((1 - level) / 2, freedom)) * error,
    )


def membership_excess(members_F: Tensor, heldout_F: Tensor, level: float = 0.95) -> Excess:
    """Mean over fresh draws of (training features − held-out features), with Student's t interval over the draws.

    The interval covers the labels' randomness. The images are held fixed: it speaks about these training and these
    held-out images.

    Args:
        members_F: accuracies on training features, F ≥ 2.
        heldout_F: accuracies on as many held-out features, F.
        level: nominal coverage.

    Raises:
        ValueError: fewer than two draws, or not as many on both sides.
    """
    members, heldout = as_float64(members_F), as_float64(heldout_F)
    if members.shape != heldout.shape:
        raise ValueError(f"members have {len(members)} draws and held-out samples {len(heldout)}; give equally many")
    differences_F = members - heldout
    interval = draw_interval(differences_F, level)
    return Excess(float(differences_F.mean()), float(interval.low), float(interval.high), level)


def keyed_subset(num_samples: int, size: int, key: int) -> Tensor:
    """Choose `size` of the rows 0 to N−1 by their hashes under `key`: ascending int64 (size,), the same on any machine."""
    check_count("the size of a subset", size)
    if size > num_samples:
        raise ValueError(f"cannot choose {size} of {num_samples} rows")
    return torch.argsort(hash64(key, torch.arange(num_samples)), stable=True)[:size].sort().values
