"""Batches and metadata that the tests of the ledger and of its file share."""

import torch
from torch import Tensor

from rlpheads.memorization.records.ledger import Ledger
from rlpheads.memorization.records.ledger_file import LabelSource, LedgerMetadata

NUM_SAMPLES, TAPS, NUM_DRAWS = 11, (1, 4, 5), 2
METADATA = LedgerMetadata(
    fingerprint="ab" * 32,
    seed=3,
    num_labels=10,
    taps=TAPS,
    num_draws=NUM_DRAWS,
    epoch=7,
    phase="running",
    split="train",
    step=91,
    labels=LabelSource(seed=5, balance="iid"),
)


def batch_of(index: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Arguments of `record` for the given samples; what is recorded depends on the sample and `seed` alone."""
    index_B = torch.tensor(index, dtype=torch.int64)

    def draw(*shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, NUM_SAMPLES + 1, generator=generator)[..., index_B]

    return {
        "index_B": index_B,
        "targets_B": index_B % 4,
        "class_loss_B": draw(),
        "class_hit_B": draw() > 0,
        "hit_TMB": draw(len(TAPS), NUM_DRAWS) > 0,
        "bits_TMB": draw(len(TAPS), NUM_DRAWS),
        "margin_TMB": -draw(len(TAPS), NUM_DRAWS),
        "predicted_B": (index_B + 1) % 4,
        "confidence_B": draw().sigmoid(),
    }


def new_ledger(num_samples: int = NUM_SAMPLES) -> Ledger:
    return Ledger(num_samples, len(TAPS), NUM_DRAWS)
