"""The definition of the loss in plain PyTorch: what every other implementation is measured against.

It materialises the B×K logits, once for each of the two routes, and leaves the gradients to autograd. With
d = z_y − log Σ_{j≠y} e^{z_j}, −log p_y is softplus(−d) and −log(1 − p_y) is softplus(d), so that values and gradients
are exact however far the label's logit lies above the others. Runs on any device, in float64 if the inputs are.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rlpheads.kernels.rows.partials import accumulation_dtype
from rlpheads.kernels.rows.row_softmax import RowLabels


def logits(features_BD: Tensor, weight_KD: Tensor, bias_K: Tensor | None) -> Tensor:
    """Logits z = X Wᵀ + b, (B, K), in float32, or float64 if an input is."""
    dtype = accumulation_dtype(features_BD, weight_KD)
    with torch.autocast(features_BD.device.type, enabled=False):
        return F.linear(features_BD.to(dtype), weight_KD.to(dtype), None if bias_K is None else bias_K.to(dtype))


def log_odds(logits_BK: Tensor, labels_LB: Tensor) -> Tensor:
    """log(p_y / (1 − p_y)) of each label, (L, B)."""
    return torch.stack([_log_odds_of_one(logits_BK, labels_B[:, None]) for labels_B in labels_LB])


def _log_odds_of_one(logits_BK: Tensor, labels_B1: Tensor) -> Tensor:
    rest_BK, is_empty_B1 = _rest(logits_BK, labels_B1)
    log_rest_B = rest_BK.logsumexp(1).masked_fill(is_empty_B1[:, 0], -torch.inf)
    return logits_BK.gather(1, labels_B1)[:, 0] - log_rest_B


def _rest(logits_BK: Tensor, labels_B1: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, −∞ at the labels, and whether no class is left (B, 1): there they are 0, as −∞ alone has no gradient."""
    rest_BK = logits_BK.scatter(1, labels_B1, -torch.inf)
    is_empty_B1 = (rest_BK == -torch.inf).all(1, keepdim=True)
    return rest_BK.masked_fill(is_empty_B1, 0.0), is_empty_B1


def cross_entropy(logits_BK: Tensor, labels: RowLabels) -> Tensor:
    """−log p_y, (B,); like each loss on p_y, the weighted sum over the row's labels."""
    return (labels.weight_LB * -F.logsigmoid(log_odds(logits_BK, labels.index_LB))).sum(0)


def unlikelihood(logits_BK: Tensor, labels: RowLabels) -> Tensor:
    """−log(1 − p_y), (B,)."""
    return (labels.weight_LB * -F.logsigmoid(-log_odds(logits_BK, labels.index_LB))).sum(0)


def reversal(logits_BK: Tensor, labels: RowLabels) -> Tensor:
    """Log p_y, (B,)."""
    return -cross_entropy(logits_BK, labels)


def uniform(logits_BK: Tensor, labels: RowLabels) -> Tensor:
    """−(1/K) Σ_j log p_j, (B,)."""
    return logits_BK.logsumexp(1) - logits_BK.mean(1)


def entropy(logits_BK: Tensor, labels: RowLabels) -> Tensor:
    """KL(p ‖ uniform) = log K − H(p), (B,).

    H(p) is that of "the top class or the rest" plus (1 − p_top) times that of the rest. In Σ_j p_j log p_j a top class
    far above the rest would hide them: its gradient is off by 2 % at a margin of 40 even in float64.
    """
    top_B1 = logits_BK.argmax(1, keepdim=True)
    odds_B = _log_odds_of_one(logits_BK, top_B1).clamp(max=torch.finfo(logits_BK.dtype).max)
    rest_BK, _ = _rest(logits_BK, top_B1)
    log_q_BK = rest_BK.log_softmax(1).masked_fill(rest_BK == -torch.inf, 0.0)  # 0·log 0 = 0
    rest_entropy_B = -(log_q_BK.exp() * log_q_BK).sum(1)
    split_entropy_B = -torch.sigmoid(odds_B) * F.logsigmoid(odds_B) - torch.sigmoid(-odds_B) * F.logsigmoid(-odds_B)
    return math.log(logits_BK.shape[1]) - split_entropy_B - torch.sigmoid(-odds_B) * rest_entropy_B


REFERENCE_REGULARIZERS = {"unlikelihood": unlikelihood, "uniform": uniform, "reversal": reversal, "entropy": entropy}


def is_argmax(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Whether the label's logit is the largest, ties to the lowest index, (B,) bool."""
    return logits_BK.argmax(1) == labels_B


def margin(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """z_y − max_{j≠y} z_j, (B,)."""
    labels_B1 = labels_B[:, None]
    return (logits_BK.gather(1, labels_B1) - logits_BK.scatter(1, labels_B1, -torch.inf).amax(1, keepdim=True))[:, 0]
