"""Per-class random labels: each class has K labels of its own, and a row's softmax goes over its class's block alone.

With C classes and K labels for each, label c·K + k is the k-th of class c. A head has C·K rows, of which the K of the
row's class take part in its softmax: one small head for each class, in one matrix. Chance is 1/K, as it is for K labels
that all classes share, but each class's head is fitted to that class's samples only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlpheads.kernels.loss_results import RandomLabelLoss
from rlpheads.kernels.random_label_loss import random_label_loss
from rlpheads.kernels.rows.partials import ClassRange, Exponentials, LogitGradient, Needs, Partials, Products
from rlpheads.kernels.rows.reference_stages import NO_PRODUCTS, LabelPlaces, logit_gradient, sum_rows, with_no_class
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


@dataclass(frozen=True)
class ClassBlockStages:
    """The local stages (`rlpheads.kernels.rows.kernel.Kernel`) where a row's softmax goes over its label's block alone.

    A range of the A = C·K rows may cut through blocks, or hold no row. Labels are in [0, A), one for each row; memory: as for
    `class_block_loss`.

    Attributes:
        num_labels: K.
    """

    num_labels: int

    def local_partials(
        self, features_BD: Tensor, head: ClassRange, labels_LB: Tensor, needs: Needs
    ) -> tuple[Partials, Products, Exponentials]:
        """First stage; see `rlpheads.kernels.rows.kernel.Kernel`."""
        columns_BC, places = self._columns(head, labels_LB)
        weight_BCD = with_no_class(head.weight_KD, 0.0)[columns_BC]
        assert head.bias_K is not None
        bias_BC = with_no_class(head.bias_K.unsqueeze(1), -torch.inf)[columns_BC, 0]
        sums = sum_rows(_logits(features_BD, weight_BCD, bias_BC), places, columns_BC > 0)
        products = NO_PRODUCTS
        if needs.feature_gradient:
            products = Products(
                torch.einsum("bc,bcd->bd", sums.exp_BC, weight_BCD),
                torch.einsum("bc,bcd->bd", sums.moment_BC, weight_BCD),
                weight_BCD.sum(1),
                label_weight_LBD=weight_BCD[torch.arange(len(features_BD), device=features_BD.device), places.column],
            )
        return sums.partials, products, Exponentials(sums.exp_BC, sums.partials.shift_B[None])

    def local_class_gradients(
        self,
        features_BD: Tensor,
        head: ClassRange,
        labels_LB: Tensor,
        exponentials: Exponentials,
        gradient: LogitGradient,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Last stage; see `rlpheads.kernels.rows.kernel.Kernel`."""
        columns_BC, places = self._columns(head, labels_LB)
        gradient_BC = logit_gradient(exponentials.flat, gradient, places)
        weight_gradient_KD = bias_gradient_K = None
        if wanted[0]:
            rows_ND = (gradient_BC[:, :, None] * features_BD[:, None, :]).flatten(0, 1)
            weight_gradient_KD = _add_at(with_no_class(head.weight_KD, 0.0), columns_BC, rows_ND)
        if wanted[1]:
            assert head.bias_K is not None
            bias_C1 = with_no_class(head.bias_K.unsqueeze(1), 0.0)
            bias_gradient_K = _add_at(bias_C1, columns_BC, gradient_BC.view(-1, 1)).squeeze(1)
        return weight_gradient_KD, bias_gradient_K

    def _columns(self, head: ClassRange, labels_LB: Tensor) -> tuple[Tensor, LabelPlaces]:
        """Return, for no class and each class of a row's block, its place in the range counted from 1, 0 where it has none."""
        within_LB = labels_LB % self.num_labels
        first_B1 = (labels_LB - within_LB)[0, :, None] - head.start + 1
        place_BK = first_B1 + torch.arange(self.num_labels, device=labels_LB.device)
        place_BK = torch.where((place_BK > 0) & (place_BK <= head.weight_KD.shape[0]), place_BK, 0)
        columns_BC = torch.cat([torch.zeros_like(first_B1), place_BK], 1)
        position_LB = within_LB + 1
        return columns_BC, LabelPlaces(position_LB, columns_BC.gather(1, position_LB.T).T > 0)


def _add_at(like_CX: Tensor, columns_BC: Tensor, rows_NX: Tensor) -> Tensor:
    """Sum the rows that belong to each class of a range: (K, X), in the dtype of the range."""
    return torch.zeros_like(like_CX).index_add(0, columns_BC.flatten(), rows_NX.to(like_CX.dtype))[1:]
