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

from rlpheads.kernels.head_gradient import HandingOver, HeadGradient
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
        return forward_together([HeadCall(self, labels_MB, terms, pair)], taps, valid_B)[0]

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
        self, inputs: Sequence[HeadInput], features: Sequence[Tensor], labels_MLG: Tensor, terms: HeadTerms
    ) -> list[ShardedHead]:
        """Return every head with what it reads of the rows of all ranks."""
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
    labels_MG: list[Tensor]
    """By call, as all that follows."""
    seconds_MG: list[Tensor] | None
    weight_G: Tensor | None


def _gather(calls: Sequence[HeadCall], inputs: Sequence[Sequence[HeadInput]], valid_B: Tensor | None) -> _GatheredRows:
    """Exchange everything that the ranks must know of one another's rows, in one message."""
    values = {id(each.values_BD): each.values_BD for of_call in inputs for each in of_call}
    labels_MB, pair = torch.cat([call.labels_MB for call in calls]), calls[0].pair
    valid_B = torch.ones_like(labels_MB[0], dtype=torch.bool) if valid_B is None else valid_B
    seconds = []
    if pair is not None:
        seconds = [torch.cat([call.pair[0] for call in calls if call.pair]).T.to(torch.int32), pair[1]]
    shards = calls[0].heads.shards
    gathered = shards.gather_rows([*values.values(), valid_B, labels_MB.T.to(torch.int32), *seconds])
    features = dict(zip(values, gathered, strict=False))
    valid_G, labels_GM, *of_pair = gathered[len(values) :]
    num_draws = [call.heads.num_draws for call in calls]
    return _GatheredRows(
        [[features[id(each.values_BD)] for each in of_call] for of_call in inputs],
        valid_G,
        list(labels_GM.T.long().split(num_draws)),
        list(of_pair[0].T.long().split(num_draws)) if of_pair else None,
        of_pair[1] if of_pair else None,
    )


def _losses(calls: Sequence[HeadCall], inputs: Sequence[Sequence[HeadInput]], rows: _GatheredRows) -> list[HeadLosses]:
    """Compute the losses of every head of every call at once."""
    first = calls[0].heads
    seconds_MG, weight_G = rows.seconds_MG, rows.weight_G

    def heads_with(labels_MLG: Sequence[Tensor]) -> list[ShardedHead]:
        return [
            head
            for call, each, features, labels in zip(calls, inputs, rows.features, labels_MLG, strict=True)
            for head in call.heads.sharded_heads(each, features, labels, call.terms)
        ]

    if seconds_MG is None or first.num_blocks > 1:
        heads = heads_with([labels_MG[:, None] for labels_MG in rows.labels_MG])
    else:
        heads = heads_with([torch.stack(both, 1) for both in zip(rows.labels_MG, seconds_MG, strict=True)])
    if seconds_MG is not None and first.num_blocks > 1:
        # a partner's label is in the block of the partner's class, over whose labels its own softmax goes
        heads += heads_with([labels_MG[:, None] for labels_MG in seconds_MG])
    is_one_pass = first.num_blocks == 1
    losses = sharded_losses(
        heads,
        weight_G if is_one_pass else None,
        first.num_labels,
        first.shards,
        _kernel(calls, heads[0]),
        joint=any(call.terms.joint for call in calls),
    )
    if seconds_MG is not None and not is_one_pass:
        assert weight_G is not None
        num_heads = len(losses) // 2
        losses = [mix_pair_losses(*each, weight_G) for each in zip(losses[:num_heads], losses[num_heads:], strict=True)]
    stacked, begin = [], 0
    for call, of_call in zip(calls, inputs, strict=True):
        own = losses[begin : (begin := begin + len(of_call))]
        if not call.terms.joint:
            own = [loss._replace(joint_B=None) for loss in own]
        stacked.append(stack_losses(own, call.heads.num_draws))
    return stacked


def _kernel(calls: Sequence[HeadCall], head: ShardedHead) -> Kernel:
    """Return the local stages: those of this device and size, and the reference's where there is no class."""
    first = calls[0].heads
    num_held = head.classes.weight_KD.shape[0]
    name = "reference" if num_held == 0 else resolve_kernel(calls[0].terms.impl, head.features_GD, num_held)
    kernel = KERNELS[name] if first.num_blocks == 1 else ClassBlockStages(first.num_labels)
    if first.consumer is None or name == "reference" or first.num_blocks > 1:
        return kernel
    consumers = {
        id(weight): call.heads.consumer for call in calls for weight in call.heads.parameters() if weight.dim() == 2
    }

    def consume(gradient: HeadGradient) -> None:
        consumer = consumers[id(gradient.weight)]
        assert consumer is not None
        consumer(gradient)

    return HandingOver(kernel, consume)


def _show_as_dtensors(heads: ShardedRLPHeads, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Replace the parts of the heads in a state dict by DTensors on the same memory."""
    for name in [f"{prefix}heads.{name}" for name, _ in heads.heads.named_parameters()]:
        state[name] = heads.shards.as_dtensor(state[name], heads.num_classes)
