"""The slowest rank of a window is the one that took longest by itself, with what it waited for images."""

import torch

from rlpheads.engine.gauges.meters import Meters
from rlpheads.engine.gauges.own_time import HostTimer, OwnTime, RankTimes, slowest_rank


def test_times_are_those_since_the_last_window():
    now = iter([0.0, 2.0, 10.0, 13.0])
    waits = iter([1.0, 5.0])
    own = OwnTime(HostTimer(lambda: next(now)), lambda: next(waits))
    with own.work.measuring():
        pass
    assert own.take() == RankTimes(waited=1.0, worked=2.0)
    with own.work.measuring():
        pass
    assert own.take() == RankTimes(waited=4.0, worked=3.0)


def test_the_slowest_is_named_with_its_seconds_a_step():
    ranks = [RankTimes(0.0, 4.0), RankTimes(5.0, 1.0), RankTimes(1.0, 1.0)]
    assert slowest_rank(ranks, num_steps=2) == {
        "slowest_rank": 1,
        "slowest_rank_seconds": 3.0,
        "slowest_rank_data_wait": 2.5,
    }


def test_a_rank_alone_is_nobodys_slowest():
    assert slowest_rank([RankTimes(1.0, 1.0)], num_steps=1) == slowest_rank([], num_steps=1) == {}


def test_times_travel_with_the_figures(launched):
    meters = Meters(torch.device("cpu"), world_size=1)
    meters.add(1, {"loss": torch.tensor(3.0), "hits": torch.tensor(2)})
    meters.begin_read(1, RankTimes(0.5, 0.25))
    window = meters.finish_read()
    assert window.ranks == (RankTimes(0.5, 0.25),)
    assert window.figures == {"loss": [3.0], "hits": [2.0]}
