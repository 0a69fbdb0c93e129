"""Loss scaling for fp16: a part's losses are multiplied before its backward pass, its gradients divided after it.

Each part has a scale of its own. With a shared one an overflow in the heads would leave out a step of the backbone, and
the backbone would no longer be bit-identical with and without heads.

Ranks agree without a message: DDP has averaged the gradients before they are looked at, so an infinity at one rank is an
infinity at all of them, every rank leaves the same step out, and the scales stay equal. A part whose gradients are not
all-reduced (classes sharded over ranks) shares what it found before it steps (`rlpheads.engine.learner.sharded_part`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlpheads.engine.config.learning import LossScaleConfig


class LossScale:
    """The loss scale of one part; it moves on the device, and nothing waits for it.

    The exception are optimizers without a fused step: whether a step is left out is then decided on the host, which reads
    one number a step (`rlpheads.engine.learner.optimizer.host_sync_warnings` tells).
    """

    def __init__(self, config: LossScaleConfig, device: torch.device):
        self._scaler = torch.amp.GradScaler(device.type, init_scale=config.initial, growth_interval=config.growth_every)
        self._one = torch.ones((), device=device)

    @property
    def factor(self) -> Tensor:
        """The factor, a 0-d float32 tensor on the device."""
        return self._scaler.scale(self._one)

    def scaled(self, loss: Tensor) -> Tensor:
        """Return a loss times the factor."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Divide the gradients by the factor; return the numbers, 0-d on the device, that are above 0 where one is not finite.

        The caller may change them, where ranks have different gradients.
        """
        self._scaler.unscale_(optimizer)
        return self.overflows(optimizer)

    def overflows(self, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Return what `unscale` returned."""
        return list(self._scaler._found_inf_per_device(optimizer).values())

    def overflowed(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Whether one of the gradients that were unscaled was not finite, bool () on the device."""
        return torch.stack(self.overflows(optimizer)).sum() > 0

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step, unless one of the gradients that were unscaled was not finite; move the factor."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps, as tensors on the host."""
        state = self._scaler.state_dict()
        return {
            "factor": torch.tensor(state["scale"], dtype=torch.float64),
            "num_good_steps": torch.tensor(state["_growth_tracker"]),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned; how often it grows stays as configured."""
        loaded = {"scale": float(state["factor"]), "_growth_tracker": int(state["num_good_steps"])}
        self._scaler.load_state_dict(self._scaler.state_dict() | loaded)
