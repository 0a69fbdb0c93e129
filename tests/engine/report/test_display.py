"""On a terminal of any usual width every figure of a step is to be seen; elsewhere there are plain lines."""

import io

import pytest
import torch
from rich.console import Console

from rlpheads.engine.report.display import Display

ROW = {
    "step": 30,
    "epoch": 1,
    "class_loss": 2.25,
    "head_cross_entropy": 13.85,
    "regularizer": 0.63,
    "top1": 0.125,
    "rla_first": 0.11,
    "rla_last": 0.12,
    "images_per_second": 812.0,
    "data_wait": 0.043,
}
FIGURES = ["2.2500", "13.8500", "0.6300", "12.50%", "11.00%", "12.00%", "812 img/s", "wait 4.30%", "ETA 0:01:05", "GiB"]


def shown(width: int, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    with Display(console, 2, 44, torch.device("cpu")) as display:
        display.step(ROW, 65.0)
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_terminal_shows_every_figure_at_any_width(width):
    text = " ".join(shown(width, terminal=True).split())
    assert "epoch 1" in text
    assert "30/44" in text
    assert [figure for figure in FIGURES if figure not in text] == []


def test_plain_output_is_one_line_without_control_codes():
    (line,) = shown(80, terminal=False).strip().splitlines()
    assert line.startswith("epoch 1 step 30/44")
    assert "\x1b" not in line
    assert [figure for figure in FIGURES if figure not in line] == []
