"""The benchmark of a training step: its settings can be run, and every contender takes a step."""

import bench_step
import pytest

from rlpheads.engine.checks.settings import settings_errors
from rlpheads.engine.config.ranges import range_errors


@pytest.mark.parametrize("case", sorted({*bench_step.QUICK, *bench_step.FULL}), ids=str)
def test_every_case_has_settings_that_can_be_run(case, tmp_path):
    config = bench_step.config_of(case, tmp_path)
    assert [*range_errors(config), *settings_errors(config, 1)] == []


def test_a_step_with_heads_is_timed_beside_the_bound_by_arithmetic():
    case = bench_step.Case(taps=2, side=32, rows=8, micro=True)
    seconds = bench_step.measure(case, rounds=1)["seconds"]
    assert seconds.keys() == {"engine", "bare", "without heads", "products", "copy"}
    assert "of the arithmetic bound" in bench_step.line(case._replace(micro=False), seconds)
