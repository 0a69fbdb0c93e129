"""Hooks that catch what modules give during a forward pass, at the places that are no outputs of numbered blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rlpheads.engine.model.pooling import Pooling
from rlpheads.engine.model.taps import Place


class TapHooks:
    """Hooks on a network, which stay there until `release`. They catch between `start` and `features`, and nothing else.

    Args:
        backbone: the network.
        places: modules, and places inside blocks of timm's.
        pooling: how what is caught becomes features.
    """

    def __init__(self, backbone: Any, places: Sequence[Place], pooling: Pooling):
        self.places = tuple(places)
        self._pooling = pooling
        self._store = _Store()
        self._handles = [_register_hook(backbone, place, self._store) for place in self.places]

    def start(self) -> None:
        """Catch from here on: a forward pass begins."""
        self._store.caught = {}

    def features(self) -> dict[Place, Tensor]:
        """Return the features (B, D) of every place, and catch no more: the pass has ended.

        Raises:
            ValueError: a module was not called, or its output cannot be pooled into features.
        """
        caught, self._store.caught = self._store.caught or {}, None
        return {place: self._features_at(place, caught) for place in self.places}

    def release(self) -> None:
        """Remove the hooks from the network."""
        for handle in self._handles:
            handle.remove()

    def _features_at(self, place: Place, caught: dict[Place, Any]) -> Tensor:
        if place not in caught:
            raise ValueError(
                f"tap {place}: the network does not call this module by itself; name one above or below it"
            )
        return self._pooling.features(caught[place], place)


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


def _register_hook(backbone: Any, place: Place, store: _Store) -> Any:
    if place.module is not None:
        return backbone.get_submodule(place.module).register_forward_hook(_Catch(store, place))
    return backbone.blocks[place.block].norm2.register_forward_pre_hook(_Catch(store, place))
