"""Checks of the loss's arguments: one clear ValueError each, and no look at a tensor's values on a GPU."""

from difflib import get_close_matches

import torch
from torch import Tensor

from rlpheads.kernels.row_softmax import RowLabels
from rlpheads.kernels.terms import REGULARIZERS

LABEL_DTYPES = (torch.int32, torch.int64)


def check_head(features_BD: Tensor, weight_KD: Tensor, bias_K: Tensor | None) -> None:
    """Check the shapes, dtypes and devices of the features and the linear head."""
    if features_BD.ndim != 2 or weight_KD.ndim != 2 or features_BD.shape[1] != weight_KD.shape[1]:
        raise ValueError(
            "features must be (B, D) and weight (K, D) with the same D; "
            f"got features {tuple(features_BD.shape)} and weight {tuple(weight_KD.shape)}"
        )
    num_labels = weight_KD.shape[0]
    if num_labels < 2:
        raise ValueError(f"at least 2 labels are needed; weight has {num_labels} row(s)")
    if bias_K is not None and bias_K.shape != (num_labels,):
        raise ValueError(f"bias must be ({num_labels},), one entry for each row of weight; got {tuple(bias_K.shape)}")
    for name, tensor in (("features", features_BD), ("weight", weight_KD), ("bias", bias_K)):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} must be of a floating-point dtype; got {tensor.dtype}")
        _check_device(name, tensor, features_BD)


def check_labels(features_BD: Tensor, labels_B: Tensor, pair: tuple[Tensor, Tensor] | None) -> None:
    """Check the shapes, dtypes and devices of the labels and of the pair, if there is one."""
    _check_indices("labels", labels_B, features_BD)
    if pair is None:
        return
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(f"pair must be a tuple (labels, weight of the first label); got {type(pair).__name__}")
    _check_indices("pair's labels", pair[0], features_BD)
    if pair[1].shape != labels_B.shape or not pair[1].is_floating_point():
        raise ValueError(
            f"pair's weight must be floating-point and ({len(features_BD)},), one for each row of features; "
            f"got {pair[1].dtype} {tuple(pair[1].shape)}"
        )
    _check_device("pair's weight", pair[1], features_BD)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that a name is among the choices; the error names the nearest."""
    if value in choices:
        return
    nearest = get_close_matches(str(value), choices, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"unknown {name} {value!r}; known are {', '.join(choices)}{hint}")


def check_regularizer(regularizer: str | None) -> None:
    """Check the kind of regularizer."""
    if regularizer is not None:
        check_choice("regularizer", regularizer, tuple(REGULARIZERS))


def check_memory_budget(memory_budget: int | None) -> None:
    """Check the number of bytes."""
    if memory_budget is not None and (
        isinstance(memory_budget, bool) or not isinstance(memory_budget, int) or memory_budget < 0
    ):
        raise ValueError(f"memory_budget must be a number of bytes, 0 or more, or None; got {memory_budget!r}")


def _check_indices(name: str, indices_B: Tensor, features_BD: Tensor) -> None:
    if indices_B.dtype not in LABEL_DTYPES:
        raise ValueError(f"{name} must be int32 or int64; got {indices_B.dtype}")
    if indices_B.shape != features_BD.shape[:1]:
        raise ValueError(
            f"{name} must be ({len(features_BD)},), one for each row of features; got {tuple(indices_B.shape)}"
        )
    _check_device(name, indices_B, features_BD)


def _check_device(name: str, tensor: Tensor | None, features_BD: Tensor) -> None:
    if tensor is not None and tensor.device != features_BD.device:
        raise ValueError(f"{name} must be on the features' device {features_BD.device}; got {tensor.device}")


def checked_values(labels: RowLabels, num_labels: int) -> RowLabels:
    """Labels all of which lie in [0, K), with weights in [0, 1]; on a GPU unchecked, as that would wait for it."""
    if labels.index_LB.device.type != "cpu":
        return labels
    return labels._replace(index_LB=_check_values_op(labels.index_LB, labels.weight_LB, num_labels))


@torch.library.custom_op("rlpheads::check_label_values", mutates_args=(), device_types="cpu")
def _check_values_op(labels_LB: Tensor, weight_LB: Tensor, num_labels: int) -> Tensor:
    """Check in an operator, since Python cannot branch on values under FakeTensorMode or torch.compile."""
    if labels_LB.numel() == 0:
        return labels_LB.clone()
    smallest, largest = (int(value) for value in labels_LB.aminmax())
    if smallest < 0 or largest >= num_labels:
        raise ValueError(f"labels must be in [0, {num_labels}); got labels from {smallest} to {largest}")
    if not bool(((weight_LB >= 0) & (weight_LB <= 1)).all()):
        raise ValueError("the weights of a pair must be in [0, 1]")
    return labels_LB.clone()


@_check_values_op.register_fake
def _(labels_LB: Tensor, weight_LB: Tensor, num_labels: int) -> Tensor:
    return torch.empty_like(labels_LB)
