"""Heads sharded by class over several ranks, under Triton's interpreter: all heads of a rank in the same launches."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with torch's CUDA build only")

import range_ranks
from range_ranks import RankCase
from simulated_ranks import HeadProblem
from triton_interpreter import Interpreter

from rlpheads.memorization.heads.head_losses import HeadTerms


def case(
    world_size: int,
    terms: HeadTerms,
    *,
    num_labels: int = 41,
    dims: tuple[int, ...] = (8, 8, 16),
    mixed: bool = False,
    **options,
):
    return RankCase(
        world_size,
        HeadProblem(num_labels, 4, dims, mixed=mixed, options=options, dtype=torch.float32),
        replace(terms, impl="reference"),
    )


CASES = [
    case(1, HeadTerms()),
    case(2, HeadTerms()),
    case(3, HeadTerms("uniform", (0, 1, 2), joint=True)),
    case(2, HeadTerms("entropy", (0, 1, 2)), mixed=True),
    case(3, HeadTerms("unlikelihood", (1,), joint=True), mixed=True),
    case(2, HeadTerms("reversal", (0, 2)), hidden=8),
    case(2, HeadTerms("uniform", (1, 2)), dims=(8, 8, 8), hidden=8, norm=True),
    case(7, HeadTerms("uniform", (0, 1, 2)), dims=(8, 8, 8)),
    # the last rank holds no class and writes its logits out, as the others do not: they send the same message
    case(4, HeadTerms("uniform", (0, 1)), num_labels=5, dims=(8, 8), hidden=8),
    replace(case(3, HeadTerms("entropy", (0, 1)), mixed=True), handed_over=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.world_size} ranks, {case.terms.regularizer}")
def test_values_and_gradients_are_those_of_whole_heads(interpreter: Interpreter, case: RankCase) -> None:
    interpreter(range_ranks.assert_ranks_agree_with_whole_heads, case)


@pytest.mark.parametrize("kind", [None, "unlikelihood", "uniform"])
def test_launches_are_about_those_of_whole_heads_and_do_not_grow_with_heads(
    interpreter: Interpreter, kind: str | None
) -> None:
    """At most 1.3 times as many; messages are not counted."""
    one, twelve = (interpreter(range_ranks.launches_of_a_step, num, kind, True) for num in (1, 12))
    assert one.triton == twelve.triton
    for num_heads, sharded in ((1, one), (12, twelve)):
        whole = interpreter(range_ranks.launches_of_a_step, num_heads, kind, False)
        assert sharded.total <= 1.3 * whole.total, (sharded, whole)


@pytest.mark.parametrize("sharded", [False, True])
def test_losses_whose_gradients_are_handed_over_share_their_launches(interpreter: Interpreter, sharded: bool) -> None:
    """All but a few copies of rows, such as labels, to hand over one by one."""
    made, handed = (interpreter(range_ranks.launches_of_a_step, 12, None, sharded, each) for each in (False, True))
    assert handed.triton.total() < made.triton.total()
    assert handed.total <= made.total
