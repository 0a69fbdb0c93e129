"""The parameters of all heads of a run, and what their features go through before the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlpheads.kernels.gpu.heads.kept_operands import KeptOperands
from rlpheads.kernels.head_gradient import Consumer
from rlpheads.memorization.arguments import check_count, check_num_labels, check_seed
from rlpheads.memorization.heads.hashing import key_from_name
from rlpheads.memorization.heads.head_losses import HeadTerms
from rlpheads.memorization.heads.hidden_layer import HiddenLayer
from rlpheads.memorization.heads.linear_head import RandomLabelHead


class HeadModules(nn.Module):
    """All heads of a run; `heads[t][m]` reads tap t and predicts draw m. How their losses are computed is a subclass's.

    Args:
        tap_dims: D of each tap, in the taps' order.
        num_labels: K.
        num_draws: M.
        num_blocks: 1, or the number of classes C: labels are then in [0, C·K), and each head chooses among the K of the
            row's class (`rlpheads.memorization.heads.class_blocks`).
        seed: seed of the run. Head (t, m) has a stream of its own, so one more tap or draw changes no other head.
        norm: normalise each row's features to mean 0 and variance 1 (layer norm without parameters) first.
        hidden: units of a hidden layer (ReLU) of each head's own; None: the heads are linear.
        dropout: share of the features that is dropped in training, in [0, 1), after the norm; one mask for each tap.
        classes: first label of a contiguous range and the one behind its last: the part of every head that is held; None:
            heads are held whole.
        device: where the parameters live; "meta" builds shapes only.
        dtype: of the parameters; by default torch's default dtype.

    Attributes:
        consumer: takes the gradients of the heads of many labels in the backward pass, before they are made
            (`rlpheads.kernels.head_gradient`); None, as it is at first: `.grad` does.

    Raises:
        ValueError: no taps, fewer than 1 draw or 2 labels, a width below 1, a size or seed that is no integer, or a dropout
            outside [0, 1).
    """

    def __init__(
        self,
        tap_dims: Sequence[int],
        num_labels: int,
        num_draws: int,
        *,
        seed: int,
        num_blocks: int = 1,
        norm: bool = True,
        hidden: int | None = None,
        dropout: float = 0.0,
        classes: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        num_labels, num_draws = check_num_labels(num_labels), check_count("num_draws", num_draws)
        num_blocks, seed = check_count("num_blocks", num_blocks), check_seed(seed)
        check_count("the number of taps with heads", len(tap_dims))
        tap_dims = [check_count("the width of a tap", dim) for dim in tap_dims]
        hidden = None if hidden is None else check_count("hidden", hidden)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}; it must be at least 0 and below 1")
        self.tap_dims = tuple(tap_dims)
        self.num_labels = num_labels
        self.num_draws = num_draws
        self.num_blocks = num_blocks
        self.norm = norm
        self.dropout = dropout
        self.consumer: Consumer | None = None
        self.kept_operands = KeptOperands()
        where: dict[str, Any] = {"device": device, "dtype": dtype}

        def for_each_head(make: Callable[[int, int, int], nn.Module]) -> nn.ModuleList:
            return nn.ModuleList(
                nn.ModuleList(make(t, m, dim) for m in range(num_draws)) for t, dim in enumerate(tap_dims)
            )

        self.heads = for_each_head(
            lambda t, m, dim: RandomLabelHead(
                self.num_classes, hidden or dim, key=key_from_name("heads", seed, t, m), classes=classes, **where
            )
        )
        self.layers: nn.ModuleList | None = None
        if hidden is not None:
            self.layers = for_each_head(
                lambda t, m, dim: HiddenLayer(dim, hidden, key=key_from_name("hidden", seed, t, m), **where)
            )

    @property
    def num_classes(self) -> int:
        """Rows of each head's weight, held here or not: K, or C·K where each class has labels of its own."""
        return self.num_labels * self.num_blocks

    def reset_parameters(self) -> None:
        """Give every head its initial weights again."""
        for head in self.modules():
            if isinstance(head, (RandomLabelHead, HiddenLayer)):
                head.reset_parameters()

    def heads_at(self, positions: Iterable[int]) -> list[RandomLabelHead]:
        """Return the heads of the taps at these positions, tap by tap and draw by draw."""
        return [head for t in positions for head in cast("Iterable[RandomLabelHead]", self.heads[t])]

    def hidden_layers_at(self, positions: Iterable[int]) -> list[HiddenLayer]:
        """Return their hidden layers; none for linear heads."""
        if self.layers is None:
            return []
        return [layer for t in positions for layer in cast("Iterable[HiddenLayer]", self.layers[t])]

    def head_inputs(self, features_BD: Tensor) -> Tensor:
        """Prepare features for the loss: normalised, in the dtype of its matrix products."""
        inputs_BD = features_BD.to(next(self.parameters()).dtype)
        if self.norm:
            with torch.autocast(inputs_BD.device.type, enabled=False):
                inputs_BD = F.layer_norm(inputs_BD, inputs_BD.shape[-1:])
        if self.dropout:
            inputs_BD = F.dropout(inputs_BD, self.dropout, self.training)
        return inputs_BD.to(_product_dtype(inputs_BD))

    def check_inputs(self, taps: Sequence[Tensor], labels_MB: Tensor, terms: HeadTerms) -> None:
        """Raise ValueError unless taps, labels and regularised taps fit the heads."""
        given = [tuple(tap.shape) for tap in taps]
        num_rows = labels_MB.shape[-1]
        if given != [(num_rows, dim) for dim in self.tap_dims] or labels_MB.shape != (self.num_draws, num_rows):
            raise ValueError(
                f"heads for taps of width {list(self.tap_dims)} and {self.num_draws} draws got taps of shape {given} "
                f"and labels of shape {tuple(labels_MB.shape)}"
            )
        if terms.regularized and not 0 <= terms.regularized[0] <= terms.regularized[-1] < len(taps):
            raise ValueError(f"regularized taps {terms.regularized} are positions in a list of {len(taps)} taps")


def _product_dtype(inputs_BD: Tensor) -> torch.dtype:
    device_type = inputs_BD.device.type
    if device_type != "cpu" and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return inputs_BD.dtype
