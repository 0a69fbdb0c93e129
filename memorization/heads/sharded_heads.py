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

from rlpheads.kernels.batched.row_message import OwnRows, pack_rows, unpack_rows
from rlpheads.kernels.head_gradient import HandingOver, HeadGradient
from rlpheads.kernels.implementations import resolve_impl, resolve_kernel
from rlpheads.kernels.loss_results import RandomLabelLoss
from rlpheads.kernels.rows.kernel import Kernel
from rlpheads.kernels.rows.partials import ClassRange
from rlpheads.kernels.rows.row_softmax import LabelsOfRows
from rlpheads.kernels.stages import kernel_that_keeps
from rlpheads.memorization.heads.class_blocks import ClassBlockStages
from rlpheads.memorization.heads.class_shards import ClassShards
from rlpheads.memorization.heads.head_losses import (
    GatheredLosses,
    HeadLosses,
    HeadTerms,
    mix_pair_losses,
)
from rlpheads.memorization.heads.head_modules import HeadModules
from rlpheads.memorization.heads.sharded_loss import ShardedHead, sharded_losses
from rlpheads.memorization.heads.written_shards import written_losses


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
        return forward_together([HeadCall(self, labels_MB, terms, pair)], taps, valid_B)[0]

    def _allocate(self, device: torch.device) -> None:
        """Give all heads of one width slices of one buffer [heads, K, D], and their biases slices of another.

        Each slice counts its own versions, so that a change of one head is none of the others, whose copies stay valid
        (`rlpheads.kernels.gpu.heads.kept_operands`).
        """
        heads = self.heads_at(range(len(self.tap_dims)))
        for dim in sorted({head.weight.shape[1] for head in heads}):
            alike = [head for head in heads if head.weight.shape[1] == dim]
            for name in ("weight", "bias"):
                buffer = torch.empty_like(torch.stack([getattr(head, name) for head in alike]), device=device)
                for head, part in zip(alike, buffer, strict=True):
                    setattr(head, name, nn.Parameter(part.data))
        if self.layers is not None:
            self.layers.to_empty(device=device)

    def inputs(self, taps: Sequence[Tensor], terms: HeadTerms) -> Iterator[HeadInput]:
        """Yield what each head reads. The heads of one tap share their features, but for hidden layers."""
        for t, features_BD in enumerate(taps):
            is_wanted = terms.joint or t in terms.regularized  # else keep no graph of the norm either
            inputs_BD = self.head_inputs(features_BD if is_wanted else features_BD.detach())
            if self.layers is None:
                yield from [HeadInput(inputs_BD, None, inputs_BD if is_wanted else None)] * self.num_draws
                continue
            with torch.autocast(inputs_BD.device.type, enabled=False):
                for layer in self.hidden_layers_at([t]):
                    learned_BD = layer.with_detached_features(inputs_BD)
                    carried_BD = layer.with_detached_weights(inputs_BD) if is_wanted else None
                    yield HeadInput(learned_BD, learned_BD, carried_BD)

    def sharded_heads(
        self, inputs: Sequence[HeadInput], features: Sequence[Tensor], terms: HeadTerms
    ) -> list[ShardedHead]:
        """Return every head with what it reads of the rows of all ranks."""
        positions = range(len(self.tap_dims))
        return [
            ShardedHead(
                features_GD,
                ClassRange(head.weight, head.bias, head.start, self.num_classes),
                terms.regularizer if t in terms.regularized else None,
                each.learned_BD,
                each.carried_BD,
            )
            for (t, _), each, features_GD, head in zip(
                product(positions, range(self.num_draws)), inputs, features, self.heads_at(positions), strict=True
            )
        ]


class HeadInput(NamedTuple):
    """What a head reads of this rank's rows; see `ShardedHead` for the functions that they are of layer and features."""

    values_BD: Tensor
    learned_BD: Tensor | None
    carried_BD: Tensor | None


class HeadCall(NamedTuple):
    """What one of several modules of heads is to compute of the same rows; see `ShardedRLPHeads.forward`."""

    heads: ShardedRLPHeads
    labels_MB: Tensor
    terms: HeadTerms
    pair: tuple[Tensor, Tensor] | None = None


def forward_together(
    calls: Sequence[HeadCall], taps: Sequence[Tensor], valid_B: Tensor | None = None
) -> list[GatheredLosses]:
    """`ShardedRLPHeads.forward` of several modules that read the same taps, such as heads and audit heads. Collective.

    There is one message of features and labels, one of partials, and backward one of gradients at most, as for one module.

    Args:
        calls: the modules, which agree in the shards, in K and in the classes, and what each is to compute.
        taps: as for `ShardedRLPHeads.forward`.
        valid_B: likewise.

    Raises:
        ValueError: taps, labels or `terms.regularized` do not fit the heads.
    """
    for call in calls:
        call.heads.check_inputs(taps, call.labels_MB, call.terms)
    inputs = _inputs_of_calls(calls, taps)
    num_rows, shards = calls[0].labels_MB.shape[1], calls[0].heads.shards
    with torch.autocast(calls[0].labels_MB.device.type, enabled=False):
        rows = _gather(calls, inputs, valid_B)
        of_calls = _losses(calls, inputs, rows)
    return [GatheredLosses(losses, rows.valid_G, shards.rank * num_rows, num_rows) for losses in of_calls]


def _inputs_of_calls(calls: Sequence[HeadCall], taps: Sequence[Tensor]) -> list[list[HeadInput]]:
    """Return what the heads of each call read. Linear heads without dropout read the same, which travels once."""
    found = [list(call.heads.inputs(taps, call.terms)) for call in calls]
    first = calls[0].heads
    for call, inputs in zip(calls[1:], found[1:], strict=True):
        heads = call.heads
        if heads.layers is None is first.layers and heads.norm == first.norm and not (heads.dropout or first.dropout):
            for number, each in enumerate(inputs):
                of_first = found[0][number // heads.num_draws * first.num_draws]
                inputs[number] = each._replace(values_BD=of_first.values_BD)
    return found


class _GatheredRows(NamedTuple):
    """What every rank knows of the rows of all ranks."""

    features: list[list[Tensor]]
    """Those of each head (G, D), by call."""
    valid_G: Tensor
    labels: LabelsOfRows
    """Of every head's rows, tap by tap and draw by draw in each call."""


def _gather(calls: Sequence[HeadCall], inputs: Sequence[Sequence[HeadInput]], valid_B: Tensor | None) -> _GatheredRows:
    """Exchange everything that the ranks must know of one another's rows, in one message."""
    values = {id(each.values_BD): each.values_BD for of_call in inputs for each in of_call}
    pair, shards = calls[0].pair, calls[0].heads.shards
    labels = [call.labels_MB for call in calls] + [call.pair[0] for call in calls if call.pair]
    own = OwnRows(list(values.values()), labels, None if pair is None else pair[1], valid_B)
    messages_NX = shards.gather_blocks(pack_rows(own))
    rows = unpack_rows(messages_NX, own, [len(call.heads.tap_dims) for call in calls])
    features = dict(zip(values, rows.features, strict=True))
    of_calls = [[features[id(each.values_BD)] for each in of_call] for of_call in inputs]
    return _GatheredRows(of_calls, rows.valid_G, LabelsOfRows(*rows.labels))


def _losses(calls: Sequence[HeadCall], inputs: Sequence[Sequence[HeadInput]], rows: _GatheredRows) -> list[HeadLosses]:
    """Compute the losses of every head of every call at once."""
    first, heads, labels = calls[0].heads, _heads(calls, inputs, rows), rows.labels
    weight_R, joint = labels.first_weight_B, any(call.terms.joint for call in calls)
    if first.num_blocks > 1:  # see `_heads`
        labels = LabelsOfRows(labels.index_LB.view(1, -1), None)
    of_heads = (heads, labels, first.num_labels, first.shards)
    if _writes_out(calls, heads[0]):
        loss = written_losses(*of_heads, joint=joint, plain=calls[0].terms.impl == "reference")
    else:
        loss = sharded_losses(*of_heads, _kernel(calls, heads[0]), joint=joint)
    if weight_R is not None and first.num_blocks > 1:
        num_first = loss.lse_B.shape[0] // 2
        first_labels, partners = _rows_at(loss, slice(num_first)), _rows_at(loss, slice(num_first, None))
        loss = mix_pair_losses(first_labels, partners, weight_R)
    stacked, begin, num_rows = [], 0, len(rows.valid_G)
    for call, of_call in zip(calls, inputs, strict=True):
        stop = begin + len(of_call) * num_rows
        stacked.append(_stacked(loss, slice(begin, stop), call, num_rows))
        begin = stop
    return stacked


def _heads(calls: Sequence[HeadCall], inputs: Sequence[Sequence[HeadInput]], rows: _GatheredRows) -> list[ShardedHead]:
    """Return every head of every call."""
    heads = [
        head
        for call, each, features in zip(calls, inputs, rows.features, strict=True)
        for head in call.heads.sharded_heads(each, features, call.terms)
    ]
    # a partner's label is in the block of the partner's class, over whose labels its own softmax goes
    return heads * 2 if rows.labels.first_weight_B is not None and calls[0].heads.num_blocks > 1 else heads


def _rows_at(loss: RandomLabelLoss, rows: slice) -> RandomLabelLoss:
    return loss._replace(**{name: each[rows] for name, each in loss._asdict().items() if each is not None})


def _stacked(loss: RandomLabelLoss, rows: slice, call: HeadCall, num_rows: int) -> HeadLosses:
    """Cut the rows of one call's heads out of those of all, by tap and draw."""

    def of_call(rows_R: Tensor) -> Tensor:
        own_R = rows_R if rows.stop - rows.start == len(rows_R) else rows_R[rows]
        return own_R.view(-1, call.heads.num_draws, num_rows)

    regularizer_TMB, regularized = None, call.terms.regularized
    if loss.regularizer_B is not None and regularized:
        regularizer_TMB = of_call(loss.regularizer_B)
        if len(regularized) < len(regularizer_TMB):
            regularizer_TMB = torch.stack([regularizer_TMB[t] for t in regularized])
    return HeadLosses(
        cross_entropy_TMB=of_call(loss.cross_entropy_B),
        regularizer_RMB=regularizer_TMB,
        joint_TMB=None if loss.joint_B is None or not call.terms.joint else of_call(loss.joint_B),
        hit_TMB=of_call(loss.hit_B),
        bits_TMB=of_call(loss.bits_B),
        margin_TMB=of_call(loss.margin_B),
    )


def _writes_out(calls: Sequence[HeadCall], head: ShardedHead) -> bool:
    """Whether the logits of this rank's range are written out, all heads in one call: by the rule of whole heads."""
    heads, impl = calls[0].heads, calls[0].terms.impl
    if heads.num_blocks > 1 or impl in ("batched", "reference"):
        return heads.num_blocks == 1
    num_held = head.classes.weight_KD.shape[0]
    if num_held == 0:
        return True
    if impl == "auto" and heads.consumer is not None:  # it takes the gradients of larger heads
        return resolve_kernel(impl, head.features_GD, num_held) == "reference"
    return resolve_impl(impl, head.features_GD, num_held) in ("batched", "reference")


def _kernel(calls: Sequence[HeadCall], head: ShardedHead) -> Kernel:
    """Return the local stages: those of this device and size, or of classes with labels of their own."""
    first = calls[0].heads
    if first.num_blocks > 1:
        return ClassBlockStages(first.num_labels)
    name = resolve_kernel(calls[0].terms.impl, head.features_GD, len(head.classes.weight_KD))
    kernel = kernel_that_keeps(name, first.kept_operands)
    if first.consumer is None:
        return kernel
    consumers = {
        id(weight): call.heads.consumer for call in calls for weight in call.heads.parameters() if weight.dim() == 2
    }

    def consume(gradient: HeadGradient) -> None:
        consumer = consumers[id(gradient.weight)]
        assert consumer is not None
        consumer(gradient)

    return HandingOver(name, kernel, consume)


def _show_as_dtensors(heads: ShardedRLPHeads, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Replace the parts of the heads in a state dict by DTensors on the same memory."""
    for name in [f"{prefix}heads.{name}" for name, _ in heads.heads.named_parameters()]:
        state[name] = heads.shards.as_dtensor(state[name], heads.num_classes)
