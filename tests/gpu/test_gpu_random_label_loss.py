"""The Triton kernels on a real CUDA device: what the interpreter and the compiler alone cannot show."""

from pathlib import Path

import pytest
import torch
import triton_behaviour as behaviour
import triton_labels
from device_waits import no_device_waits
from kernel_problems import KINDS, Problem, assert_same, evaluate
from torch import Tensor
from triton_cases import Case, assert_as_accurate_as_plain, cast, grid, on_device

from rlpheads.kernels.gpu.tuned_tiles import FILE_VARIABLE, Winner, read_winners, save_winner
from rlpheads.kernels.random_label_loss import random_label_loss, random_label_losses
from rlpheads.kernels.tools import tune

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="runs Triton kernels on a CUDA device, and there is none"),
]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
kinds = pytest.mark.parametrize("kind", KINDS)


def large_problem(num_rows: int, num_labels: int, *, num_features: int = 256, seed: int = 2) -> Problem:
    """Features in bfloat16 and the weight in float32, as mixed precision passes them."""
    problem = Case(num_rows, num_features, num_labels, seed=seed).problem()
    return on_device(cast(problem, BF16, FP32), "cuda")


@pytest.mark.parametrize("num_rows", [1, 7, 128, 257])
def test_error_against_float64(num_rows: int) -> None:
    for case in grid(num_rows):
        assert_as_accurate_as_plain(case, "cuda")


@kinds
@pytest.mark.parametrize(("dtype", "weight_dtype"), [(BF16, BF16), (FP16, FP32), (FP16, FP16), (FP32, FP32)], ids=str)
def test_every_dtype(kind: str, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    assert_as_accurate_as_plain(Case(200, 192, 1003, kind, dtype, weight_dtype, seed=3), "cuda")


@kinds
def test_a_hundred_thousand_labels(kind: str) -> None:
    assert_as_accurate_as_plain(Case(64, 768, 100_003, kind), "cuda")
    assert_as_accurate_as_plain(Case(64, 768, 100_003, kind, memory_budget=0), "cuda")


@kinds
@pytest.mark.parametrize("margin", [4, 16, 80])
def test_every_margin(kind: str, margin: int) -> None:
    assert_as_accurate_as_plain(Case(12, 16, 500, kind, margin=margin), "cuda")


@kinds
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize(("step", "falling", "slabs"), [(20.0, False, True), (6.0, False, False), (20.0, True, False)])
def test_logits_that_leave_the_first_guess_far_behind(
    dtype: torch.dtype, kind: str, step: float, falling: bool, slabs: bool
) -> None:
    behaviour.assert_climbing_logits_lose_nothing(dtype, kind, step, falling, slabs, "cuda")


def step(problem: Problem, kind: str, memory_budget: int | None = None) -> tuple[Tensor, Tensor]:
    """Forward and backward of all that a training step asks of the loss."""
    features_BD, weight_KD = problem.features_BD.requires_grad_(), problem.weight_KD.requires_grad_()
    loss = random_label_loss(
        features_BD, weight_KD, problem.labels_B, pair=problem.pair, regularizer=kind, memory_budget=memory_budget
    )
    return torch.autograd.grad((loss.cross_entropy_B + loss.regularizer_B).mean(), (features_BD, weight_KD))


@kinds
@pytest.mark.parametrize("memory_budget", [None, 0])
def test_nothing_waits_for_the_device(kind: str, memory_budget: int | None) -> None:
    problem = large_problem(96, 20_003, seed=0)
    step(problem, kind, memory_budget)  # compiles
    with no_device_waits():
        step(problem, kind, memory_budget)


@kinds
def test_two_runs_give_the_same_bits(kind: str) -> None:
    problem = large_problem(512, 20_003)
    one, two = step(problem, kind), step(problem, kind)
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))


@pytest.mark.parametrize("memory_budget", [None, 0])
@pytest.mark.parametrize("kind", ["unlikelihood", "entropy"])
def test_no_buffer_of_float32_logits(kind: str, memory_budget: int | None) -> None:
    """Beside its gradients a step takes the exponentials, where they are kept, the rounded weight, and slabs."""
    problem = large_problem(1024, 50_000)
    step(large_problem(64, 1000), kind)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(problem, kind, memory_budget)
    extra = torch.cuda.max_memory_allocated() - before
    gradients, rounded_weight, kept = problem.weight_KD.nbytes, problem.weight_KD.nbytes // 2, 2 * 1024 * 50_000
    slabs, rest = 3 * 32 * 2**20, 32 * 2**20
    assert extra <= gradients + rounded_weight + (kept if memory_budget is None else 0) + slabs + rest


@pytest.mark.parametrize("num_rows", [48, 300])
def test_every_tile_that_can_be_measured_gives_the_same(
    num_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlpheads.kernels.gpu import triton_launch

    problem, path = large_problem(num_rows, 20_003), tmp_path / "tiles.json"
    usual = evaluate(problem, "unlikelihood", "triton", memory_budget=0)
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    shape = ["--rows", str(num_rows), "--features", "256", "--classes", "20003"]
    assert tune.main(shape) == 0
    ((case, winner),) = read_winners(path).items()
    candidates = triton_launch.candidate_tiles(problem.features_BD, case)
    assert winner.tiles in candidates
    for tiles in candidates:
        save_winner(path, case, Winner(tiles, 1.0, 1.0))
        assert_same(evaluate(problem, "unlikelihood", "triton", memory_budget=0), usual, 1e-3)


def test_labels_by_table() -> None:
    triton_labels.assert_every_kind_of_source("cuda")
    triton_labels.assert_an_index_outside_the_table_is_no_class("cuda")
    for with_pairs in (False, True):
        triton_labels.assert_losses_by_table(with_pairs, "cuda")


def test_an_index_outside_the_table_shows_in_the_loss_and_waits_for_nothing() -> None:
    problem = large_problem(4, 1000)
    table_MN = torch.zeros(1, 9, dtype=torch.int64, device="cuda")
    index_B = torch.tensor([0, 9, -1, 8], device="cuda")
    with no_device_waits():
        loss = random_label_loss(problem.features_BD, problem.weight_KD, (table_MN, index_B, 0))
    assert loss.cross_entropy_B.isinf().tolist() == [False, True, False, False]


def test_auto_takes_triton() -> None:
    problem = large_problem(32, 1000)
    auto, triton = (evaluate(problem, "uniform", impl) for impl in ("auto", "triton"))
    assert all(torch.equal(auto[name], triton[name]) for name in auto)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic: bool) -> None:
    problem = large_problem(32, 1000)
    inputs = (problem.features_BD.requires_grad_(), problem.weight_KD.requires_grad_())

    def total(features_BD: Tensor, weight_KD: Tensor) -> Tensor:
        loss = random_label_loss(features_BD, weight_KD, problem.labels_B, regularizer="uniform")
        return loss.cross_entropy_B.mean() + loss.regularizer_B.mean()

    compiled = torch.compile(total, fullgraph=True, dynamic=dynamic)
    expected, actual = (torch.autograd.grad(call(*inputs), inputs) for call in (total, compiled))
    for one, two in zip(expected, actual, strict=True):
        torch.testing.assert_close(two, one)


@pytest.mark.parametrize(("num_heads", "num_labels"), [(1, 5000), (4, 5000), (4, 10)])
def test_a_step_is_captured_and_replayed(num_heads: int, num_labels: int) -> None:
    """As a CUDA graph, with other features, labels and weights: the bits of the same step taken eagerly."""
    problems = [large_problem(64, num_labels, seed=1 + 6 * n) for n in range(num_heads)]
    features = [problem.features_BD.requires_grad_() for problem in problems]
    weights = [problem.weight_KD.requires_grad_() for problem in problems]
    biases = [problem.bias_K.requires_grad_() for problem in problems if problem.bias_K is not None]
    labels = [problem.labels_B for problem in problems]
    inputs = [*features, *weights, *biases]

    def step() -> list[Tensor]:
        losses = random_label_losses(features, weights, labels, biases=biases, regularizer="uniform").by_head()
        total = sum((loss.cross_entropy_B + loss.regularizer_B).mean() for loss in losses)
        return [total, *torch.autograd.grad(total, inputs)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for tensor in inputs:
            tensor.mul_(0.5)
        for labels_B in labels:
            labels_B.copy_((labels_B + 1) % num_labels)
    graph.replay()
    assert all(torch.equal(*pair) for pair in zip(captured, step(), strict=True))
