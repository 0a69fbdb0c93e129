"""On a terminal of any usual width every figure of a step is to be seen; elsewhere there are plain lines."""

import io

import pytest
import torch
from rich.console import Console

from rlpheads.engine.report.display import Display, step_line

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


def test_the_first_steps_after_a_start_have_no_speed_yet():
    measured = {"class_loss": 1.0, "top1": 0.5, "images_per_second": 812.0, "data_wait": 0.04}
    assert "812 img/s  wait 4.00%" in step_line(measured, None)
    assert step_line({"class_loss": 1.0, "top1": 0.5}, None) == "loss 1.0000  top-1 50.00%"
    without_speed = {
        name: value for name, value in epoch_row(1).items() if name not in ("images_per_second", "data_wait")
    }
    out = io.StringIO()
    Display(Console(file=out, width=200), 10, 44, torch.device("cpu")).epoch(without_speed, [0])
    assert "img/s" not in out.getvalue()


def epoch_row(num_taps):
    phases = [f"{prefix}rla_{phase}" for prefix in ("", "audit_") for phase in ("running", "clean", "heldout")]
    row = {
        "train_loss": 2.25,
        "train_top1": 0.5,
        "eval_top1": 0.25,
        "eval_loss": 2.5,
        "eval_ece": 0.01,
        "clean_ece": 0.02,
    }
    row |= {"epoch": 3, "images_per_second": 812.0, "data_wait": 0.04, "train_skipped": 3}
    row |= {"regularizer_factor": 0.1, "regularizer_factor_per_label": 0.001}
    return row | {phase: [0.1234] * num_taps for phase in phases}


def shown_epoch(width, taps, *, terminal=True):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    Display(console, 10, 44, torch.device("cpu")).epoch(epoch_row(len(taps)), taps)
    return out.getvalue().splitlines()


@pytest.mark.wrong("words")
@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("taps", [[], [0, 1], [*range(24)], [f"{block}.attn" for block in range(12)]])
def test_an_epochs_lines_fit_the_terminal_without_breaking_a_word(width, taps):
    lines = shown_epoch(width, taps)
    assert [line for line in lines if len(line) > width] == []
    words = " ".join(lines).split()
    assert words.count("12.34%") == 6 * len(taps)
    for word in ("50.00%,", "812", "wait", "λ", "(λ/K", *map(str, taps)):
        assert word in words


def test_an_epochs_figures_are_one_line_where_there_is_no_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    (line,) = shown_epoch(80, [], terminal=False)
    assert line.startswith("epoch 3 (of 0–9)  top-1: train 50.00%, held-out 25.00%")
    assert line.endswith("λ 0.1 (λ/K 0.001)")


def evaluated(terminal):
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=terminal, color_system=None)
    with Display(console, 2, 44, torch.device("cpu")) as display:
        display.step(ROW, 65.0)
        with display.evaluating("clean", 1437) as advance:
            advance(500)
            display._live.refresh()
        shown = out.getvalue()
        display._live.refresh()
        return shown, out.getvalue()[len(shown) :]


def test_a_pass_of_an_evaluation_has_a_bar_on_a_terminal_while_it_lasts():
    during, after = evaluated(terminal=True)
    assert "clean" in during
    assert "500/1437" in during
    assert "30/44" in after
    assert "1437" not in after


def test_a_pass_of_an_evaluation_prints_nothing_elsewhere():
    assert "clean" not in "".join(evaluated(terminal=False))
