"""Figures of the steps reach the host once, averaged over their window."""

import pytest
import torch

from rlpheads.engine.gauges.meters import Meters


def test_window_is_averaged_and_read_once(launched):
    meters = Meters(torch.device("cpu"), world_size=1)
    assert meters.finish_read() is None
    for value in (1.0, 2.0, 6.0):
        meters.add({"loss": torch.tensor(value), "hits": torch.tensor(int(value))})
    meters.begin_read(step=3)
    meters.add({"loss": torch.tensor(100.0), "hits": torch.tensor(0)})
    read = meters.finish_read()
    assert read is not None
    step, figures = read
    assert step == 3
    assert figures == {"loss": pytest.approx(3.0), "hits": pytest.approx(3.0)}
    assert meters.finish_read() is None
    meters.begin_read(step=4, backbone_lr=0.5)
    assert meters.finish_read() == (4, {"loss": 100.0, "hits": 0.0, "backbone_lr": 0.5})


def test_empty_window_reads_nothing(launched):
    meters = Meters(torch.device("cpu"), world_size=1)
    meters.begin_read(step=0)
    assert meters.finish_read() is None
