"""The Triton kernels under Triton's interpreter: on the CPU, one program after another, bf16 emulated.

What that leaves untested is in docs/gpu_kernels.md; tests/gpu does the same on a GPU.
"""

import pytest
import torch
import triton_behaviour as behaviour
import triton_labels
from kernel_problems import (
    KINDS,
    assert_classes_without_probability_do_not_count,
    assert_label_without_probability,
)
from triton_cases import Case, assert_as_accurate_as_plain, grid
from triton_interpreter import Interpreter

from rlpheads.kernels.random_label_loss import random_label_loss

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
kinds = pytest.mark.parametrize("kind", KINDS)

DEFAULT = [
    Case(7, 768, 2, "unlikelihood", BF16, BF16, spread=30.0, seed=0),
    Case(1, 16, 2, "uniform", spread=0.01, seed=1),
    Case(1, 192, 1003, "entropy", BF16, BF16, spread=30.0, seed=1),
    Case(7, 768, 1003, "unlikelihood", spread=3.0, seed=3),
    Case(7, 192, 1000, "uniform", spread=0.01, seed=3),
    Case(7, 192, 1000, "entropy", spread=0.01, seed=3),
    Case(7, 192, 1000, "entropy", BF16, BF16, spread=1.0),
    Case(7, 16, 10, "reversal", BF16, BF16, spread=0.1, seed=5),
    Case(7, 192, 1003, "uniform", FP16, FP32, spread=0.1, seed=3),
    Case(7, 192, 1003, "entropy", FP16, FP16, spread=3.0, seed=2),
    Case(7, 192, 1003, "unlikelihood", FP32, FP32, spread=1.0, seed=3),
    Case(7, 192, 1003, "entropy", FP32, FP32, spread=0.1, seed=1),
    Case(7, 192, 1003, "uniform", FP32, FP32, spread=0.01, seed=3),
    Case(129, 16, 300, "uniform", spread=1.0, seed=2),
    Case(128, 768, 2, "unlikelihood", BF16, BF16, spread=30.0, seed=0),
]


@pytest.mark.long
@pytest.mark.parametrize("case", DEFAULT, ids=str)
def test_error_against_float64(interpreter: Interpreter, case: Case) -> None:
    interpreter(assert_as_accurate_as_plain, case)


@pytest.mark.long
@kinds
@pytest.mark.parametrize(("dtype", "seed"), [(BF16, 2), (FP16, 3), (FP32, 1)], ids=["plain", "pair, bias", "bias"])
def test_tiles_without_labels(interpreter: Interpreter, kind: str, dtype: torch.dtype, seed: int) -> None:
    """Two whole tiles that hold no label, and are finished without a mask or a comparison; then one that holds all."""
    case = Case(128, 16, 530, kind, dtype, FP32, spread=1.0, seed=seed, labels_from=514)
    interpreter(assert_as_accurate_as_plain, case)


@pytest.mark.slow
@pytest.mark.parametrize("num_rows", [1, 7, 128, 257])
def test_error_against_float64_on_the_whole_grid(interpreter: Interpreter, num_rows: int) -> None:
    for case in grid(num_rows):
        interpreter(assert_as_accurate_as_plain, case)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uniform", "entropy"])
def test_a_hundred_thousand_labels(interpreter: Interpreter, kind: str) -> None:
    interpreter(assert_as_accurate_as_plain, Case(7, 192, 100_003, kind))


@kinds
@pytest.mark.parametrize("margin", [4, 16, 80])
def test_every_margin(interpreter: Interpreter, kind: str, margin: int) -> None:
    interpreter(assert_as_accurate_as_plain, Case(5, 16, 300, kind, margin=margin))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["unlikelihood", "entropy"])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize(("step", "falling", "slabs"), [(20.0, False, True), (6.0, False, False), (20.0, True, False)])
def test_logits_that_leave_the_first_guess_far_behind(
    interpreter: Interpreter, dtype: torch.dtype, kind: str, step: float, falling: bool, slabs: bool
) -> None:
    interpreter(behaviour.assert_climbing_logits_lose_nothing, dtype, kind, step, falling, slabs)


@pytest.mark.long
@kinds
@pytest.mark.parametrize("memory_budget", [0, 5 * 4 * 300])
def test_slab_by_slab(interpreter: Interpreter, kind: str, memory_budget: int) -> None:
    interpreter(behaviour.assert_slabs_change_little, kind, 3, memory_budget)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["unlikelihood", "uniform"])
def test_two_runs_give_the_same_bits(interpreter: Interpreter, kind: str) -> None:
    interpreter(behaviour.assert_two_runs_give_the_same_bits, kind)


@pytest.mark.long
@kinds
@pytest.mark.parametrize("cuts", [(0, 1, 50), (0, 13, 14, 37, 50)], ids=str)
def test_class_ranges_combine_to_the_whole(interpreter: Interpreter, kind: str, cuts: tuple[int, ...]) -> None:
    interpreter(behaviour.assert_class_ranges_combine, kind, cuts)


@pytest.mark.long
@pytest.mark.parametrize(
    "promise",
    [
        behaviour.assert_ties_go_to_the_lowest_label,
        behaviour.assert_a_row_of_nan_leaves_the_others_alone,
        behaviour.assert_inputs_of_all_kinds,
        behaviour.assert_backward_twice_and_many_heads,
    ],
    ids=lambda promise: promise.__name__,
)
def test_promises(interpreter: Interpreter, promise) -> None:
    interpreter(promise)


@pytest.mark.parametrize("impl", ["triton", "batched"])
@pytest.mark.parametrize("num_left", [39, 1])
def test_classes_without_probability_do_not_count(interpreter: Interpreter, impl: str, num_left: int) -> None:
    interpreter(assert_classes_without_probability_do_not_count, impl, num_left)


@pytest.mark.parametrize("impl", ["triton", "batched"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixed", [False, True])
def test_a_label_without_probability(interpreter: Interpreter, impl: str, kind: str, mixed: bool) -> None:
    interpreter(assert_label_without_probability, impl, kind, 20, mixed, torch.float32)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["unlikelihood", "uniform", "entropy"])
def test_traces(interpreter: Interpreter, kind: str) -> None:
    interpreter(behaviour.assert_traces, kind)


@pytest.mark.long
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(interpreter: Interpreter, dynamic: bool) -> None:
    interpreter(behaviour.assert_compiles_into_one_graph, dynamic)


@pytest.mark.long
@pytest.mark.parametrize(
    "promise",
    [
        triton_labels.assert_every_kind_of_source,
        triton_labels.assert_an_index_outside_the_table_is_no_class,
        triton_labels.assert_tables_trace_and_compile,
    ],
    ids=lambda promise: promise.__name__,
)
def test_labels_by_table(interpreter: Interpreter, promise) -> None:
    interpreter(promise)


@pytest.mark.parametrize("with_pairs", [False, True])
def test_losses_of_several_heads_by_table(interpreter: Interpreter, with_pairs: bool) -> None:
    interpreter(triton_labels.assert_losses_by_table, with_pairs)


@pytest.mark.long
def test_what_is_kept_follows_the_budget(interpreter: Interpreter) -> None:
    whole = 64 * 704 * 2  # rows padded to multiples of 64 classes
    assert interpreter(behaviour.saved_bytes, None) == whole
    assert interpreter(behaviour.saved_bytes, 64 * 300 * 2) == 64 * 256 * 2  # two slabs of 128
    assert interpreter(behaviour.saved_bytes, 0) <= 700 * 8 * 2  # the weight


def test_refusals_on_this_machine() -> None:
    features_BD, weight_KD, labels_B = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="impl 'triton' runs on a CUDA GPU; the features are on cpu: use 'auto'"):
        random_label_loss(features_BD, weight_KD, labels_B, impl="triton")
    with pytest.raises(
        ValueError, match="impl 'triton' multiplies float16, bfloat16 or float32; the features are torch.float64"
    ):
        random_label_loss(features_BD.double(), weight_KD, labels_B, impl="triton")
