"""Expected calibration error (ECE) of a classifier, accumulated batch by batch on any device.

Importing it needs torch alone, so that an evaluation inside a run can use it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlpheads.memorization.arguments import check_count

NUM_BINS = 15


class CalibrationBins:
    """Σ (hit − confidence) in each equal-width bin of the confidences of the samples added so far.

    Sums of several ranks add up: all-reduce `gap_Q`. The same batches give the same bits.

    Args:
        num_bins: bins of [0, 1], closed on the right; 0 falls into the first.
        device: where the batches are.
    """

    def __init__(self, num_bins: int = NUM_BINS, device: torch.device | str | None = None):
        num_bins = check_count("num_bins", num_bins)
        self.gap_Q = torch.zeros(num_bins, dtype=torch.float64, device=device)

    def add(self, confidence_B: Tensor, hit_B: Tensor, counted_B: Tensor | None = None) -> None:
        """Add a batch, without a host synchronisation.

        Args:
            confidence_B: probability given to the predicted label, in [0, 1].
            hit_B: whether it was right.
            counted_B: bool, False for rows that are padding; default: all count.
        """
        num_bins = len(self.gap_Q)
        confidence_B = confidence_B.double()
        gap_B = hit_B.double() - confidence_B
        if counted_B is not None:
            gap_B = torch.where(counted_B, gap_B, 0.0)
        bin_B = (torch.ceil(confidence_B * num_bins).long() - 1).clamp(min=0)
        in_bin_BQ = bin_B[:, None] == torch.arange(num_bins, device=bin_B.device)
        self.gap_Q += torch.where(in_bin_BQ, gap_B[:, None], 0.0).sum(0)

    def error(self, num_samples: int) -> Tensor:
        """Return the expected calibration error of the samples added, 0-d fp64 on their device, N of them over all ranks.

        It is Σ over bins of (share of the samples)·|accuracy − mean confidence|.

        Source: Guo et al., On Calibration of Modern Neural Networks (ICML 2017), equation 3.
        """
        num_samples = check_count("num_samples", num_samples)
        return self.gap_Q.abs().sum() / num_samples
