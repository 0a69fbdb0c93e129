"""Loss scaling for fp16: a part's losses are multiplied before its backward pass, its gradients divided after it.

Each part has a scale of its own. With a shared one an overflow in the heads would leave out a step of the backbone, and
the backbone would no longer be bit-identical with and without heads.

Ranks agree without a message: gradients have been averaged before they are looked at, so an infinity at one rank is an
infinity at all of them, every rank leaves the same step out, and the scales stay equal. A part whose gradients are not
all-reduced (classes sharded over ranks) shares its norm before it steps (`rlpheads.engine.learner.sharded_part`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlpheads.engine.config.learning import LossScaleConfig

_GROWTH, _BACKOFF = 2.0, 0.5


class LossScale:
    """The loss scale of one part, as torch's GradScaler moves it; it does so on the device, and nothing waits for it.

    GradScaler itself reads and writes every gradient to find overflows and to take the scale out. Here an overflow is a norm
    that is not finite, and a fused step takes the scale out in its own pass. Optimizers without one let the host read whether
    there was an overflow (`rlpheads.engine.learner.optimizer.host_sync_warnings` tells).
    """

    def __init__(self, config: LossScaleConfig, device: torch.device):
        self._factor = torch.full((), config.initial, dtype=torch.float32, device=device)
        self._num_good_steps = torch.zeros((), dtype=torch.int32, device=device)
        self._growth_every = config.growth_every

    @property
    def factor(self) -> Tensor:
        """The factor, float32 () on the device; `update` changes it in place."""
        return self._factor

    def scaled(self, loss: Tensor) -> Tensor:
        """Return a loss times the factor."""
        return loss * self._factor

    def update(self, overflowed: Tensor) -> None:
        """Halve the factor where the gradients overflowed, bool () on the device; double it where long none did."""
        torch._amp_update_scale_(
            self._factor, self._num_good_steps, overflowed.float(), _GROWTH, _BACKOFF, self._growth_every
        )

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps, as tensors on the host."""
        return {
            "factor": torch.tensor(float(self._factor), dtype=torch.float64),
            "num_good_steps": torch.tensor(int(self._num_good_steps)),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned; how often it grows stays as configured."""
        self._factor.fill_(float(state["factor"]))
        self._num_good_steps.fill_(int(state["num_good_steps"]))
