"""The C++ of the CPU loss: that it is used, and that it agrees with PyTorch, which does its work without a compiler."""

import multiprocessing
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from kernel_problems import KINDS, Problem, assert_same, evaluate, make_problem, margin_problem
from torch import Tensor

from rlpheads.kernels import native
from rlpheads.kernels.cpu.tile_native import MAX_ABOVE_SHIFT, make_pass
from rlpheads.kernels.cpu.tile_pass import ClassSums, PlainPass, RowState, Tile, TilePass
from rlpheads.kernels.cpu.workspace import WORKSPACE

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, native.COMPILERS)), reason="there is no C++ compiler on this machine"
)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load_library", lambda: None)


@needs_compiler
def test_a_machine_with_a_compiler_uses_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.load_library() is not None


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_rows", [1, 3, 16, 67])
def test_it_agrees_with_plain_pytorch(kind: str, num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(3, num_rows, 1003, num_features=24, spread=2.0).to(torch.float32)
    compiled = evaluate(problem, kind, "tiled_cpu", memory_budget=0)
    monkeypatch.setattr(native, "load_library", lambda: None)
    assert_same(compiled, evaluate(problem, kind, "tiled_cpu", memory_budget=0), 2e-6)


# ---------------------------------------------------------------------------------------------------------- one tile of it

NONE = torch.empty(0, dtype=torch.int64)


class Reduced(NamedTuple):
    """What reducing one tile of classes gives."""

    exp_KB: Tensor
    state: RowState
    sums: ClassSums


def reduce(
    tile_pass: TilePass, weight_KD: Tensor, bias_K: Tensor | None, labels_LB: Tensor, shift: float | None = None
) -> Reduced:
    """All classes in one tile, everything wanted, with this shift to begin with."""
    num_rows = labels_LB.shape[1]
    slot_N = torch.arange(labels_LB.numel())
    tile = Tile(0, len(weight_KD), slot_N, slot_N % num_rows, labels_LB.flatten())
    state = RowState.start(labels_LB, weight_KD.dtype, moments=True)
    if shift is not None:
        state.shift_B.fill_(shift)
    zeros = weight_KD.new_zeros
    num_features = weight_KD.shape[1]
    sums = ClassSums(zeros(num_rows, num_features), zeros(num_rows, num_features), zeros(num_features))
    exp_KB = torch.empty(len(weight_KD), num_rows, dtype=weight_KD.dtype)
    tile_pass.reduce(tile, weight_KD, bias_K, exp_KB, state, sums)
    return Reduced(exp_KB, state, sums)


def two_labels(problem: Problem) -> Tensor:
    """The rows' labels and their neighbours, int64 (2, B)."""
    return torch.stack([problem.labels_B, (problem.labels_B + 1) % len(problem.weight_KD)])


def maxima_beside_labels(problem: Problem, labels_LB: Tensor) -> list[Tensor]:
    """Largest logits of the classes below and above each row's first label, the second left out."""
    logits_BK = problem.features_BD @ problem.weight_KD.T + (0.0 if problem.bias_K is None else problem.bias_K)
    logits_BK.scatter_(1, labels_LB.T, -torch.inf)
    is_below_BK = torch.arange(logits_BK.shape[1]) < labels_LB[0][:, None]
    return [logits_BK.where(mask_BK, -torch.inf).amax(1) for mask_BK in (is_below_BK, ~is_below_BK)]


def largest(values: Tensor) -> float:
    """Magnitude of the largest finite value, at least 1."""
    return max(1.0, float(values.nan_to_num(0, 0, 0).abs().max()))


def reduce_logits(logits_KB: Tensor, labels_LB: Tensor, shift: float | None = None) -> Reduced:
    """The same for logits that are given: they are the weight of features that pick their columns."""
    return reduce(make_pass(torch.eye(logits_KB.shape[1]), labels_LB), logits_KB, None, labels_LB, shift)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads until the test's end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("num_rows", [1, 5, 6, 64, 67, 130])
@pytest.mark.parametrize(("num_labels", "num_features"), [(3, 1), (95, 16), (96, 63), (97, 65), (600, 130)])
def test_every_number_is_that_of_float64(num_rows: int, num_labels: int, num_features: int) -> None:
    """Rows, features and classes that fill blocks, panels and chunks, or just do not."""
    problem = make_problem(num_rows, num_rows, num_labels, num_features=num_features, spread=2.0).to(torch.float32)
    labels_LB = two_labels(problem)
    compiled = make_pass(problem.features_BD, labels_LB)
    found = reduce(compiled, problem.weight_KD, problem.bias_K, labels_LB)
    exact = problem.to(torch.float64)
    truth = reduce(PlainPass(exact.features_BD, labels_LB), exact.weight_KD, exact.bias_K, labels_LB)
    drop_B = truth.state.shift_B - found.state.shift_B  # the two choose their shifts in different ways
    factor_B = drop_B.exp()
    moment_B = truth.state.moment_B + drop_B * truth.state.sum_B
    moment_BD = truth.sums.moment_weight_BD + drop_B[:, None] * truth.sums.exp_weight_BD
    expected = [
        truth.exp_KB * factor_B,
        truth.state.sum_B * factor_B,
        moment_B * factor_B,
        truth.state.label_logit_LB,
        *maxima_beside_labels(exact, labels_LB),
        truth.sums.exp_weight_BD * factor_B[:, None],
        moment_BD * factor_B[:, None],
        truth.sums.weight_sum_D,
    ]
    for one, two in zip([found.exp_KB, *found.state[1:], *found.sums], expected, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=2e-5, atol=2e-5 * largest(two))

    again_KB, tile = torch.empty_like(found.exp_KB), Tile(0, num_labels, NONE, NONE, NONE)
    compiled.exponentiate(tile, problem.weight_KD, problem.bias_K, again_KB, found.state.shift_B)
    assert torch.equal(again_KB, found.exp_KB)

    gradient_KD = torch.empty_like(problem.weight_KD)
    compiled.write_gradient(found.exp_KB, problem.features_BD, gradient_KD)
    torch.testing.assert_close(gradient_KD.double(), found.exp_KB.double() @ exact.features_BD, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_a_gradient_too_large_for_the_caches_is_whole() -> None:
    exp_KB, rows_BD = torch.rand(2**20 + 5, 2), torch.rand(2, 16)
    gradient_KD = torch.full((len(exp_KB), 16), torch.nan)
    assert gradient_KD.nbytes > 2**26
    make_pass(rows_BD, torch.zeros(1, 2, dtype=torch.int64)).write_gradient(exp_KB, rows_BD, gradient_KD)
    torch.testing.assert_close(gradient_KD, exp_KB @ rows_BD)


@needs_compiler
def test_more_rows_than_every_thread_may_sum_products_of(threads: Callable[[int], None]) -> None:
    """Sums of so many rows take more than 2**25 bytes in two threads."""
    threads(2)
    features_BD, weight_KD = torch.randn(6000, 768) / 28, torch.randn(200, 768)
    labels_LB = torch.arange(6000)[None] % 200
    actual = reduce(make_pass(features_BD, labels_LB), weight_KD, None, labels_LB, shift=0.0)
    torch.testing.assert_close(actual.sums.exp_weight_BD, actual.exp_KB.T @ weight_KD, rtol=1e-4, atol=1e-3)


@needs_compiler
def test_the_same_bits_on_any_number_of_threads_and_in_any_call(threads: Callable[[int], None]) -> None:
    problem = make_problem(3, 64, 5000, num_features=24).to(torch.float32)
    labels_LB = two_labels(problem)
    results = []
    for num_threads in (1, 2, 3, 1):
        threads(num_threads)
        compiled = make_pass(problem.features_BD, labels_LB)
        reduced = reduce(compiled, problem.weight_KD, problem.bias_K, labels_LB)
        gradient_KD = torch.empty_like(problem.weight_KD)
        compiled.write_gradient(reduced.exp_KB, problem.features_BD, gradient_KD)
        results.append([reduced.exp_KB, *reduced.state, gradient_KD])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def products_of_four_threads() -> np.ndarray:
    """Sums of products that four threads are asked for, where their memory holds NaN to begin with."""
    torch.set_num_threads(4)
    problem = make_problem(3, 64, 2000, num_features=1024).to(torch.float32)
    WORKSPACE.empty((4, 2 * 64 * 1024), torch.float32).fill_(
        torch.nan
    )  # returns to the pool, and is what they are given
    labels_LB = two_labels(problem)
    return reduce(make_pass(problem.features_BD, labels_LB), problem.weight_KD, None, labels_LB).sums[0].numpy()


@pytest.mark.long
@needs_compiler
def test_fewer_threads_than_were_asked_for_sum_the_same(threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP grants fewer under OMP_THREAD_LIMIT, under OMP_DYNAMIC on a busy machine, and inside a parallel region."""
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        limited = pool.apply(products_of_four_threads)
    threads(4)
    np.testing.assert_array_equal(limited, products_of_four_threads())


@needs_compiler
def test_exponentials_are_those_of_float64() -> None:
    logits_KB = torch.linspace(-100.0, 7.0, 20_000)[:, None].repeat(1, 2).contiguous()
    truth = logits_KB.double()
    exp_KB = reduce_logits(logits_KB, torch.tensor([[0, 19_999]]), shift=0.0).exp_KB
    inside = (truth > -87) & (truth != truth[-1])
    error = ((exp_KB.double() - truth.exp()) / truth.exp())[inside].abs().max()
    assert error < 2e-7
    assert (exp_KB[truth < -87] == 0).all()


@needs_compiler
def test_a_raised_shift_costs_no_digit() -> None:
    """A row's maximum within `MAX_ABOVE_SHIFT` of the first classes' leaves the shift alone; one beyond raises it."""
    for height, is_raised in ((MAX_ABOVE_SHIFT - 0.5, False), (MAX_ABOVE_SHIFT + 0.5, True), (500.0, True)):
        logits_KB = torch.zeros(600, 1)
        logits_KB[500] = height
        _, state, sums = reduce_logits(logits_KB, torch.tensor([[3]]))
        assert state.shift_B.item() == (height if is_raised else 0.0)
        total = state.sum_B.double().log() + state.shift_B.double()
        torch.testing.assert_close(
            total,
            torch.logaddexp(torch.tensor([598.0]).double().log(), torch.tensor([height]).double()),
            rtol=1e-6,
            atol=0,
        )
        # the weight is the logits: 0 but for one class
        torch.testing.assert_close(sums.exp_weight_BD[0] / height, (height - state.shift_B).exp())
        assert (state.max_before_B.item(), state.max_after_B.item()) == (0.0, height)


@needs_compiler
def test_sums_of_earlier_tiles_follow_a_raised_shift() -> None:
    """The classes in two tiles, of which the second raises the shift, sum up to what they do in one."""
    problem = make_problem(5, 9, 400, num_features=20).to(torch.float32)
    problem.weight_KD[250:] *= 12
    labels_LB = two_labels(problem)
    compiled = make_pass(problem.features_BD, labels_LB)
    whole = reduce(compiled, problem.weight_KD, problem.bias_K, labels_LB)
    state = RowState.start(labels_LB, torch.float32, moments=True)
    sums = ClassSums(torch.zeros(9, 20), torch.zeros(9, 20), torch.zeros(20))
    shifts = []
    for start, stop in ((0, 250), (250, 400)):
        weight_KD, bias_K = problem.weight_KD[start:stop], problem.bias_K[start:stop]
        compiled.reduce(
            Tile(start, stop, NONE, NONE, NONE), weight_KD, bias_K, torch.empty(stop - start, 9), state, sums
        )
        shifts.append(state.shift_B.clone())
    assert (shifts[1] > shifts[0]).all()
    for one, two in zip([*state, *sums], [*whole.state, *whole.sums], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * largest(two))


@needs_compiler
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_finite_ends_and_spoils_no_other(kind: str, value: float) -> None:
    """An infinite logit lies above every shift, and no comparison with NaN holds: neither may be tried for ever."""
    problem = make_problem(2, 5, 600, num_features=24).to(torch.float32)
    sound = evaluate(problem, kind, "tiled_cpu")
    problem.features_BD[2, 0] = value
    spoilt = evaluate(problem, kind, "tiled_cpu")
    others = torch.arange(5) != 2
    for name in ("cross_entropy_B", "regularizer_B", "lse_B", "hit_B", "joint_gradient", "regularizer_gradient"):
        assert torch.equal(spoilt[name][others], sound[name][others]), name
    assert not spoilt["cross_entropy_B"][2].isfinite()
    assert not spoilt["weight_gradient"].isfinite().any()


@needs_compiler
def test_memory_that_is_not_to_be_had_is_an_error_and_not_the_end_of_the_process() -> None:
    """More rows than any memory holds, which have no label."""
    features_BD, labels_LB = torch.zeros(1, 16), torch.zeros(0, 2**60, dtype=torch.int64)
    with pytest.raises(MemoryError, match="the loss on the CPU"):
        make_pass(features_BD, labels_LB).exponentiate(
            Tile(0, 3, NONE, NONE, NONE), torch.zeros(3, 16), None, torch.zeros(3, 1), torch.zeros(1)
        )


# ------------------------------------------------------------------------------------------------------- without a compiler


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("margin", [4, 16, 80])
def test_plain_pytorch_is_as_accurate(kind: str, margin: int, plain: None, tile_classes: int) -> None:
    problem = margin_problem(margin)
    truth = evaluate(problem.to(torch.float32).to(torch.float64), kind, "reference")
    assert_same(evaluate(problem.to(torch.float32), kind, "tiled_cpu"), truth, 1e-5)
