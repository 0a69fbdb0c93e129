"""Stopping on a signal: the handler sets a flag, the ranks agree on the step by an all-reduce, the loop saves."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

from rlpheads.engine.distributed.launch import Launch
from rlpheads.loaders.contract.stop_signals import STOP_SIGNALS, ignored_stop_signals


class StopFlag:
    """Whether any rank was asked to stop, agreed upon by all ranks at the same step.

    Each step starts an asynchronous all-reduce of the flags on the control group and reads the one that the step
    before it started, so that no step waits for a message.
    """

    def __init__(self, control: dist.ProcessGroup, world_size: int):
        self._control = control
        self._alone = world_size == 1
        self._received: int | None = None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def install(self) -> None:
        """Catch the stop signals, but for those that stay ignored; the second SIGINT gets Python's own handler back."""
        ignored = ignored_stop_signals()
        for number in STOP_SIGNALS:
            if number not in ignored:
                signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @property
    def reason(self) -> str:
        """Name of the signal that this rank received, or that another rank did."""
        return signal.Signals(self._received).name if self._received is not None else "a signal at another rank"

    def agreed(self) -> bool:
        """Whether all ranks stop now. Collective: every rank calls it once a step."""
        if self._alone:
            return self._received is not None
        stop = False
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            stop = bool(flag.item())
        flag = torch.tensor(int(self._received is not None))
        self._pending = None if stop else (dist.all_reduce(flag, dist.ReduceOp.MAX, self._control, async_op=True), flag)
        return stop

    def drain(self) -> None:
        """Wait for the message that is under way, before the process group goes."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None


def install_stop_flag(launch: Launch) -> StopFlag:
    """Return a flag that catches the stop signals from here on."""
    flag = StopFlag(launch.control, launch.world_size)
    flag.install()
    return flag
