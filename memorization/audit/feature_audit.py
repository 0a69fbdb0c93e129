"""The audit of one tap: probes refitted from scratch to frozen features, and the excesses that compare them.

A head that was trained along with the backbone stores random labels itself, and a regulariser can lower its accuracy
without removing what the features hold. So probes of one kind, with equal n and K, are fitted to three things and compared:

* *label excess* = accuracy on the run's own labels − on fresh labels, both on training features. Positive: the features
  hold something about the very labels that the run was trained with. Exactly 0 in expectation where the backbone never saw
  them (λ = 0 and no joint heads).
* *membership excess* = accuracy on fresh labels on training features − on held-out features, at equal n. Not 0: images
  that were trained on are told apart more (or less) easily than images that were not.

Both are differences of accuracies in [0, 1]. It takes features and labels, never a model or a run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlpheads.memorization.audit.audit_labels import AuditLabels
from rlpheads.memorization.audit.excesses import Excess, LabelExcess, label_excess, membership_excess
from rlpheads.memorization.probes.feature_blocks import Features, RowSubset
from rlpheads.memorization.probes.probe_heads import Probe


@dataclass(frozen=True)
class FeatureAudit:
    """Results of the audit of one tap's features; accuracies in [0, 1].

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
    """Head-only control: accuracy of the same probe on Gaussian features of the same n and d.

    Attributes:
        all_rows: with all N training rows: beside `own_M` and `fresh_F`.
        equal_rows: with E rows: beside `members_F` and `heldout_F`.
    """

    all_rows: float
    equal_rows: float


def audit_features(
    train: Features, heldout: Features, labels: AuditLabels, probe: Probe, level: float = 0.95
) -> FeatureAudit:
    """Fit the probes and compute both excesses.

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
