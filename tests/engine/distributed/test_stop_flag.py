"""The stop flag is raised by a real signal and read by the loop."""

import os
import signal

import pytest

from rlpheads.engine.distributed.stop_flag import StopFlag
from rlpheads.loaders.contract.stop_signals import STOP_SIGNALS


@pytest.fixture
def flag(launched):
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    flag = StopFlag(launched.control, world_size=1)
    flag.install()
    yield flag
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_signal_stops_at_the_next_step(flag, number):
    assert not flag.agreed()
    os.kill(os.getpid(), number)
    assert flag.agreed()
    assert flag.reason == number.name


def test_hangup_stays_ignored_under_nohup(launched):
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        flag = StopFlag(launched.control, world_size=1)
        flag.install()
        os.kill(os.getpid(), signal.SIGHUP)
        assert not flag.agreed()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_second_interrupt_interrupts(flag):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_ranks_read_each_others_flag_one_step_later(launched):
    flag = StopFlag(launched.control, world_size=2)  # takes the collective path, in a group of one
    flag.install()
    assert not flag.agreed()
    os.kill(os.getpid(), signal.SIGTERM)
    assert not flag.agreed()
    assert flag.agreed()
    flag.drain()
