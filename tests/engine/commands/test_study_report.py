"""What the runs of a study found, summarised by arm: intervals and differences across seeds."""

import pytest

from rlpheads.engine.commands.study_report import summarize_arm


def test_intervals_and_differences_are_across_seeds():
    free = {0: {"own_rla": 0.2}, 1: {"own_rla": 0.3}, 2: {"own_rla": 0.1}}
    held = {0: {"own_rla": 0.1}, 2: {"own_rla": 0.04}}
    found = summarize_arm(held, free, is_reference=False)["own_rla"]
    assert found["mean"] == pytest.approx(0.07)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(12.7062 * 0.03, rel=1e-4)  # t of one degree of freedom
    assert found["difference"]["values"] == pytest.approx([-0.1, -0.06])
    assert "difference" not in summarize_arm(free, free, is_reference=True)["own_rla"]


def test_what_some_runs_lack_is_left_out():
    """A study may hold runs of an older version, which measured less."""
    found = summarize_arm({0: {"top1": 0.9, "ece": 0.1}, 1: {"top1": 0.8}}, {0: {"top1": 0.7}, 1: {"top1": 0.7}}, False)
    assert found.keys() == {"top1"}
    assert found["top1"]["difference"]["mean"] == pytest.approx(0.15)
