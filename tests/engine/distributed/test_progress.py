"""How long a phase may take: the first time apart, then by the slowest so far."""

import pytest

from rlpheads.engine.distributed import progress as module
from rlpheads.engine.distributed.progress import Patience, Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def phases(progress, clock, name, *seconds):
    for each in seconds:
        progress.enter(name)
        clock[0] += each
    progress.enter("between")


def overdue_after(progress, clock, patience, phase):
    """Seconds after which a phase is overdue, to whole ones."""
    progress.enter(phase)
    for second in range(4000):
        if progress.is_overdue(patience):
            return second - 1
        clock[0] += 1
    return None


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        ([], 1800),  # it may compile
        ([100], 500),
        ([100, 1], 45),  # the first one did
        ([100, 1, 20, 2], 100),
        ([0.1] * 5, 45),
    ],
)
def test_limit_follows_the_slowest_but_for_the_first_time(clock, seconds, limit):
    progress = Progress()
    phases(progress, clock, "step", *seconds)
    assert overdue_after(progress, clock, Patience(), "step") == limit


def test_given_timeout_is_the_limit(clock):
    progress, patience = Progress(), Patience(timeout_s=7)
    phases(progress, clock, "step", 100, 50, 50)
    assert overdue_after(progress, clock, patience, "step") == 7
    assert overdue_after(progress, clock, patience, "never before") == 1800
    assert patience.silence_s == 7
