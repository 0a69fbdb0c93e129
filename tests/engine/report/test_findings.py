"""A run's findings: averages by tap, references, and the held-out check, which is loud when it fails."""

import io
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from rlpheads.engine.report.display import Display, percent
from rlpheads.engine.report.evaluation_summary import Evaluation
from rlpheads.engine.report.findings import Findings, draw_figures, summarize_findings
from rlpheads.engine.report.memory import measure_memory
from rlpheads.memorization.measures.intervals import wilson_interval
from rlpheads.memorization.records.ledger import Ledger

HISTORY = [
    {"epoch": 0, "rla_running": [0.1, 0.2], "rla_clean": [0.3, 0.4], "rla_heldout": [0.1, 0.1]},
    {"epoch": 1, "rla_running": [0.2, 0.3]},
]


def findings(heldout: list[list[float]]) -> Findings:
    found = Evaluation(loss=1.0, top1=0.96, rla_TM=heldout, bits_TM=[], num_samples=1000)
    return summarize_findings(found, HISTORY, blocks=[0, 5], baselines=[0.36, 0.36], num_labels=10)


def printed(found: Findings) -> str:
    out = io.StringIO()
    Display(Console(file=out, width=120), 2, 3, torch.device("cpu")).findings(found)
    return out.getvalue()


def test_last_measured_epoch_is_reported():
    first, last = findings([[0.1, 0.12], [0.1, 0.1]]).taps
    assert (first.block, first.running, first.clean) == (0, 0.2, 0.3)
    assert first.heldout == pytest.approx(0.11)
    assert (last.block, last.baseline) == (5, 0.36)


def test_chance_passes_quietly():
    text = printed(findings([[0.1, 0.11], [0.09, 0.1]]))
    assert "inside its exact binomial bounds" in text
    assert "FAILED" not in text


def test_impossible_heldout_accuracy_is_loud_and_named():
    found = findings([[0.1, 0.1], [0.1, 0.2]])
    assert found.strayed == ((5, None, 0.15), (5, 1, 0.2))
    text = printed(found)
    assert "held-out check FAILED" in text
    assert "tap 5, all draws: 15.00%" in text
    assert "tap 5, draw 1: 20.00%" in text


def test_draws_are_pooled_so_that_a_small_excess_is_seen():
    """13 % of 1,000 in each of four draws: no draw is outside its bounds, all of them together are far outside."""
    found = findings([[0.13, 0.13, 0.13, 0.13], [0.1, 0.1, 0.1, 0.1]])
    assert found.strayed == ((0, None, 0.13),)
    assert "tap 0, all draws: 13.00%" in printed(found)


@pytest.mark.long
def test_the_pooled_check_alarms_more_often_than_draws_one_by_one_and_not_at_chance():
    """500 held-out samples and four draws, K = 10: truth .13 and truth .1."""
    generator = torch.Generator().manual_seed(0)

    def alarms(truth: float) -> tuple[float, float]:
        hits_CM = torch.binomial(torch.full((400, 4), 500.0), torch.full((400, 4), truth), generator=generator)
        cases = [
            summarize_findings(
                Evaluation(loss=1.0, top1=0.9, rla_TM=[(hits_M / 500).double().tolist()], bits_TM=[], num_samples=500),
                [],
                [0],
                [0.3],
                num_labels=10,
            ).strayed
            for hits_M in hits_CM.double()
        ]
        pooled = [any(draw is None for _, draw, _ in strayed) for strayed in cases]
        single = [any(draw is not None for _, draw, _ in strayed) for strayed in cases]
        return sum(pooled) / 400, sum(single) / 400

    pooled, single = alarms(0.13)
    assert pooled > 0.6
    assert single < 0.35
    assert alarms(0.1) == (0, 0)


def test_two_opposite_draws_are_found_though_their_mean_is_at_chance():
    assert findings([[0.05, 0.15], [0.1, 0.1]]).strayed == ((0, 0, 0.05), (0, 1, 0.15))


def test_one_draw_is_named_once():
    assert findings([[0.2], [0.1]]).strayed == ((0, None, 0.2),)


def test_impossible_ignorance_is_loud_too():
    assert findings([[0.0, 0.1], [0.1, 0.1]]).strayed == ((0, None, 0.05), (0, 0, 0.0))


def test_run_without_heads_has_nothing_to_check():
    found = summarize_findings(Evaluation(1.0, 0.5, [], [], 100), [{"epoch": 0}], [], [], num_labels=10)
    assert "top-1 50.00%" in printed(found)


def test_audit_column_is_there_where_audit_heads_were():
    audited = [{**HISTORY[0], "audit_rla_clean": [0.45, 0.55]}, HISTORY[1]]
    found = Evaluation(loss=1.0, top1=0.96, rla_TM=[[0.1], [0.1]], bits_TM=[], num_samples=1000)
    with_audit = printed(summarize_findings(found, audited, [0, 5], [0.36, 0.36], num_labels=10))
    assert "audit clean" in with_audit
    assert "55.00%" in with_audit
    assert "audit clean" not in printed(findings([[0.1], [0.1]]))


def test_bits_are_told_with_what_they_prove():
    bits = {"bits_clean": [120.5, -3.0], "bits_per_sample_clean": [0.1205, -0.003]}
    bits |= {"bits_per_head_parameter_clean": [0.5, -0.01], "audit_bits_clean": [7.25, 1.0]}
    found = Evaluation(loss=1.0, top1=0.96, rla_TM=[[0.1], [0.1]], bits_TM=[], num_samples=1000)
    text = printed(summarize_findings(found, [{**HISTORY[0], **bits}], [0, 5], [0.36, 0.36], num_labels=10))
    assert [word for word in ("120.5", "0.1205", "0.5000", "7.2", "-3.0") if word not in text] == []
    assert "probability of at most 2^-T" in text
    assert "bits about" not in printed(findings([[0.1], [0.1]]))


def test_margins_stand_beside_the_bits():
    margins = {"margin_p05_clean": [-0.5, -1.25], "margin_median_clean": [0.1, 0.2], "margin_p95_clean": [2.0, 3.0]}
    row = {**HISTORY[0], "bits_clean": [1.0, 2.0], **margins}
    found = Evaluation(loss=1.0, top1=0.96, rla_TM=[[0.1], [0.1]], bits_TM=[], num_samples=1000)
    text = printed(summarize_findings(found, [row, HISTORY[1]], [0, 5], [0.36, 0.36], num_labels=10))
    assert "-0.50, 0.10, 2.00" in text
    assert "-1.25, 0.20, 3.00" in text


def test_calibration_error_stands_behind_the_heldout_accuracy():
    """That of the evaluation itself, or where its ledger alone is left, that of the last epoch's line."""
    rows = [{**HISTORY[0], "eval_ece": 0.04, "clean_ece": 0.005}, {**HISTORY[1], "eval_ece": 0.03}]
    found = Evaluation(loss=1.0, top1=0.96, rla_TM=[[0.1], [0.1]], bits_TM=[], num_samples=1000)
    arguments = (rows, [0, 5], [0.36, 0.36], 10)
    assert "top-1 96.00% (calibration error 3.00%; training images 0.50%)" in printed(
        summarize_findings(found, *arguments)
    )
    assert summarize_findings(replace(found, ece=0.02), *arguments).ece == 0.02
    assert "calibration" not in printed(findings([[0.1], [0.1]]))


@pytest.mark.long
def test_figures_are_drawn_with_and_without_history(tmp_path):
    found = findings([[0.1, 0.11], [0.09, 0.1]])
    draw_figures(tmp_path / "full", found, HISTORY, num_heldout=1000)
    assert {path.name for path in (tmp_path / "full").iterdir()} == {
        f"rla_by_{axis}.{suffix}" for axis in ("depth", "epoch") for suffix in ("png", "svg", "pdf")
    }


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.1234, "12.34%"), (1e-5, "0.0010%"), (0.0, "0.00%"), (1.0, "100.00%")]
)
def test_percent_resolves_chance_at_100000_labels(value, text):
    assert percent(value) == text


def test_memory_is_that_of_the_own_draws_with_an_interval():
    """20 samples at one tap: draw 0 hit in 15, draw 1 in 10, and an audit draw that does not count.

    Student's t with one degree of freedom would give an interval wider than that of one draw.
    """
    ledger = Ledger(num_samples=21, num_taps=1, num_draws=3)
    hit_TMB = torch.stack([torch.arange(20) < 15, torch.arange(20) < 10, torch.ones(20, dtype=torch.bool)])[None]
    floats_TMB, zeros_B = torch.zeros(1, 3, 20), torch.zeros(20)
    ledger.record(torch.arange(20), zeros_B.long(), zeros_B, zeros_B > 0, hit_TMB, floats_TMB, floats_TMB)
    (both,) = measure_memory(ledger, [4], num_draws=2, num_labels=2)
    assert (both.block, both.rademacher) == (4, pytest.approx(2 * 0.625 - 1))
    interval = wilson_interval(25, 40)
    assert (both.low, both.high) == (pytest.approx(2 * interval.low - 1), pytest.approx(2 * interval.high - 1))
    assert both.heterogeneity == pytest.approx(0.1025, abs=1e-4)
    assert both.mcdiarmid == pytest.approx(2 * math.sqrt(math.log(40) / (2 * 20 * 2)))
    assert f"within {both.mcdiarmid:.4f} of" in " ".join(
        printed(replace(findings([[0.1], [0.1]]), memory=(both,))).split()
    )
    (one,) = measure_memory(ledger, [4], num_draws=1, num_labels=2)
    assert one.rademacher == pytest.approx(0.5)
    assert one.high - one.low > both.high - both.low
    assert -1 < one.low < 0.5 < one.high < 1
    assert "not resolvable" in one.memorized
