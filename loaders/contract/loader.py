"""What the training loop may ask of a loader, and the base class of loaders that keeps their position in the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.contract.order import Order


class Loader(Protocol):
    """A stream of batches whose content depends on (seed, epoch, position) alone, and that can stop and go on anywhere.

    `consumed` counts the samples of the epoch, over all ranks, that the batches yielded so far have covered; what was
    read ahead does not count. It is the same number at any world size.
    """

    order: Order
    manifest: Manifest

    def __len__(self) -> int:
        """Return the steps of a whole epoch."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the current epoch; nothing at its end, until `set_epoch` begins another."""
        ...

    def set_epoch(self, epoch: int, consumed: int = 0) -> None:
        """Go to a position, at no cost in decoded images."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return {"epoch": int, "consumed": int}."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position that `state_dict` returned, at this or another world size."""
        ...


class PositionedLoader:
    """Base class of loaders that keeps the length and the position; its iterator moves `_consumed` on.

    Attributes:
        order: Which sample stands where.
        manifest: The samples of the split.
    """

    def __init__(self, order: Order, manifest: Manifest, world_size: int = 1) -> None:
        """Begin with epoch 0.

        Raises:
            ValueError: If the order is for another number of samples, or cannot be cut for this world size.
        """
        if order.num_samples != manifest.num_samples:
            raise ValueError(f"the order is for {order.num_samples} samples, but the source has {manifest.num_samples}")
        order.check_world_size(world_size)
        self.order = order
        self.manifest = manifest
        self._epoch = 0
        self._consumed = 0

    def __len__(self) -> int:
        """Return the steps of a whole epoch."""
        return self.order.num_steps

    def set_epoch(self, epoch: int, consumed: int = 0) -> None:
        """Go to a position; the next iteration begins there.

        Raises:
            ValueError: If no step begins after `consumed` samples.
        """
        self.order.step_at(consumed)
        self._epoch, self._consumed = epoch, consumed

    def state_dict(self) -> dict[str, Any]:
        """Return {"epoch": int, "consumed": int} as of the last batch yielded."""
        return {"epoch": self._epoch, "consumed": self._consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the position that `state_dict` returned.

        Raises:
            ValueError: If it is not such a state, or no step begins there.
        """
        self.set_epoch(*check_state(state))


def check_state(state: dict[str, Any]) -> tuple[int, int]:
    """Return (epoch, consumed) of a loader's state.

    Raises:
        ValueError: If the state is not {"epoch": int >= 0, "consumed": int >= 0}.
    """
    counts = state.get("epoch"), state.get("consumed")
    if set(state) != {"epoch", "consumed"} or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError(f'a loader\'s state is {{"epoch": int, "consumed": int}}, both at least 0, not {state}')
    return state["epoch"], state["consumed"]
