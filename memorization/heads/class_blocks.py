"""Per-class random labels: each class has K labels of its own, and a row's softmax goes over its class's block alone.

With C classes and K labels for each, label c·K + k is the k-th of class c. A head has C·K rows, of which the K of the
row's class take part in its softmax: one small head for each class, in one matrix. Chance is 1/K, as it is for K labels
that all classes share, but each class's head is fitted to that class's samples only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlpheads.kernels.random_label_loss import RandomLabelLoss, random_label_loss
from rlpheads.memorization.arguments import check_integers, check_label_range, check_num_labels


def class_block_labels(labels_MN: Tensor, classes_N: Tensor, num_labels: int) -> Tensor:
    """Number the labels of all classes consecutively: class·K + label, int32 (M, N).

    Args:
        labels_MN: integers (M, N) in [0, K).
        classes_N: class of each sample, integers (N,) in [0, C).
        num_labels: K.

    Raises:
        ValueError: C·K is beyond what int32 holds, labels that are no integers in [0, K), or classes that are no integers of
            at least 0, one for each sample.
    """
    num_labels = check_num_labels(num_labels)
    if classes_N.dim() != 1 or labels_MN.shape[-1] != len(classes_N):
        raise ValueError(
            f"labels of shape {tuple(labels_MN.shape)} need as many classes; given {tuple(classes_N.shape)}"
        )
    check_label_range("labels_MN", labels_MN, num_labels)
    check_integers("classes_N", classes_N)
    classes_N, labels_MN = classes_N.long(), labels_MN.long()
    if len(classes_N) and int(classes_N.min()) < 0:
        raise ValueError(f"classes_N holds {int(classes_N.min())}; classes are integers of at least 0")
    num_all = (int(classes_N.max()) + 1) * num_labels if len(classes_N) else num_labels
    if num_all > 2**31:
        raise ValueError(f"{num_labels} labels for each class are {num_all} in all; labels are stored as int32")
    return (classes_N.to(labels_MN.device) * num_labels + labels_MN).to(torch.int32)


def class_block_loss(
    features_BD: Tensor,
    weight_AD: Tensor,
    bias_A: Tensor,
    labels_B: Tensor,
    *,
    num_labels: int,
    regularizer: str | None = None,
    joint: bool = False,
    impl: str = "auto",
) -> RandomLabelLoss:
    """`random_label_loss` with the softmax of each row over its label's block of K alone; the same routes and members.

    Args:
        features_BD: features (B, D).
        weight_AD: rows of all A = C·K labels.
        bias_A: their biases.
        labels_B: integers in [0, C·K), from `class_block_labels`; they say which block a row has.
        num_labels: K.
        regularizer: as for `random_label_loss`; `uniform` and `entropy` are those of the block.
        joint: likewise.
        impl: likewise.

    Memory: B·K·D, the rows of W that each sample's class has. No host synchronisation.

    Raises:
        ValueError: labels of a dtype that is no integer one, or rows of W that are no whole blocks of K.
    """
    num_labels = check_num_labels(num_labels)
    check_integers("labels_B", labels_B)
    if len(weight_AD) % num_labels or len(bias_A) != len(weight_AD):
        raise ValueError(
            f"{len(weight_AD)} rows of W and {len(bias_A)} biases are no whole blocks of {num_labels} labels"
        )
    block_B, within_B = labels_B.long() // num_labels, labels_B.long() % num_labels
    weight_BKD = weight_AD.unflatten(0, (-1, num_labels))[block_B]
    bias_BK = bias_A.unflatten(0, (-1, num_labels))[block_B]
    # The block's logits stand in for features of an identity head, so that each loss keeps its own gradient route.
    identity_KK = torch.eye(num_labels, dtype=weight_AD.dtype, device=weight_AD.device)
    head_BK = _logits(features_BD.detach(), weight_BKD, bias_BK)
    own = random_label_loss(head_BK, identity_KK, within_B, joint=True, impl=impl)
    routed = None
    if joint or regularizer is not None:
        features_BK = _logits(features_BD, weight_BKD.detach(), bias_BK.detach())
        routed = random_label_loss(features_BK, identity_KK, within_B, regularizer=regularizer, joint=joint, impl=impl)
    assert own.joint_B is not None
    return own._replace(
        cross_entropy_B=own.joint_B,
        regularizer_B=None if routed is None else routed.regularizer_B,
        joint_B=None if routed is None else routed.joint_B,
    )


def _logits(features_BD: Tensor, weight_BKD: Tensor, bias_BK: Tensor) -> Tensor:
    return torch.baddbmm(bias_BK[:, :, None], weight_BKD, features_BD.to(weight_BKD.dtype)[:, :, None])[:, :, 0]
