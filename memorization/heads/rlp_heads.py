"""Random-label prediction heads: one linear classifier of the random labels for each tap and each draw.

A head is the probe that reads how much of the training set's random labels the features let it fit. Its loss and its
gradients' routes come from `rlpheads.kernels.random_label_loss`: the cross-entropy trains the head alone, the
regulariser and the joint term train the features alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlpheads.kernels.random_label_loss import RandomLabelLoss, random_label_losses
from rlpheads.memorization.arguments import check_count, check_num_labels, check_seed
from rlpheads.memorization.heads.class_blocks import class_block_loss
from rlpheads.memorization.heads.hashing import key_from_name
from rlpheads.memorization.heads.head_losses import HeadLosses, HeadTerms, mix_pair_losses, stack_losses
from rlpheads.memorization.heads.hidden_layer import HiddenLayer
from rlpheads.memorization.heads.linear_head import RandomLabelHead


class RLPHeads(nn.Module):
    """All heads of a run; `heads[t][m]` reads tap t and predicts draw m.

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
        device: where the parameters live; "meta" builds shapes only.
        dtype: of the parameters; by default torch's default dtype.

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
        where: dict[str, Any] = {"device": device, "dtype": dtype}

        def for_each_head(make: Callable[[int, int, int], nn.Module]) -> nn.ModuleList:
            return nn.ModuleList(
                nn.ModuleList(make(t, m, dim) for m in range(num_draws)) for t, dim in enumerate(tap_dims)
            )

        self.heads = for_each_head(
            lambda t, m, dim: RandomLabelHead(
                num_labels * num_blocks, hidden or dim, key=key_from_name("heads", seed, t, m), **where
            )
        )
        self.layers: nn.ModuleList | None = None
        if hidden is not None:
            self.layers = for_each_head(
                lambda t, m, dim: HiddenLayer(dim, hidden, key=key_from_name("hidden", seed, t, m), **where)
            )

    def reset_parameters(self) -> None:
        """Give every head its initial weights again."""
        for head in self.modules():
            if isinstance(head, (RandomLabelHead, HiddenLayer)):
                head.reset_parameters()

    def forward(
        self,
        taps: Sequence[Tensor],
        labels_MB: Tensor,
        terms: HeadTerms,
        pair: tuple[Tensor, Tensor] | None = None,
    ) -> HeadLosses:
        """Losses of every head on one batch.

        Args:
            taps: features (B, D_t), one tensor for each tap, of any float dtype.
            labels_MB: integer random labels, a row for each draw.
            terms: what to compute beside the heads' cross-entropy.
            pair: of mixed rows: second labels (M, B), and the weight (B,) in [0, 1] of the first; see `random_label_loss`.

        Numerics: the norm is computed in the parameters' dtype. Under autocast on an accelerator the loss then gets
        features in the autocast dtype, for its matrix products; on a CPU, where bf16 products are rarely faster, they
        stay in the parameters' dtype. The weights are passed as they are, so that their gradient is never rounded to
        the autocast dtype. Either way the loss runs outside autocast and accumulates in fp32 or better.

        Raises:
            ValueError: the taps, the labels or `terms.regularized` do not fit the heads.
        """
        self._check_inputs(taps, labels_MB, terms)
        others = tuple(t for t in range(len(taps)) if t not in terms.regularized)
        losses: dict[int, list[RandomLabelLoss]] = {}
        for positions, kind in ((terms.regularized, terms.regularizer), (others, None)):
            if positions:
                losses |= self._losses(positions, [taps[t] for t in positions], (labels_MB, pair), terms, kind)
        return stack_losses([loss for t in range(len(taps)) for loss in losses[t]], self.num_draws)

    def _losses(
        self,
        positions: Sequence[int],
        taps: Sequence[Tensor],
        labels: tuple[Tensor, tuple[Tensor, Tensor] | None],
        terms: HeadTerms,
        kind: str | None,
    ) -> dict[int, list[RandomLabelLoss]]:
        """Compute the losses of the heads at some taps, under one kind of regulariser, in one call."""
        if kind is None and not terms.joint:
            taps = [features_BD.detach() for features_BD in taps]  # keep no graph of the norm either
        features = [inputs_BD for inputs_BD in map(self._head_inputs, taps) for _ in range(self.num_draws)]
        heads = [head for t in positions for head in cast("Iterable[RandomLabelHead]", self.heads[t])]
        layers = self._hidden_layers(positions)
        labels_MB, pair = labels
        pairs = None if pair is None else [(second_B, pair[1]) for second_B in pair[0].unbind()] * len(positions)
        all_labels = _HeadLabels([*labels_MB.unbind()] * len(positions), pairs)
        options = {"regularizer": kind, "joint": terms.joint, "impl": terms.impl}
        with torch.autocast(features[0].device.type, enabled=False):
            if layers:
                losses = self._losses_behind_hidden_layers(layers, features, heads, all_labels, options)
            else:
                losses = self._losses_of_heads(features, heads, all_labels, options)
        return {t: losses[n * self.num_draws :][: self.num_draws] for n, t in enumerate(positions)}

    def _losses_behind_hidden_layers(
        self,
        layers: list[HiddenLayer],
        features: list[Tensor],
        heads: list[RandomLabelHead],
        labels: _HeadLabels,
        options: dict[str, Any],
    ) -> list[RandomLabelLoss]:
        """Compute every head's loss behind its hidden layer: once for what trains the head, once for the features.

        The joint term on detached features trains the layer. Its value is subtracted again, so that only its gradient
        counts.
        """
        through = list(zip(layers, features, strict=True))
        learned = [layer.with_detached_features(features_BD) for layer, features_BD in through]
        losses = []
        for loss in self._losses_of_heads(learned, heads, labels, {**options, "regularizer": None, "joint": True}):
            assert loss.joint_B is not None
            own_B = loss.cross_entropy_B + loss.joint_B - loss.joint_B.detach()
            losses.append(loss._replace(cross_entropy_B=own_B, joint_B=None))
        if options["regularizer"] is None and not options["joint"]:
            return losses
        carried = [layer.with_detached_weights(features_BD) for layer, features_BD in through]
        routed = self._losses_of_heads(carried, heads, labels, options)
        return [
            loss._replace(regularizer_B=other.regularizer_B, joint_B=other.joint_B)
            for loss, other in zip(losses, routed, strict=True)
        ]

    def _losses_of_heads(
        self, features: list[Tensor], heads: list[RandomLabelHead], labels: _HeadLabels, options: dict[str, Any]
    ) -> list[RandomLabelLoss]:
        """Compute the loss of every head, over all labels or over those of each row's class."""
        weights, biases = [head.weight for head in heads], [head.bias for head in heads]
        if self.num_blocks == 1:
            return list(
                random_label_losses(features, weights, labels.first, biases=biases, pairs=labels.pairs, **options)
            )

        def in_blocks(labels: list[Tensor]) -> list[RandomLabelLoss]:
            of_heads = zip(features, weights, biases, labels, strict=True)
            return [class_block_loss(*of_head, num_labels=self.num_labels, **options) for of_head in of_heads]

        losses = in_blocks(labels.first)
        if labels.pairs is None:
            return losses
        # A partner's label is in the block of the partner's class, over whose labels its own softmax goes.
        others = in_blocks([second_B for second_B, _ in labels.pairs])
        of_pairs = zip(losses, others, labels.pairs, strict=True)
        return [mix_pair_losses(loss, other, weight_B) for loss, other, (_, weight_B) in of_pairs]

    def _hidden_layers(self, positions: Sequence[int]) -> list[HiddenLayer]:
        if self.layers is None:
            return []
        return [layer for t in positions for layer in cast("Iterable[HiddenLayer]", self.layers[t])]

    def _head_inputs(self, features_BD: Tensor) -> Tensor:
        """Prepare features for the loss: normalised, in the dtype of its matrix products."""
        inputs_BD = features_BD.to(next(self.parameters()).dtype)
        if self.norm:
            with torch.autocast(inputs_BD.device.type, enabled=False):
                inputs_BD = F.layer_norm(inputs_BD, inputs_BD.shape[-1:])
        if self.dropout:
            inputs_BD = F.dropout(inputs_BD, self.dropout, self.training)
        return inputs_BD.to(_product_dtype(inputs_BD))

    def _check_inputs(self, taps: Sequence[Tensor], labels_MB: Tensor, terms: HeadTerms) -> None:
        given = [tuple(tap.shape) for tap in taps]
        num_rows = labels_MB.shape[-1]
        if given != [(num_rows, dim) for dim in self.tap_dims] or labels_MB.shape != (self.num_draws, num_rows):
            raise ValueError(
                f"heads for taps of width {list(self.tap_dims)} and {self.num_draws} draws got taps of shape {given} "
                f"and labels of shape {tuple(labels_MB.shape)}"
            )
        if terms.regularized and not 0 <= terms.regularized[0] <= terms.regularized[-1] < len(taps):
            raise ValueError(f"regularized taps {terms.regularized} are positions in a list of {len(taps)} taps")


class _HeadLabels(NamedTuple):
    """Labels (B,) of each head; of mixed rows also a second label and the weight of the first."""

    first: list[Tensor]
    pairs: list[tuple[Tensor, Tensor]] | None


def _product_dtype(inputs_BD: Tensor) -> torch.dtype:
    device_type = inputs_BD.device.type
    if device_type != "cpu" and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return inputs_BD.dtype
