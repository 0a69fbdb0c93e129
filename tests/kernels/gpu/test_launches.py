"""How much the loss of a step launches on a GPU, counted under Triton's interpreter: these figures must not grow."""

import pytest

pytest.importorskip("triton", reason="triton comes with torch's CUDA build only")

import kept_weights
import launch_counter
import triton_updates
from launch_counter import Step
from triton_interpreter import Interpreter

STEPS = [
    (Step(1, 1000, None), 14),
    (Step(1, 1000, "unlikelihood"), 17),
    (Step(1, 1000, "uniform"), 18),
    (Step(1, 1000, "entropy"), 22),
    (Step(12, 1000, None), 17),
    (Step(12, 1000, "uniform"), 23),
    (Step(1, 10, "uniform", "batched"), 14),
    (Step(12, 10, None, "batched"), 12),
    (Step(12, 10, "uniform", "batched"), 18),
]
"""Forward and backward with biases, labels from a table, features in bfloat16 and weights in float32. Twelve heads have as many
launches at 1,000 labels as at 10,000, where they are one group, too (test_whole_heads.py)."""


@pytest.mark.parametrize(("step", "most"), STEPS, ids=str)
def test_launches_of_a_step(interpreter: Interpreter, step: Step, most: int) -> None:
    launches = interpreter(launch_counter.launches_of, step)
    assert launches.total <= most, (launches.total, launches.aten, launches.triton)


@pytest.mark.parametrize(("rule", "most"), [("adamw", 6), ("momentum", 5)])
def test_launches_of_a_step_in_tiles(interpreter: Interpreter, rule: str, most: int) -> None:
    """No product of the library's is among them: what it would write is the gradient."""
    launches = interpreter(triton_updates.launches_of_an_update, rule)
    assert launches.total <= most, (launches.total, launches.aten, launches.triton)
    assert "bmm" not in launches.aten


def test_nothing_waits_for_a_value(interpreter: Interpreter) -> None:
    """A CUDA graph can hold the step: it reads nothing on the host, and launches the same whatever the values are."""
    interpreter(launch_counter.assert_launches_do_not_depend_on_values)


@pytest.mark.long
@pytest.mark.parametrize(
    "step",
    [
        Step(1, 300, None),
        Step(3, 300, "uniform"),
        Step(1, 300, "entropy"),
        Step(1, 10, "uniform", "batched"),
        Step(12, 10, None, "batched"),
    ],
    ids=str,
)
def test_every_call_meets_the_same_addresses(interpreter: Interpreter, step: Step) -> None:
    """So that a captured graph may be replayed: all that a step allocates lies where it lay, whatever the values are."""
    interpreter(launch_counter.assert_every_call_meets_the_same_addresses, step)


def test_a_weight_is_cast_once_a_version(interpreter: Interpreter) -> None:
    interpreter(kept_weights.assert_a_version_is_cast_once, 1)
    interpreter(kept_weights.assert_a_version_is_cast_once, 3)
    interpreter(kept_weights.assert_copies_keep_nothing)
