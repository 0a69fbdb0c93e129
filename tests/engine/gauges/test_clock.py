"""The clock counts training alone."""

from contextlib import contextmanager

import pytest

from rlpheads.engine.gauges.clock import FORWARD_SHARE, Clock, EvaluationClock


class Hand:
    """A clock's hand that the test moves."""

    def __init__(self):
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def trained(clock: Clock, hand: Hand, steps: int, seconds: float = 1.0, wait: float = 0.0, images: int = 10) -> None:
    for _ in range(steps):
        with clock.waiting():
            hand.time += wait
        hand.time += seconds - wait
        clock.step(images)


def test_rate_leaves_out_warmup_and_pauses():
    hand = Hand()
    clock = Clock(warmup_steps=2, now=hand)
    clock.start()
    trained(clock, hand, 2, seconds=50.0)
    assert clock.images_per_second == 0.0
    assert clock.eta_seconds(100) is None
    trained(clock, hand, 4)
    clock.stop()
    hand.time += 1000.0
    clock.start()
    trained(clock, hand, 4)
    assert clock.images_per_second == pytest.approx(10.0)
    assert clock.training_seconds == pytest.approx(8.0)
    assert clock.eta_seconds(55) == pytest.approx(5.5)


def test_rate_goes_on_where_it_was_stopped():
    hand = Hand()
    clock = Clock(warmup_steps=0, now=hand)
    for _ in range(3):
        clock.start()
        trained(clock, hand, 2, seconds=0.5)
        clock.stop()
        hand.time += 77.0
    assert clock.images_per_second == pytest.approx(20.0)


def test_data_wait_is_a_share_of_training_time():
    hand = Hand()
    clock = Clock(warmup_steps=1, now=hand)
    clock.start()
    trained(clock, hand, 1, seconds=9.0, wait=9.0)
    trained(clock, hand, 5, seconds=1.0, wait=0.25)
    assert clock.data_wait == pytest.approx(0.25)


def test_waiting_is_counted_on_the_device_where_there_is_one():
    """The host is away for nine tenths of each step, but the device misses a tenth only."""

    class Device:
        seconds = 0.0

        @contextmanager
        def measuring(self):
            yield
            self.seconds += 0.1

    hand = Hand()
    clock = Clock(warmup_steps=1, now=hand, device_wait=Device())
    clock.start()
    trained(clock, hand, 4, seconds=1.0, wait=0.9)
    assert clock.data_wait == pytest.approx(0.1)


def test_time_of_evaluations_is_estimated_from_training_before_the_first_and_measured_behind_it():
    seconds = iter([0.0, 4.0, 10.0, 11.0])
    clock = EvaluationClock(now=lambda: next(seconds))
    assert clock.eta_seconds(300, training_rate=100.0) == pytest.approx(3 * FORWARD_SHARE)
    assert clock.eta_seconds(300, training_rate=0.0) == 0
    with clock.timing(200):
        pass
    assert clock.eta_seconds(300, training_rate=100.0) == pytest.approx(6.0)
    with clock.timing(300):
        pass
    assert clock.eta_seconds(300, training_rate=100.0) == pytest.approx(3.0)
