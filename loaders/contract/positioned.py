"""Where a loader is: what all loaders do alike, however they make their batches."""

from __future__ import annotations

from typing import Any

from rlpheads.loaders.contract.batch import check_state
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.contract.order import Order


class Positioned:
    """Length and position of a `rlpheads.loaders.contract.batch.Loader`, which derives from it and moves `_consumed` on.

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
