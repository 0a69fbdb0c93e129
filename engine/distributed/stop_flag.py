"""Stopping and saving at one step of all ranks: a signal or a request sets a flag, and an all-reduce makes them agree."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

from rlpheads.engine.distributed.launch import Launch
from rlpheads.loaders.contract.stop_signals import STOP_SIGNALS, ignored_stop_signals

_NOTHING, _SAVE, _STOP = range(3)


class StopFlag:
    """Whether any rank was asked to stop, or to save, agreed upon by all ranks at the same step.

    Each step starts an asynchronous all-reduce of the flags on the control group and reads the one that the step
    before it started, so that no step waits for a message.
    """

    def __init__(self, control: dist.ProcessGroup, world_size: int):
        self._control = control
        self._alone = world_size == 1
        self._received: int | None = None
        self._stop_reason: str | None = None
        self._save_wanted = False
        self._save_agreed = False
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

    def request_stop(self, reason: str) -> None:
        """Ask all ranks to stop, as a signal does."""
        self._stop_reason = reason

    def request_save(self) -> None:
        """Ask all ranks to save at a step that they agree on."""
        self._save_wanted = True

    def take_save(self) -> bool:
        """Whether all ranks agreed to save since this was last asked; the answer is the same at every rank."""
        agreed, self._save_agreed = self._save_agreed, False
        return agreed

    @property
    def reason(self) -> str:
        """Name of the signal that this rank received, or another reason to stop; it may lie at another rank."""
        if self._received is not None:
            return signal.Signals(self._received).name
        return self._stop_reason or "a signal at another rank"

    def agreed(self) -> bool:
        """Whether all ranks stop now. Collective: every rank calls it once a step."""
        if self._alone:
            return self._take_in(self._wanted)
        stops = False
        if self._pending is not None:
            work, level = self._pending
            work.wait()
            stops = self._take_in(int(level.item()))
        level = torch.tensor(self._wanted)
        self._pending = (
            None if stops else (dist.all_reduce(level, dist.ReduceOp.MAX, self._control, async_op=True), level)
        )
        return stops

    @property
    def is_wanted(self) -> bool:
        """Whether this rank was asked to stop; other ranks know nothing of it yet."""
        return self._wanted == _STOP

    @property
    def _wanted(self) -> int:
        if self._received is not None or self._stop_reason is not None:
            return _STOP
        return _SAVE if self._save_wanted else _NOTHING

    def _take_in(self, level: int) -> bool:
        """Note what the ranks agreed upon; return whether they stop."""
        if level >= _SAVE:
            self._save_agreed, self._save_wanted = True, False
        return level == _STOP

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
