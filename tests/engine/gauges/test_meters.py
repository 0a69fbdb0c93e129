"""Figures of the steps reach the host once, each step's own, and averaged over their window."""

import torch

from rlpheads.engine.gauges.meters import Meters


def test_window_is_read_once_step_by_step_and_averaged(launched):
    meters = Meters(torch.device("cpu"), world_size=1)
    assert meters.finish_read() is None
    for step, value in ((1, 1.0), (2, 2.0), (4, 6.0)):
        meters.add(step, {"loss": torch.tensor(value), "hits": torch.tensor(int(value))})
    meters.begin_read(step=4)
    meters.add(5, {"loss": torch.tensor(100.0), "hits": torch.tensor(0)})
    window = meters.finish_read()
    assert window is not None
    assert (window.closed_at, window.steps) == (4, (1, 2, 4))
    assert window.figures == {"loss": [1.0, 2.0, 6.0], "hits": [1.0, 2.0, 6.0]}
    assert meters.finish_read() is None
    meters.begin_read(step=5, backbone_lr=0.5)
    last = meters.finish_read()
    assert (last.figures, last.beside) == ({"loss": [100.0], "hits": [0.0]}, {"backbone_lr": 0.5})


def test_empty_window_reads_nothing(launched):
    meters = Meters(torch.device("cpu"), world_size=1)
    meters.begin_read(step=0)
    assert meters.finish_read() is None
