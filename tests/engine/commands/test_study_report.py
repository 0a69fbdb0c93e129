"""What the runs of a study found, summarised by arm: intervals and differences across seeds."""

import csv
import io

import pytest
from rich.console import Console

from rlpheads.engine.commands.study_plan import Study
from rlpheads.engine.commands.study_report import (
    adjust_differences,
    count_excesses,
    print_study,
    summarize_arm,
    write_study,
)
from rlpheads.engine.report.study_matching import match_paths


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


def printed(found: dict) -> str:
    console = Console(width=200, file=io.StringIO())
    print_study({"study": "s", "vary": "all", "reference": "a", "runs": {}, "arms": {}, **found}, console)
    return console.file.getvalue()


def test_excesses_are_counted_beside_what_chance_gives_and_saturated_probes_are_named():
    excesses = {"label_excess": {"beyond": 5, "of": 12, "by_chance": 0.6}}
    text = printed({"excesses": excesses, "saturated": {"probes": 3, "of": 24}})
    assert "label excess: beyond chance at some tap in 5 of 12 runs; by chance alone at most 0.6" in text
    assert "3 of 24 probes fit nearly every label (95% or more) and can show no excess" in text
    assert "probes fit" not in printed({"excesses": {}, "saturated": {"probes": 0, "of": 24}})


def test_a_label_excess_counts_beyond_luck_and_a_membership_excess_beyond_its_interval():
    """One draw of meaningless labels is away from the mean of many others: only luck tells."""
    run = {
        "saturated": [False],
        "measures": {"label_excess": [0.01]},
        "label_excess_luck": [0.02],
        "membership_excess_intervals": [[0.001, 0.01]],
    }
    beyond = run | {"label_excess_luck": [0.005], "membership_excess_intervals": [[-0.001, 0.01]]}
    study = Study("s", (), {}, {"a": {}}, (0,), "a")
    found = count_excesses(study, [run, run, beyond, {"measures": {}}])
    assert found["label_excess"] == {"beyond": 1, "of": 3, "by_chance": pytest.approx(0.15)}
    assert found["membership_excess"]["beyond"] == 2


def arms_of(free: dict, held: dict) -> dict:
    """Two arms with one measure each, as `collect_study` has them."""
    arms = {
        "free": summarize_arm(free, free, is_reference=True),
        "held_2 %": summarize_arm(held, free, is_reference=False),
    }
    adjust_differences(arms)
    return arms


def test_differences_hold_for_all_comparisons_together(tmp_path):
    """A difference of p = .04 alone is none among two; both p-values are in every file."""
    free = {seed: {"own_rla": 0.2, "top1": 0.9} for seed in range(3)}
    held = {0: {"own_rla": 0.1, "top1": 0.8}, 1: {"own_rla": 0.08, "top1": 0.86}, 2: {"own_rla": 0.09, "top1": 0.84}}
    arms = arms_of(free, held)
    alone, together = (arms["held_2 %"][name]["difference"] for name in ("top1", "own_rla"))
    assert together["p_value"] < 0.01
    assert together["p_adjusted"] == pytest.approx(2 * together["p_value"])
    assert alone["p_adjusted"] == pytest.approx(alone["p_value"]) != together["p_value"]
    found = {"study": "s", "vary": "all", "reference": "free", "runs": {}, "arms": arms, "excesses": {}}
    paths = write_study(tmp_path, found | {"saturated": {"probes": 0, "of": 0}})
    assert [path.name for path in paths] == ["study.json", "study.csv", "study.tex"]
    rows = list(csv.DictReader((tmp_path / "study.csv").read_text().splitlines()))
    assert [(row["arm"], row["measure"]) for row in rows][2:] == [("held_2 %", "own_rla"), ("held_2 %", "top1")]
    assert float(rows[2]["p_adjusted"]) == together["p_adjusted"]
    text = (tmp_path / "study.tex").read_text()
    assert r"held\_2 \%" in text
    assert r"\textbf{9.00 $\pm$" in text
    assert text.count(r" \\") == 3


def test_one_seed_has_no_p_value():
    arms = arms_of({0: {"top1": 0.9}}, {0: {"top1": 0.8}})
    assert arms["held_2 %"]["top1"]["difference"]["p_adjusted"] is None


def test_regularisers_are_compared_where_audit_heads_are_equally_accurate():
    """`uniform` takes 10 points of the audit heads for 2 points of accuracy, `unlikelihood` for 8: at 25 %, 1 and 4."""
    arms = {
        "base": {},
        "uniform_1": {"regularizer": {"kind": "uniform", "factor": 1}},
        "unlikelihood_1": {"regularizer": {"kind": "unlikelihood", "factor": 1}},
        "other": {"regularizer": {"kind": "uniform", "factor": 1}, "optim": {"lr": 1}},
    }
    points = {"base": (0.3, 0.9), "uniform_1": (0.2, 0.88), "unlikelihood_1": (0.2, 0.82), "other": (0.1, 0.1)}
    values = {
        arm: {seed: {"audit_rla": level, "top1": top1 + 0.01 * seed} for seed in range(3)}
        for arm, (level, top1) in points.items()
    }
    found = match_paths(arms, values, "base", lambda each: {"values": each})
    assert found["level"] == pytest.approx(0.25)
    assert found["paths"]["uniform"]["top1"]["values"] == pytest.approx([0.89, 0.90, 0.91])
    assert found["paths"]["unlikelihood"]["top1"]["values"] == pytest.approx([0.86, 0.87, 0.88])
    assert match_paths(arms, values | {"base": {}}, "base", dict) == {}
    apart = values | {"unlikelihood_1": {seed: {"audit_rla": 0.4, "top1": 0.9} for seed in range(3)}}
    assert match_paths(arms, apart, "base", dict) == {}
