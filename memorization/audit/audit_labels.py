"""The labels that an audit fits its probes to: the run's own, fresh ones, and those of the comparison at equal n."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlpheads.memorization.arguments import check_count, check_integers, check_num_labels, check_seed
from rlpheads.memorization.heads.class_blocks import class_block_labels
from rlpheads.memorization.heads.hashing import key_from_name, splitmix64
from rlpheads.memorization.heads.labels import Balance, label_table

MIN_FRESH_DRAWS = 4
"""Fresh draws below which an interval would say next to nothing: Student's t with 2 degrees of freedom is at 4.3."""


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
        ValueError: fewer than 4 draws, sizes out of range, or own labels or a seed that are no integers.
    """
    num_draws = check_count("the number of fresh draws", num_draws, MIN_FRESH_DRAWS)
    num_heldout = check_count("the number of held-out samples", num_heldout)
    num_labels, seed = check_num_labels(num_labels), check_seed(seed)
    check_integers("own_MN", own_MN)
    num_samples = own_MN.shape[-1]
    num_equal = min(num_samples, num_heldout)

    members_E = keyed_subset(num_samples, num_equal, key_from_name("audited members", seed))
    heldout_E = keyed_subset(num_heldout, num_equal, key_from_name("audited held-out", seed))

    def table(rows_R: Tensor, side: int, split: str, how: Balance = "iid") -> Tensor:
        labels_FR = label_table(len(rows_R), num_labels, num_draws=num_draws, seed=seed, split=split, balance=how)
        return labels_FR if classes is None else class_block_labels(labels_FR, classes[side][rows_R], num_labels)

    return AuditLabels(
        num_labels=num_labels,
        own_MN=own_MN,
        fresh_FN=table(torch.arange(num_samples), 0, "fresh", balance),
        members_E=members_E,
        heldout_E=heldout_E,
        members_FE=table(members_E, 0, "members"),
        non_members_FE=table(heldout_E, 1, "held-out"),
    )


def keyed_subset(num_samples: int, size: int, key: int) -> Tensor:
    """Choose `size` of the rows 0 to N−1 by their hashes under `key`: ascending int64 (size,), the same on any machine."""
    size, num_samples = check_count("the size of a subset", size), check_count("num_samples", num_samples)
    if size > num_samples:
        raise ValueError(f"cannot choose {size} of {num_samples} rows")
    return torch.argsort(splitmix64(key, torch.arange(num_samples)), stable=True)[:size].sort().values
