"""The random labels behind a ledger: one call from what its metadata say."""

from __future__ import annotations

import torch
from torch import Tensor

from rlpheads.memorization.heads.class_blocks import class_block_labels
from rlpheads.memorization.heads.labels import Balance, label_table
from rlpheads.memorization.records.ledger_file import LabelSource, LedgerError, LedgerTable


def ledger_labels(table: LedgerTable) -> Tensor:
    """Return the random label of every sample of a ledger in every draw: int32 (M, N), as the run drew them.

    Draws of audit heads come behind the heads' own. With K labels for each class, label k of class c is c·K + k, and a sample
    that the epoch did not reach, whose class the ledger does not know, has -1.

    Raises:
        LedgerError: the file does not say where its labels come from (versions 1 and 2).
    """
    facts = table.metadata
    if facts.labels is None:
        raise LedgerError(
            f"the {facts.phase} ledger of epoch {facts.epoch} does not say where its random labels come from, as files before "
            "version 3 do not; `rlpheads export RUN OUT --heads` writes them, from the run's settings"
        )
    known_N = torch.from_numpy(table.target).clamp(min=0)
    labels_MN = labels_from(facts.labels, facts.split, known_N, facts.num_labels, facts.num_draws)
    if facts.labels.balance == "per_class":
        labels_MN[:, torch.from_numpy(table.target) < 0] = -1
    return labels_MN


def labels_from(
    source: LabelSource,
    split: str,
    classes_N: Tensor,
    num_labels: int,
    num_draws: int,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the random labels of a split: int32 (M, N), in [0, K), or in [0, C·K) with K labels for each class.

    Args:
        source: seed and balance.
        split: name of the split.
        classes_N: class of each sample, integers; their number alone counts unless labels are drawn for each class.
        num_labels: K.
        num_draws: M.
        device: where the table is computed and lives.
    """
    balance: Balance = "balanced" if source.balance == "balanced" else "iid"
    labels_MN = label_table(
        len(classes_N), num_labels, num_draws=num_draws, seed=source.seed, split=split, balance=balance, device=device
    )
    return class_block_labels(labels_MN, classes_N, num_labels) if source.balance == "per_class" else labels_MN
