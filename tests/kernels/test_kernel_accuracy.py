"""Low-precision results against float64, at every margin, spread and order of the logits."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from kernel_problems import KINDS, Problem, evaluate, make_problem, margin_problem, relative_error
from torch import Tensor

from rlpheads.kernels.cpu import tiled_cpu
from rlpheads.kernels.rows import reference
from rlpheads.kernels.rows.partials import ClassRange, Needs
from rlpheads.kernels.rows.row_softmax import merge_partials

kinds = pytest.mark.parametrize("kind", KINDS)
GRADIENTS = ("weight_gradient", "regularizer_gradient", "joint_gradient")


def assert_as_accurate_as_plain(problem: Problem, kind: str) -> None:
    """The error in float32 is at most twice the plain implementation's in float32, and 1e-6."""
    truth = evaluate(problem.to(torch.float32).to(torch.float64), kind, "reference")
    plain = evaluate(problem.to(torch.float32), kind, "reference")
    tiled = evaluate(problem.to(torch.float32), kind, "tiled_cpu")
    for name in GRADIENTS:
        bound = 2 * relative_error(plain[name], truth[name]) + 1e-6
        assert relative_error(tiled[name], truth[name]) <= bound, name
    for name in ("cross_entropy_B", "regularizer_B", "bits_B", "margin_B", "lse_B"):
        scale = 1 + truth[name].abs().max()
        plain_error, error = ((result[name].double() - truth[name]).abs().max() / scale for result in (plain, tiled))
        assert error <= 2 * plain_error + 1e-6, name


@kinds
@pytest.mark.parametrize("margin", [0, 4, 8, 12, 16, 24, 40, 80])
def test_every_margin(kind: str, margin: int, tile_classes: int) -> None:
    assert_as_accurate_as_plain(margin_problem(margin), kind)


@pytest.mark.parametrize("margin", [4, 12, 16, 40, 80])
@pytest.mark.parametrize("impl", ["reference", "tiled_cpu"])
def test_unlikelihood_approaches_its_limit(margin: int, impl: str) -> None:
    """As p_y → 1 the gradient tends to W_y minus the others' softmax mean of W; p_y/(1 − p_y)·S is NaN from 16 on."""
    problem = margin_problem(margin).to(torch.float32)
    weight_KD, labels_B = problem.weight_KD.double(), problem.labels_B
    logits_BK = problem.features_BD.double() @ weight_KD.T
    others_BK = logits_BK.scatter(1, labels_B[:, None], -torch.inf)
    p_B = torch.sigmoid(logits_BK.gather(1, labels_B[:, None])[:, 0] - others_BK.logsumexp(1))
    expected_BD = p_B[:, None] * (weight_KD[labels_B] - others_BK.softmax(1) @ weight_KD)
    result = evaluate(problem, "unlikelihood", impl)
    assert relative_error(result["regularizer_gradient"], expected_BD) < 2e-6


@kinds
def test_entropy_like_gradients_survive_a_dominant_class_that_is_no_label(kind: str) -> None:
    problem = margin_problem(60)
    other = Problem(problem.features_BD, problem.weight_KD, (problem.labels_B + 1) % 500)
    assert_as_accurate_as_plain(other, kind)


@kinds
@pytest.mark.parametrize("spread", [0.01, 0.1, 1.0, 10.0, 30.0])
def test_every_spread(kind: str, spread: float, tile_classes: int) -> None:
    assert_as_accurate_as_plain(make_problem(3, 16, 700, num_features=24, spread=spread), kind)


@pytest.mark.parametrize("lead", [0.0, 80.0])
@pytest.mark.parametrize("with_pair", [False, True])
def test_the_sum_of_many_classes_keeps_its_digits(with_pair: bool, lead: float) -> None:
    """Near chance the gradient of `uniform` is what p_j differs from 1/K; e^{−log Σ} would be off by 1e-6 at this K."""
    problem = make_problem(6, 32, 100_003, num_features=4, spread=0.01).to(torch.float32)
    bias_K = torch.zeros(100_003).index_fill(0, problem.labels_B, lead)
    labels = (problem if with_pair else replace(problem, pair=None)).row_labels(torch.float32)
    head = ClassRange(problem.weight_KD, bias_K, 0, 100_003)
    needs = Needs(None, feature_gradient=False, class_gradients=False, memory_budget=0)
    partials, _, _ = tiled_cpu.local_partials(problem.features_BD, head, labels.index_LB, needs)
    rows = merge_partials([partials], labels, 100_003)
    logits_BK = problem.features_BD.double() @ problem.weight_KD.double().T + bias_K.double()
    expected_B = torch.exp(rows.shift_B.double() - logits_BK.logsumexp(1))
    assert float((rows.inverse_sum_B.double() / expected_B - 1).abs().max()) < (2e-7 if lead == 0 else 2e-6)


@kinds
@pytest.mark.parametrize(("first", "last"), [(-300, 300), (300, -300)])
def test_logits_that_rise_or_fall_by_hundreds(kind: str, first: int, last: int, small_tiles: int) -> None:
    """A running maximum that climbs far beyond the range of exp, tile after tile, and one that never moves."""
    logits_K = torch.linspace(first, last, 60, dtype=torch.float64)
    labels_B = torch.tensor([0, 1, 29, 30, 58, 59])
    problem = Problem(torch.ones(6, 1, dtype=torch.float64), logits_K[:, None].contiguous(), labels_B)
    assert_as_accurate_as_plain(problem, kind)


@kinds
def test_a_label_far_above_the_first_classes(kind: str) -> None:
    """Its own term is no part of any sum, so that it cannot overflow one."""
    problem = make_problem(2, 8, 9000, num_features=3)
    labels_B = torch.arange(8) * 1000 + 500
    weight_KD = problem.weight_KD.clone()
    weight_KD[labels_B] = 200 * problem.features_BD / problem.features_BD.square().sum(1, keepdim=True)
    result = evaluate(Problem(problem.features_BD, weight_KD, labels_B).to(torch.float32), kind, "tiled_cpu")
    assert all(value.isfinite().all() for value in result.values() if value.is_floating_point())
    assert_as_accurate_as_plain(Problem(problem.features_BD, weight_KD, labels_B), kind)


def test_a_row_of_nan_leaves_the_other_rows_alone() -> None:
    problem = make_problem(1, 4, 30)
    broken_BD = problem.features_BD.clone()
    broken_BD[1] = torch.nan
    clean = evaluate(problem, "unlikelihood", "tiled_cpu")
    broken = evaluate(
        Problem(broken_BD, problem.weight_KD, problem.labels_B, problem.bias_K), "unlikelihood", "tiled_cpu"
    )
    keep = [0, 2, 3]
    for name in ("cross_entropy_B", "regularizer_B", "bits_B", "regularizer_gradient"):
        torch.testing.assert_close(broken[name][keep], clean[name][keep])
        assert broken[name][1].isnan().all()
    assert not broken["hit_B"][1]


# ------------------------------------------------------------------------------------------------------------- bfloat16


def plain_gradients(problem: Problem, kind: str) -> dict[str, Tensor]:
    """What users write: a linear layer in the inputs' own dtype, losses of its logits in float32."""
    features_BD, weight_KD = (t.detach().requires_grad_() for t in (problem.features_BD, problem.weight_KD))
    bias_K = problem.bias_K
    labels = problem.row_labels(torch.float32)
    head_BK = F.linear(features_BD.detach(), weight_KD, bias_K).float()
    features_BK = F.linear(features_BD, weight_KD.detach(), bias_K).float()
    (weight_gradient,) = torch.autograd.grad(reference.cross_entropy(head_BK, labels).sum(), weight_KD)
    losses = {"joint_gradient": reference.cross_entropy, "regularizer_gradient": reference.REFERENCE_REGULARIZERS[kind]}
    of_features = {
        name: torch.autograd.grad(loss(features_BK, labels).sum(), features_BD, retain_graph=True)[0]
        for name, loss in losses.items()
    }
    return {"weight_gradient": weight_gradient, **of_features}


@pytest.mark.long
@kinds
@pytest.mark.parametrize(
    ("num_rows", "num_features", "num_labels"), [(1, 16, 2), (7, 192, 10), (128, 768, 1003), (257, 16, 1000)]
)
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_bfloat16_is_no_worse_than_a_plain_linear_layer(
    kind: str, num_rows: int, num_features: int, num_labels: int, spread: float
) -> None:
    for seed in (2, 3):  # neither bias nor pair, and both
        low = make_problem(seed, num_rows, num_labels, num_features=num_features, spread=spread).to(torch.bfloat16)
        truth = evaluate(low.to(torch.float64), kind, "reference")
        tiled, plain = evaluate(low, kind, "tiled_cpu", memory_budget=0), plain_gradients(low, kind)
        for name in GRADIENTS:
            bound = 2 * relative_error(plain[name], truth[name]) + 1e-6
            assert relative_error(tiled[name], truth[name]) <= bound, (name, seed)


@pytest.mark.parametrize("impl", ["reference", "tiled_cpu"])
def test_two_labels_that_are_all_classes_and_lie_far_apart(impl: str) -> None:
    """Of two classes that both are labels no other is left, and the odds of the two exceed float32's range."""
    logits_BK = torch.tensor([[0.0, 120.0], [120.0, 0.0]])
    half_B = torch.full((2,), 0.5)
    problem = Problem(
        torch.eye(2), logits_BK.T.contiguous(), torch.tensor([0, 0]), None, (torch.tensor([1, 1]), half_B)
    )
    result = evaluate(problem, "unlikelihood", impl)
    assert all(value.isfinite().all() for value in result.values())
