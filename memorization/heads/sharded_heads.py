"""Random-label prediction heads whose classes are sharded over the ranks: each holds a range of every head's weights.

A head of 100,000 classes is as large as a ViT-B. Sharded over N ranks its weights, gradients and optimizer states take an
N-th each, and its gradient is never exchanged: what travels is the features, which are a few megabytes at any number of
classes. One message takes the features, labels and weights of all rows to all ranks, one the partial statistics of the
softmax; backward there is one of feature gradients, where a regulariser or the joint term wants them, and otherwise none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlpheads.kernels.head_gradient import HandingOver
from rlpheads.kernels.implementations import resolve_kernel
from rlpheads.kernels.rows.kernel import Kernel
from rlpheads.kernels.rows.partials import ClassRange
from rlpheads.kernels.stages import KERNELS
from rlpheads.memorization.heads.class_blocks import ClassBlockStages
from rlpheads.memorization.heads.class_shards import ClassShards
from rlpheads.memorization.heads.head_losses import (
    GatheredLosses,
    HeadLosses,
    HeadTerms,
    mix_pair_losses,
    stack_losses,
)
from rlpheads.memorization.heads.head_modules import HeadModules
from rlpheads.memorization.heads.sharded_loss import ShardedHead, sharded_losses


class ShardedRLPHeads(HeadModules):
    """All heads of a run, of whose classes this rank holds a range; `heads[t][m]` reads tap t and predicts draw m.

    The parameters are this rank's part alone: slices of one buffer for all heads of one width. `state_dict` gives DTensors,
    views of them as parts of the whole, under the names that `rlpheads.memorization.heads.rlp_heads.RLPHeads` has: what
    torch.distributed.checkpoint saves at N ranks loads at M, and into heads that are held whole. Hidden layers are small;
    every rank holds them whole.

    Args:
        tap_dims: as for `HeadModules`, like all that follow but for `shards`.
        num_labels: K. Ranks whose range is empty take part in all messages all the same.
        num_draws: M.
        shards: the ranks.
        device: where the parameters live; "meta" builds shapes only.
        options: as for `HeadModules`.
    """

    def __init__(
        self,
        tap_dims: Sequence[int],
        num_labels: int,
        num_draws: int,
        *,
        shards: ClassShards,
        device: torch.device | str | None = None,
        **options: Any,
    ):
        classes = shards.start_and_stop(num_labels * options.get("num_blocks", 1))
        super().__init__(tap_dims, num_labels, num_draws, classes=classes, device="meta", **options)
        self.shards = shards
        self._allocate(torch.get_default_device() if device is None else torch.device(device))
        self.reset_parameters()
        if shards.mesh is not None:
            self.register_state_dict_post_hook(_show_as_dtensors)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole heads, over all ranks."""
        sharded = sum(self.num_classes * math.prod(each.shape[1:]) for each in self.heads.parameters())
        return sharded + sum(parameter.numel() for parameter in self.replicated_parameters())

    def replicated_parameters(self) -> list[nn.Parameter]:
        """Return what every rank holds whole: the hidden layers."""
        return [] if self.layers is None else list(self.layers.parameters())

    def sum_replicated_gradients(self) -> None:
        """Sum the gradients of what every rank holds whole, each of them of the rank's own rows. One message, if any."""
        gradients = [parameter.grad for parameter in self.replicated_parameters() if parameter.grad is not None]
        if not gradients:
            return
        packed = torch.cat([gradient.flatten() for gradient in gradients])
        self.shards.sum_over_ranks(packed)
        for gradient, summed in zip(gradients, packed.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def forward(
        self,
        taps: Sequence[Tensor],
        labels_MB: Tensor,
        terms: HeadTerms,
        pair: tuple[Tensor, Tensor] | None = None,
        valid_B: Tensor | None = None,
    ) -> GatheredLosses:
        """Losses of every head on the rows of all ranks. Collective: the same rows, widths and terms at every rank.

        Args:
            taps: this rank's features (B, D_t), one tensor for each tap, of any float dtype.
            labels_MB: integer random labels, a row for each draw.
            terms: what to compute beside the heads' cross-entropy.
            pair: of mixed rows: second labels (M, B), and the weight (B,) in [0, 1] of the first; see `random_label_loss`.
            valid_B: bool (B,), False for padding rows; None: there is none.

        Numerics: as for `RLPHeads.forward`, but for the order of the sums over the classes.

        Raises:
            ValueError: the taps, the labels or `terms.regularized` do not fit the heads.
        """
        self.check_inputs(taps, labels_MB, terms)
        inputs = list(self._inputs(taps, terms))
        with torch.autocast(labels_MB.device.type, enabled=False):
            rows = self._gather([each.values_BD for each in inputs], labels_MB, pair, valid_B)
            losses = self._losses(inputs, rows, terms)
        num_rows = labels_MB.shape[1]
        return GatheredLosses(losses, rows.valid_G, self.shards.rank * num_rows, num_rows)

    def _allocate(self, device: torch.device) -> None:
        """Give all heads of one width slices of one buffer [heads, K, D], and their biases slices of another."""
        heads = self.heads_at(range(len(self.tap_dims)))
        for dim in sorted({head.weight.shape[1] for head in heads}):
            alike = [head for head in heads if head.weight.shape[1] == dim]
            for name in ("weight", "bias"):
                buffer = torch.empty_like(torch.stack([getattr(head, name) for head in alike]), device=device)
                for head, part in zip(alike, buffer, strict=True):
                    setattr(head, name, nn.Parameter(part))
        if self.layers is not None:
            self.layers.to_empty(device=device)

    def _inputs(self, taps: Sequence[Tensor], terms: HeadTerms) -> Iterator[_HeadInput]:
        """Yield what each head reads. The heads of one tap share their features, but for hidden layers."""
        for t, features_BD in enumerate(taps):
            is_wanted = terms.joint or t in terms.regularized  # else keep no graph of the norm either
            inputs_BD = self.head_inputs(features_BD if is_wanted else features_BD.detach())
            if self.layers is None:
                yield from [_HeadInput(inputs_BD, None, inputs_BD if is_wanted else None)] * self.num_draws
                continue
            with torch.autocast(inputs_BD.device.type, enabled=False):
                for layer in self.hidden_layers_at([t]):
                    learned_BD = layer.with_detached_features(inputs_BD)
                    carried_BD = layer.with_detached_weights(inputs_BD) if is_wanted else None
                    yield _HeadInput(learned_BD, learned_BD, carried_BD)

    def _gather(
        self,
        values: Sequence[Tensor],
        labels_MB: Tensor,
        pair: tuple[Tensor, Tensor] | None,
        valid_B: Tensor | None,
    ) -> _GatheredRows:
        """Exchange everything that the ranks must know of one another's rows, in one message."""
        distinct = list({id(values_BD): values_BD for values_BD in values}.values())
        valid_B = torch.ones_like(labels_MB[0], dtype=torch.bool) if valid_B is None else valid_B
        seconds = [] if pair is None else [pair[0].T.to(torch.int32), pair[1]]
        gathered = self.shards.gather_rows([*distinct, valid_B, labels_MB.T.to(torch.int32), *seconds])
        features = {id(values_BD): features_GD for values_BD, features_GD in zip(distinct, gathered, strict=False)}
        valid_G, labels_GM, *of_pair = gathered[len(distinct) :]
        return _GatheredRows(
            [features[id(values_BD)] for values_BD in values],
            valid_G,
            labels_GM.T.long(),
            (of_pair[0].T.long(), of_pair[1]) if of_pair else None,
        )

    def _losses(self, inputs: Sequence[_HeadInput], rows: _GatheredRows, terms: HeadTerms) -> HeadLosses:
        """Compute the losses of every head in one call."""
        weight_G = None
        if rows.pair is None:
            heads = self._sharded_heads(inputs, rows, rows.labels_MG[:, None], terms)
        elif self.num_blocks == 1:
            labels_MLG, weight_G = torch.stack([rows.labels_MG, rows.pair[0]], 1), rows.pair[1]
            heads = self._sharded_heads(inputs, rows, labels_MLG, terms)
        else:  # a partner's label is in the block of the partner's class, over whose labels its own softmax goes
            heads = self._sharded_heads(inputs, rows, rows.labels_MG[:, None], terms)
            heads += self._sharded_heads(inputs, rows, rows.pair[0][:, None], terms)
        losses = sharded_losses(
            heads, weight_G, self.num_labels, self.shards, self._kernel(heads[0], terms.impl), joint=terms.joint
        )
        if rows.pair is not None and self.num_blocks > 1:
            firsts, seconds = losses[: len(inputs)], losses[len(inputs) :]
            losses = [mix_pair_losses(*each, rows.pair[1]) for each in zip(firsts, seconds, strict=True)]
        return stack_losses(losses, self.num_draws)

    def _sharded_heads(
        self, inputs: Sequence[_HeadInput], rows: _GatheredRows, labels_MLG: Tensor, terms: HeadTerms
    ) -> list[ShardedHead]:
        positions = range(len(self.tap_dims))
        return [
            ShardedHead(
                features_GD,
                ClassRange(head.weight, head.bias, head.start, self.num_classes),
                labels_MLG[m],
                terms.regularizer if t in terms.regularized else None,
                each.learned_BD,
                each.carried_BD,
            )
            for (t, m), each, features_GD, head in zip(
                product(positions, range(self.num_draws)), inputs, rows.features, self.heads_at(positions), strict=True
            )
        ]

    def _kernel(self, head: ShardedHead, impl: str) -> Kernel:
        """Return the local stages: those of this device and size, and the reference's where there is no class."""
        num_held = head.classes.weight_KD.shape[0]
        name = "reference" if num_held == 0 else resolve_kernel(impl, head.features_GD, num_held)
        kernel = KERNELS[name] if self.num_blocks == 1 else ClassBlockStages(self.num_labels)
        if self.consumer is None or name == "reference" or self.num_blocks > 1:
            return kernel
        return HandingOver(kernel, self.consumer)


class _HeadInput(NamedTuple):
    """What a head reads of this rank's rows; see `ShardedHead` for the functions that they are of layer and features."""

    values_BD: Tensor
    learned_BD: Tensor | None
    carried_BD: Tensor | None


class _GatheredRows(NamedTuple):
    """What every rank knows of the rows of all ranks."""

    features: list[Tensor]
    """Those of each head (G, D)."""
    valid_G: Tensor
    labels_MG: Tensor
    pair: tuple[Tensor, Tensor] | None


def _show_as_dtensors(heads: ShardedRLPHeads, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Replace the parts of the heads in a state dict by DTensors on the same memory."""
    for name in [f"{prefix}heads.{name}" for name, _ in heads.heads.named_parameters()]:
        state[name] = heads.shards.as_dtensor(state[name], heads.num_classes)
