"""The benchmark of a training step: its settings can be run, and every contender takes a step."""

import bench_step
import pytest
import timm_runs

from rlpheads.engine.checks.settings import settings_errors
from rlpheads.engine.config.ranges import range_errors
from rlpheads.engine.train import read_settings


@pytest.mark.parametrize("case", sorted({*bench_step.QUICK, *bench_step.FULL}), ids=str)
def test_every_case_has_settings_that_can_be_run(case, tmp_path):
    config = bench_step.config_of(case, tmp_path)
    assert [*range_errors(config), *settings_errors(config, 1)] == []


def test_a_step_with_heads_is_timed_beside_the_bound_by_arithmetic():
    case = bench_step.Case(taps=2, side=32, rows=8, micro=True)
    seconds = bench_step.measure(case, rounds=1)["seconds"]
    assert seconds.keys() == {"engine", "bare", "without heads", "products", "copy"}
    assert "of the arithmetic bound" in bench_step.line(case._replace(micro=False), seconds)


@pytest.mark.parametrize("pairing", timm_runs.PAIRINGS, ids=lambda each: f"{each.model}-{each.precision}")
def test_the_run_beside_timms_takes_each_image_once(pairing, tmp_path):
    num_steps = 3
    for name in ("train", "val"):
        (tmp_path / "tree" / name / "class").mkdir(parents=True)
        for number in range(num_steps * timm_runs.ROWS):
            (tmp_path / "tree" / name / "class" / f"{number}.jpg").touch()
    config = read_settings(timm_runs.command_of("engine", pairing, tmp_path / "tree", tmp_path / "runs")[2:], print)
    assert list(settings_errors(config, 1)) == []
    assert config.max_steps == num_steps
    assert config.eval.clean_every == 0
    assert config.epochs > 1  # behind the last one there is a clean pass in any case
