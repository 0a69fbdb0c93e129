"""The network with taps: one module whose forward returns logits and one feature vector for each tap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.models import beit, cait, convit, eva, vision_transformer, vision_transformer_relpos
from torch import Tensor, nn

from rlpheads.engine.model.pooling import gives_prefix_tokens, gives_tokens, is_timm_model, pool_tokens, pooling_of
from rlpheads.engine.model.tap_hooks import TapHooks
from rlpheads.engine.model.taps import Layout, Place, Pool, Tap, select_places

PRE_NORM_BLOCKS = (
    *(vision_transformer.Block, eva.EvaBlock, beit.Block, cait.LayerScaleBlock, convit.Block),
    vision_transformer_relpos.RelPosBlock,
)
"""Blocks x + attn(norm1(x)), then x + mlp(norm2(x)): the input of `norm2` is the residual stream after attention."""

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)
_TIE = 2**-10  # between blocks that end with the same module


class TappedModel(nn.Module):
    """A network that also returns its features at chosen places: one forward pass gives (logits, taps).

    This module, not the backbone, is what DDP and torch.compile wrap: calling `forward_intermediates` on an inner
    module would go past their hooks.

    Args:
        backbone: any network. Of timm's, places may also be blocks by number, and places inside them.
        taps: names of places (`rlpheads.engine.model.taps`), "all" or "inside" for a network of timm, or places from
            `select_places`; none at all: no taps. They are sorted by depth, which is the order in which modules are defined.
        pool: how tokens become a feature vector: `token` (the class token) or `mean` (of the patch tokens). None: the class
            token where the network has one, else the mean.
        channels_last: whether maps of features are (B, H, W, D). None: as is known of timm's and torchvision's networks.

    Blocks are read by `forward_intermediates`, other places by hooks, which stay on the backbone until `release`. A module
    that runs several times in a pass is read at its last call.

    Raises:
        ValueError: there is no such place (the message has the nearest), or an unknown `pool`.
    """

    backbone: Any  # a timm model has more methods than nn.Module, and there is no type for them

    def __init__(
        self,
        backbone: nn.Module,
        taps: Tap | Sequence[Tap | Place],
        pool: Pool | None = None,
        *,
        channels_last: bool | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.places = find_places(backbone, taps)
        self.pooling = pooling_of(backbone, pool, channels_last)
        hooked = [place for place in self.places if place.is_inside or place.module is not None]
        self._hooks = TapHooks(backbone, hooked, self.pooling)
        self._blocks = [place.block for place in self.places if place not in hooked]
        self._layout: dict[str, Any] = {"output_fmt": "NLC" if gives_tokens(backbone) else "NCHW"}
        if gives_prefix_tokens(backbone):  # some models without them fail when they are asked for them
            self._layout["return_prefix_tokens"] = True

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The names of the places."""
        return tuple(place.name for place in self.places)

    @property
    def pool(self) -> Pool:
        """How tokens become a feature vector."""
        return self.pooling.pool

    def select(self, spec: Tap | Sequence[Tap]) -> tuple[Place, ...]:
        """Return the places that a spec names, tapped or not; see `select_places`."""
        return select_places(spec, layout_of(self.backbone))

    def forward(self, *inputs: Any, **named_inputs: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Classify (B, 3, H, W) float images, or whatever the network takes.

        Returns:
            logits (B, classes), from an output with several values its `logits`; and, for each tap in order, features
            (B, D).

        Raises:
            ValueError: a tapped module was not called, or its output cannot be pooled into features.
        """
        if not self.places:
            return logits_of(self.backbone(*inputs, **named_inputs)), ()
        self._hooks.start()
        logits, blocks = self._run(inputs, named_inputs)
        features = self._hooks.features()
        vectors = dict(zip(self._blocks, map(self._pool_block, blocks), strict=True))
        return logits, tuple(features[place] if place in features else vectors[place.block] for place in self.places)

    def dims(self, *inputs: Any, **named_inputs: Any) -> tuple[int, ...]:
        """Return the width D of every tap, from a forward pass of a few samples that changes nothing.

        Raises:
            ValueError: a tap is not one vector a sample, or cannot be read.
        """
        num_rows = next(len(each) for each in (*inputs, *named_inputs.values()) if isinstance(each, Tensor))
        modes = {module: module.training for module in self.modules()}
        try:
            with torch.no_grad():
                _, taps = self.eval()(*inputs, **named_inputs)
        finally:
            for module, was_training in modes.items():
                module.training = was_training
        for name, tap in zip(self.taps, taps, strict=True):
            if len(tap) != num_rows:
                raise ValueError(
                    f"tap {name}: {len(tap)} rows for {num_rows} images; name a module outside the windows"
                )
        return tuple(tap.shape[-1] for tap in taps)

    @contextmanager
    def without_taps(self) -> Iterator[None]:
        """Let passes inside give logits alone, as those of a network without heads."""
        places, self.places = self.places, ()
        try:
            yield
        finally:
            self.places = places

    def release(self) -> None:
        """Remove the hooks from the backbone, which can be used without this module."""
        self._hooks.release()

    def _run(self, inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> tuple[Tensor, list[Any]]:
        if not self._blocks:
            return logits_of(self.backbone(*inputs, **named_inputs)), []
        final, blocks = self.backbone.forward_intermediates(
            *inputs, **named_inputs, indices=self._blocks, norm=False, **self._layout
        )
        return self.backbone.forward_head(final), blocks

    def _pool_block(self, block: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        if isinstance(block, tuple):
            return pool_tokens(block[0], block[1], self.pool)
        return pool_tokens(block, None, self.pool)


def find_places(backbone: nn.Module, taps: Tap | Sequence[Tap | Place]) -> tuple[Place, ...]:
    """Return the places of a network that are named, sorted by depth; places as `select_places` gave them stay as they are.

    Raises:
        ValueError: as `select_places`.
    """
    if isinstance(taps, (int, str)):
        return select_places(taps, layout_of(backbone))
    names = [tap for tap in taps if not isinstance(tap, Place)]
    if not names:
        return tuple(tap for tap in taps if isinstance(tap, Place))
    return select_places([tap.name if isinstance(tap, Place) else tap for tap in taps], layout_of(backbone))


def logits_of(output: Any) -> Tensor:
    """Return the logits of what a network gave: transformers' outputs, and torchvision's with auxiliary ones, name them."""
    logits: Tensor = getattr(output, "logits", output)
    return logits


def layout_of(backbone: Any) -> Layout:
    """Return where a network can be tapped; places are ordered as its modules are defined.

    Blocks, and places inside them, are known of timm's networks alone.
    """
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


def _modules_by_end(module: nn.Module, name: str = "") -> Iterator[str]:
    """Yield the names of a module and all below it, each after everything that it contains."""
    for child_name, child in module.named_children():
        yield from _modules_by_end(child, f"{name}.{child_name}" if name else child_name)
    yield name


def _transformer_blocks(backbone: Any) -> Sequence[nn.Module]:
    blocks = getattr(backbone, "blocks", None) if is_timm_model(backbone) else None
    return blocks if blocks is not None and len(blocks) == len(backbone.feature_info) else ()


def _block_ranks(backbone: Any, module_ranks: dict[str, float]) -> list[float]:
    """Return the rank of each block: its module's, and never before the block that it follows."""
    ranks: list[float] = []
    for info in backbone.feature_info if is_timm_model(backbone) else ():
        before = ranks[-1] if ranks else -1.0
        ranks.append(max(module_ranks.get(info["module"], 0.0), before + _TIE))
    return ranks
