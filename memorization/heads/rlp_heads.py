"""Random-label prediction heads: one linear classifier of the random labels for each tap and each draw.

A head is the probe that reads how much of the training set's random labels the features let it fit. Its loss and its
gradients' routes come from `rlpheads.kernels.random_label_loss`: the cross-entropy trains the head alone, the
regulariser and the joint term train the features alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlpheads.kernels.loss_results import RandomLabelLoss, RandomLabelLosses
from rlpheads.kernels.random_label_loss import random_label_losses
from rlpheads.memorization.heads.class_blocks import class_block_loss
from rlpheads.memorization.heads.head_losses import (
    MEASURING,
    HeadLosses,
    HeadTerms,
    losses_by_tap,
    mix_pair_losses,
)
from rlpheads.memorization.heads.head_modules import HeadModules
from rlpheads.memorization.heads.hidden_layer import HiddenLayer
from rlpheads.memorization.heads.linear_head import RandomLabelHead


class RLPHeads(HeadModules):
    """All heads of a run, each held whole; `heads[t][m]` reads tap t and predicts draw m. Arguments: see `HeadModules`."""

    def forward(
        self,
        taps: Sequence[Tensor] | Tensor,
        labels_MB: Tensor,
        terms: HeadTerms = MEASURING,
        pair: tuple[Tensor, Tensor] | None = None,
    ) -> HeadLosses:
        """Losses of every head on one batch; `heads(features, labels)` measures, and trains the heads alone.

        Args:
            taps: features (B, D_t), one tensor for each tap, of any float dtype; a tensor by itself is those of the one tap.
            labels_MB: integer random labels, a row for each draw; (B,) are those of the one draw.
            terms: what to compute beside the heads' cross-entropy.
            pair: of mixed rows: second labels (M, B), and the weight (B,) in [0, 1] of the first; see `random_label_loss`.

        Numerics: the norm is computed in the parameters' dtype. Under autocast on an accelerator the loss then gets
        features in the autocast dtype, for its matrix products; on a CPU, where bf16 products are rarely faster, they
        stay in the parameters' dtype. The weights are passed as they are, so that their gradient is never rounded to
        the autocast dtype. Either way the loss runs outside autocast and accumulates in fp32 or better.

        Raises:
            ValueError: the taps, the labels or `terms.regularized` do not fit the heads.
        """
        if isinstance(taps, Tensor):
            taps = [taps]
        if labels_MB.ndim == 1:
            labels_MB = labels_MB[None]
        self.check_inputs(taps, labels_MB, terms)
        others = tuple(t for t in range(len(taps)) if t not in terms.regularized)
        groups = [(terms.regularized, terms.regularizer), (others, None)]
        found = {
            positions: self._losses(positions, [taps[t] for t in positions], (labels_MB, pair), terms, kind)
            for positions, kind in groups
            if positions
        }
        return losses_by_tap(self._in_order(found), self.num_draws)

    def _in_order(self, found: dict[tuple[int, ...], RandomLabelLosses]) -> RandomLabelLosses:
        """Return the losses of all heads by the position of their tap; `found` has those of some positions each."""
        if len(found) == 1:
            return next(iter(found.values()))
        by_position: dict[int, list[RandomLabelLoss]] = {}
        for positions, losses in found.items():
            of_heads = [loss._replace(regularizer_B=None) for loss in losses.by_head()]
            by_position |= {t: of_heads[n * self.num_draws :][: self.num_draws] for n, t in enumerate(positions)}
        stacked = RandomLabelLosses.stacked([loss for t in sorted(by_position) for loss in by_position[t]])
        (regularizer_HB,) = (each.regularizer_HB for each in found.values() if each.regularizer_HB is not None)
        return stacked._replace(regularizer_HB=regularizer_HB)

    def _losses(
        self,
        positions: Sequence[int],
        taps: Sequence[Tensor],
        labels: tuple[Tensor, tuple[Tensor, Tensor] | None],
        terms: HeadTerms,
        kind: str | None,
    ) -> RandomLabelLosses:
        """Compute the losses of the heads at some taps, under one kind of regulariser, in one call."""
        if kind is None and not terms.joint:
            taps = [features_BD.detach() for features_BD in taps]  # keep no graph of the norm either
        features = [inputs_BD for inputs_BD in map(self.head_inputs, taps) for _ in range(self.num_draws)]
        heads = self.heads_at(positions)
        layers = self.hidden_layers_at(positions)
        labels_MB, pair = labels
        pairs = None if pair is None else [(second_B, pair[1]) for second_B in pair[0].unbind()] * len(positions)
        all_labels = _HeadLabels([*labels_MB.unbind()] * len(positions), pairs)
        options = {"regularizer": kind, "joint": terms.joint, "impl": terms.impl}
        with torch.autocast(features[0].device.type, enabled=False):
            if layers:
                return self._losses_behind_hidden_layers(layers, features, heads, all_labels, options)
            return self._losses_of_heads(features, heads, all_labels, options)

    def _losses_behind_hidden_layers(
        self,
        layers: list[HiddenLayer],
        features: list[Tensor],
        heads: list[RandomLabelHead],
        labels: _HeadLabels,
        options: dict[str, Any],
    ) -> RandomLabelLosses:
        """Compute every head's loss behind its hidden layer: once for what trains the head, once for the features.

        The joint term on detached features trains the layer. Its value is subtracted again, so that only its gradient
        counts.
        """
        through = list(zip(layers, features, strict=True))
        learned = [layer.with_detached_features(features_BD) for layer, features_BD in through]
        losses = self._losses_of_heads(learned, heads, labels, {**options, "regularizer": None, "joint": True})
        assert losses.joint_HB is not None
        own_HB = losses.cross_entropy_HB + losses.joint_HB - losses.joint_HB.detach()
        losses = losses._replace(cross_entropy_HB=own_HB, joint_HB=None)
        if options["regularizer"] is None and not options["joint"]:
            return losses
        carried = [layer.with_detached_weights(features_BD) for layer, features_BD in through]
        routed = self._losses_of_heads(carried, heads, labels, options)
        return losses._replace(regularizer_HB=routed.regularizer_HB, joint_HB=routed.joint_HB)

    def _losses_of_heads(
        self, features: list[Tensor], heads: list[RandomLabelHead], labels: _HeadLabels, options: dict[str, Any]
    ) -> RandomLabelLosses:
        """Compute the loss of every head, over all labels or over those of each row's class."""
        weights, biases = [head.weight for head in heads], [head.bias for head in heads]
        if self.num_blocks == 1:
            of_heads: dict[str, Any] = {"biases": biases, "pairs": labels.pairs}
            of_heads |= {"consumer": self.consumer, "kept": self.kept_operands}
            return random_label_losses(features, weights, labels.first, **of_heads, **options)

        def in_blocks(labels: list[Tensor]) -> list[RandomLabelLoss]:
            of_heads = zip(features, weights, biases, labels, strict=True)
            return [class_block_loss(*of_head, num_labels=self.num_labels, **options) for of_head in of_heads]

        losses = in_blocks(labels.first)
        if labels.pairs is not None:
            # A partner's label is in the block of the partner's class, over whose labels its own softmax goes.
            others = in_blocks([second_B for second_B, _ in labels.pairs])
            of_pairs = zip(losses, others, labels.pairs, strict=True)
            losses = [mix_pair_losses(loss, other, weight_B) for loss, other, (_, weight_B) in of_pairs]
        return RandomLabelLosses.stacked(losses)


class _HeadLabels(NamedTuple):
    """Labels (B,) of each head; of mixed rows also a second label and the weight of the first."""

    first: list[Tensor]
    pairs: list[tuple[Tensor, Tensor]] | None
