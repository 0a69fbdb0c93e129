"""The network with taps: one module whose forward returns logits and one feature vector for each tap."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from timm.models import beit, cait, convit, eva, vision_transformer, vision_transformer_relpos
from torch import Tensor, nn

from rlpheads.engine.model.taps import Layout, Place, Pool, Tap, select_places

PRE_NORM_BLOCKS = (
    *(vision_transformer.Block, eva.EvaBlock, beit.Block, cait.LayerScaleBlock, convit.Block),
    vision_transformer_relpos.RelPosBlock,
)
"""Blocks x + attn(norm1(x)), then x + mlp(norm2(x)): the input of `norm2` is the residual stream after attention."""

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)
_TIE = 2**-10  # between blocks that end with the same module


class TappedModel(nn.Module):
    """A timm backbone that also returns its features at chosen places.

    This module, not the backbone, is what DDP and torch.compile wrap: calling `forward_intermediates` on an inner
    module would go past their hooks.

    Args:
        backbone: timm model with `forward_intermediates` and `forward_head`.
        places: in order of depth, from `select_places`.
        pool: how tokens become a feature vector: `token` (the class token) or `mean` (of the patch tokens).

    Blocks are read by `forward_intermediates`, other places by hooks, which stay on the backbone until `release`. A module
    that runs several times in a pass is read at its last call.
    """

    backbone: Any  # a timm model; timm has no type for what they all offer

    def __init__(self, backbone: nn.Module, places: Sequence[Place], pool: Pool):
        super().__init__()
        self.backbone = backbone
        self.places = tuple(places)
        self.pool = pool
        self._hooked = frozenset(place for place in places if place.is_inside or place.module is not None)
        self._blocks = [place.block for place in places if place not in self._hooked]
        self._layout: dict[str, Any] = {"output_fmt": "NLC" if _gives_tokens(backbone) else "NCHW"}
        if gives_prefix_tokens(backbone):  # some models without them fail when they are asked for them
            self._layout["return_prefix_tokens"] = True
        self._store = _Store()
        self._handles = [_register_hook(backbone, place, self._store) for place in places if place in self._hooked]

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The names of the places."""
        return tuple(place.name for place in self.places)

    def select(self, spec: Tap | Sequence[Tap]) -> tuple[Place, ...]:
        """Return the places that a spec names, tapped or not; see `select_places`."""
        return select_places(spec, layout_of(self.backbone))

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Classify (B, 3, H, W) float images.

        Returns:
            logits (B, classes) and, for each tap in order, features (B, D).

        Raises:
            ValueError: a tapped module was not called, or its output cannot be pooled into features.
        """
        if not self.places:
            return self.backbone(images), ()
        self._store.caught = {}
        logits, blocks = self._run(images)
        caught, self._store.caught = self._store.caught, None
        vectors = dict(zip(self._blocks, map(self._pool_block, blocks), strict=True))
        return logits, tuple(
            self._hooked_features(place, caught) if place in self._hooked else vectors[place.block]
            for place in self.places
        )

    def release(self) -> None:
        """Remove the hooks from the backbone, which can be used without this module."""
        for handle in self._handles:
            handle.remove()

    def _run(self, images: Tensor) -> tuple[Tensor, list[Any]]:
        if not self._blocks:
            return self.backbone(images), []
        final, blocks = self.backbone.forward_intermediates(images, indices=self._blocks, norm=False, **self._layout)
        return self.backbone.forward_head(final), blocks

    def _pool_block(self, block: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        if isinstance(block, tuple):
            return pool_tokens(block[0], block[1], self.pool)
        return pool_tokens(block, None, self.pool)

    def _hooked_features(self, place: Place, caught: dict[Place, Any]) -> Tensor:
        """Pool what the hook at a place caught: (B, D)."""
        if place not in caught:
            raise ValueError(
                f"tap {place}: the network does not call this module by itself; name one above or below it"
            )
        output = caught[place]
        if not isinstance(output, Tensor) or output.ndim not in (2, 3, 4):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"tap {place}: this module gives {shape}, which is no vectors, tokens or map of features")
        if output.ndim == 2:
            return output
        if output.ndim == 4:
            channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
            return output.mean(dim=(1, 2) if channels_last else (2, 3))
        num_prefix = self.backbone.num_prefix_tokens if gives_prefix_tokens(self.backbone) else 0
        return pool_tokens(output[:, num_prefix:], output[:, :num_prefix], self.pool)


def pool_tokens(tokens: Tensor, prefix_BPD: Tensor | None, pool: Pool) -> Tensor:
    """Pool the output of a block into one feature vector for each image: (B, D).

    Args:
        tokens: tokens (B, L, D) without the prefix tokens, or a feature map (B, D, H, W).
        prefix_BPD: the prefix tokens, the class token first; None or P = 0 where the network has none.
        pool: "token" takes the class token, "mean" the mean of `tokens` over L, or over H and W.

    Raises:
        ValueError: an unknown `pool`, "token" without a prefix token, or `tokens` of another rank.
    """
    if pool == "token":
        if prefix_BPD is None or prefix_BPD.shape[1] == 0:
            raise ValueError("pool 'token' needs a class token, and this network has no prefix tokens: use 'mean'")
        return prefix_BPD[:, 0]
    if pool != "mean":
        raise ValueError(f"unknown pool {pool!r}: use one of {', '.join(get_args(Pool))}")
    if tokens.ndim == 3:
        return tokens.mean(dim=1)
    if tokens.ndim == 4:
        return tokens.mean(dim=(2, 3))
    raise ValueError(f"a tap is (B, L, D) tokens or a (B, D, H, W) map, got a tensor of shape {tuple(tokens.shape)}")


class _Store:
    """Outputs caught by hooks; None outside of a forward pass, as when a block is recomputed in the backward pass."""

    caught: dict[Place, Any] | None = None


@dataclass(frozen=True, eq=False)
class _Catch:
    """A forward hook. An object and not a closure, so that a copy of the model (the EMA) gets hooks of its own."""

    store: _Store
    place: Place

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], *output: Any) -> None:  # noqa: ARG002
        if self.store.caught is not None:
            self.store.caught[self.place] = output[0] if output else inputs[0]


def layout_of(backbone: Any) -> Layout:
    """Return where a timm model can be tapped; places are ordered as its modules are defined."""
    module_ranks = {name: float(rank) for rank, name in enumerate(_modules_by_end(backbone))}
    blocks = _transformer_blocks(backbone)
    open_blocks = [i for i, block in enumerate(blocks) if isinstance(block, PRE_NORM_BLOCKS)]
    closed = f"{type(backbone).__name__} is not a stack of transformer blocks"
    if blocks and len(open_blocks) < len(blocks):
        kind = next(type(block).__name__ for block in blocks if not isinstance(block, PRE_NORM_BLOCKS))
        closed = f"inside a {kind} the residual stream is not known"
    return Layout(
        block_ranks=_block_ranks(backbone, module_ranks),
        module_ranks={
            name: rank
            for name, rank in module_ranks.items()
            if name and not isinstance(backbone.get_submodule(name), _CONTAINERS)
        },
        attention_ranks={i: module_ranks[f"blocks.{i}.norm2"] - 0.5 for i in open_blocks},
        closed=closed,
    )


def gives_prefix_tokens(backbone: Any) -> bool:
    """Whether a timm model returns a class token (or more) apart from the patch tokens."""
    return _gives_tokens(backbone) and getattr(backbone, "num_prefix_tokens", 0) > 0


def _gives_tokens(backbone: Any) -> bool:
    return "return_prefix_tokens" in inspect.signature(backbone.forward_intermediates).parameters


def _register_hook(backbone: Any, place: Place, store: _Store) -> Any:
    if place.module is not None:
        return backbone.get_submodule(place.module).register_forward_hook(_Catch(store, place))
    return backbone.blocks[place.block].norm2.register_forward_pre_hook(_Catch(store, place))


def _modules_by_end(module: nn.Module, name: str = "") -> Iterator[str]:
    """Yield the names of a module and all below it, each after everything that it contains."""
    for child_name, child in module.named_children():
        yield from _modules_by_end(child, f"{name}.{child_name}" if name else child_name)
    yield name


def _transformer_blocks(backbone: Any) -> Sequence[nn.Module]:
    blocks = getattr(backbone, "blocks", None)
    return blocks if blocks is not None and len(blocks) == len(backbone.feature_info) else ()


def _block_ranks(backbone: Any, module_ranks: dict[str, float]) -> list[float]:
    """Return the rank of each block: its module's, and never before the block that it follows."""
    ranks: list[float] = []
    for info in backbone.feature_info:
        before = ranks[-1] if ranks else -1.0
        ranks.append(max(module_ranks.get(info["module"], 0.0), before + _TIE))
    return ranks
