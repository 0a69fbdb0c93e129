"""What `impl="triton"` promises beside accuracy; runs in the interpreter's process, as `triton_cases` does."""

from itertools import pairwise

import torch
from kernel_problems import Problem, assert_same, check_operator, evaluate, make_problem
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton_cases import Case, cast, on_device

from rlpheads.kernels.gpu import slab_plan, triton_loss
from rlpheads.kernels.gpu.heads import whole_heads
from rlpheads.kernels.random_label_loss import random_label_loss, random_label_losses
from rlpheads.kernels.rows.partials import ClassRange, LogitGradient, Needs
from rlpheads.kernels.rows.row_softmax import merge_partials
from rlpheads.kernels.rows.terms import TERMS
from rlpheads.kernels.stages import LocalHead, attach_class_gradients, local_feature_gradient


def use_small_slabs() -> None:
    """Slabs of 128 classes from here on, so that small problems have several."""
    slab_plan.SLAB_BYTES, slab_plan.SLAB_ROUNDING = 1, 128


def use_default_slabs() -> None:
    slab_plan.SLAB_BYTES, slab_plan.SLAB_ROUNDING = 32 * 2**20, 1024


def assert_slabs_change_little(kind: str, seed: int, memory_budget: int) -> None:
    """Kept whole, kept in part, not kept at all: the same but for the order of the sums."""
    problem = make_problem(seed, 5, 700, num_features=24, spread=2.0).to(torch.float32)
    whole = evaluate(problem, kind, "triton")
    use_small_slabs()
    try:
        sliced = evaluate(problem, kind, "triton", memory_budget=memory_budget)
    finally:
        use_default_slabs()
    assert_same(sliced, whole, 2e-6)


def assert_two_runs_give_the_same_bits(kind: str) -> None:
    problem = cast(make_problem(3, 9, 600, num_features=32), torch.bfloat16, torch.bfloat16)
    one, two = (evaluate(problem, kind, "triton") for _ in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)


def climbing_logits(dtype: torch.dtype, step: float, *, falling: bool) -> Problem:
    """Logits whose largest climbs by hundreds, far beyond the first classes and from slab to slab."""
    logits_K = torch.arange(700, dtype=torch.float64).div(50, rounding_mode="floor") * step
    logits_K = (logits_K + torch.linspace(0, 0.5, 700, dtype=torch.float64)).flip(0) if falling else logits_K
    labels_B = torch.tensor([0, 1, 300, 301, 698, 699])
    return Problem(torch.ones(6, 1, dtype=dtype), logits_K[:, None].to(dtype), labels_B)


def assert_climbing_logits_lose_nothing(
    dtype: torch.dtype, kind: str, step: float, falling: bool, slabs: bool, device: str = "cpu"
) -> None:
    problem = on_device(climbing_logits(dtype, step, falling=falling), device)
    truth = evaluate(problem.to(torch.float64), kind, "reference")
    use_small_slabs() if slabs else use_default_slabs()
    try:
        found = evaluate(problem, kind, "triton", memory_budget=0 if slabs else None)
    finally:
        use_default_slabs()
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    assert all(value.isfinite().all() for value in found.values() if value.is_floating_point())
    assert_same(found, truth, tolerance)


def assert_class_ranges_combine(kind: str, cuts: tuple[int, ...]) -> None:
    """The three stages over ranges, as sharded heads take them."""
    problem = make_problem(3, 8, 50, spread=6.0).to(torch.float32)
    expected = evaluate(problem, kind, "reference")
    labels = problem.row_labels(torch.float32)
    weight_KD, bias_K = problem.weight_KD.requires_grad_(), problem.bias_K.requires_grad_()
    heads = [ClassRange(weight_KD[start:stop], bias_K[start:stop], start, 50) for start, stop in pairwise(cuts)]
    needs = Needs(kind, feature_gradient=True, class_gradients=True, memory_budget=0)
    stage_one = [
        triton_loss.local_partials(problem.features_BD, head.detach(), labels.index_LB, needs) for head in heads
    ]
    rows = merge_partials([partials for partials, _, _ in stage_one], labels, 50)
    coefficients = TERMS["cross_entropy"].coefficients(rows)
    gradient_BD = sum(
        local_feature_gradient(head, labels.index_LB, rows.shift_B, TERMS[kind].coefficients(rows), partials, products)
        for head, (partials, products, _) in zip(heads, stage_one, strict=True)
    )
    value_B = TERMS["cross_entropy"].value_B(rows)
    parts = [
        attach_class_gradients(
            value_B, [LocalHead(problem.features_BD, head, exponentials)], rows, coefficients, triton_loss
        )
        for head, (_, _, exponentials) in zip(heads, stage_one, strict=True)
    ]
    weight_gradient, bias_gradient = torch.autograd.grad(sum(part_B.sum() for part_B in parts), (weight_KD, bias_K))
    actual = {
        "cross_entropy_B": value_B,
        "hit_B": rows.hit,
        "margin_B": rows.margin,
        "weight_gradient": weight_gradient,
        "bias_gradient": bias_gradient,
        "regularizer_gradient": gradient_BD.detach(),
    }
    assert_same(actual, {name: expected[name] for name in actual}, 3e-6)


def assert_ties_go_to_the_lowest_label() -> None:
    tied_K = torch.zeros(600)
    tied_K[[3, 290, 580]] = 2.5
    labels_B = torch.tensor([0, 3, 290, 580, 599])
    for logits_K, winner in ((tied_K, 1), (tied_K.flip(0), None)):
        loss = random_label_loss(torch.ones(5, 1), logits_K[:, None], labels_B, impl="triton")
        assert loss.hit_B.tolist() == [place == winner for place in range(5)]
    assert random_label_loss(torch.ones(1, 1), tied_K.flip(0)[:, None], torch.tensor([19]), impl="triton").hit_B.item()


def assert_a_row_of_nan_leaves_the_others_alone() -> None:
    problem = make_problem(1, 4, 300).to(torch.float32)
    broken_BD = problem.features_BD.clone()
    broken_BD[1] = torch.nan
    clean = evaluate(problem, "unlikelihood", "triton")
    broken = evaluate(Problem(broken_BD, problem.weight_KD, problem.labels_B, problem.bias_K), "unlikelihood", "triton")
    for name in ("cross_entropy_B", "regularizer_B", "bits_B", "regularizer_gradient"):
        torch.testing.assert_close(broken[name][[0, 2, 3]], clean[name][[0, 2, 3]])
        assert broken[name][1].isnan().all()
    assert not broken["hit_B"][1]


def assert_inputs_of_all_kinds() -> None:
    """No rows, expanded and strided operands, int32 labels, the labels by (table, index, draw), K=2 with both labels."""
    empty = evaluate(make_problem(1, 0, 11).to(torch.float32), "uniform", "triton")
    assert empty["regularizer_gradient"].shape == (0, 5)
    assert not empty["weight_gradient"].any()
    problem = make_problem(3, 6, 23).to(torch.float32)
    expected = evaluate(problem, "uniform", "triton")
    strided = Problem(
        problem.features_BD.T.contiguous().T,
        problem.weight_KD.repeat_interleave(2, 0)[::2],
        problem.labels_B.to(torch.int32).repeat_interleave(3)[::3],
        problem.bias_K.repeat_interleave(2)[::2],
        (problem.pair[0].to(torch.int32), problem.pair[1]),
    )
    assert_same(evaluate(strided, "uniform", "triton"), expected, 1e-6)
    expanded_BD = problem.features_BD[:1].expand(6, -1)
    by_expansion, by_copy = (
        evaluate(Problem(features_BD, problem.weight_KD, problem.labels_B), "entropy", "triton")
        for features_BD in (expanded_BD, expanded_BD.clone())
    )
    assert_same(by_expansion, by_copy, 1e-6)
    table, index_B = torch.arange(46).view(2, 23) % 23, problem.labels_B
    by_table = random_label_loss(problem.features_BD, problem.weight_KD, (table, index_B, 1), impl="triton")
    by_label = random_label_loss(problem.features_BD, problem.weight_KD, index_B, impl="triton")
    assert torch.equal(by_table.cross_entropy_B, by_label.cross_entropy_B)
    labels_B, weight_B = torch.tensor([0, 1, 1, 0]), torch.tensor([0.2, 0.5, 1.0, 0.0])
    two = Problem(*_operands(make_problem(2, 4, 2).to(torch.float32)), labels_B, None, (1 - labels_B, weight_B))
    for kind in ("unlikelihood", "uniform", "entropy"):
        assert_same(evaluate(two, kind, "triton"), evaluate(two, kind, "reference"), 3e-6)


def _operands(problem: Problem) -> tuple[Tensor, Tensor]:
    return problem.features_BD, problem.weight_KD


def assert_backward_twice_and_many_heads() -> None:
    problem = make_problem(2, 5, 40).to(torch.float32)
    features_BD, weight_KD = (tensor.requires_grad_() for tensor in _operands(problem))
    other_KD = weight_KD.detach().flip(0).requires_grad_()
    losses = random_label_losses(
        features_BD, [weight_KD, other_KD], [problem.labels_B] * 2, regularizer="uniform", impl="triton"
    ).by_head()
    total = sum((loss.cross_entropy_B + loss.regularizer_B).sum() for loss in losses)
    inputs = (features_BD, weight_KD, other_KD)
    one, two = (torch.autograd.grad(total, inputs, retain_graph=True) for _ in "ab")
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))
    alone = [
        random_label_loss(features_BD, head_KD, problem.labels_B, regularizer="uniform", impl="triton")
        for head_KD in (weight_KD, other_KD)
    ]
    by_one = torch.autograd.grad(sum((loss.cross_entropy_B + loss.regularizer_B).sum() for loss in alone), inputs)
    for both, single in zip(one, by_one, strict=True):
        torch.testing.assert_close(both, single)


def assert_traces(kind: str) -> None:
    """Fake tensors have the shapes and dtypes of the real ones; the operators pass torch's own check."""
    problem = cast(make_problem(3, 4, 30), torch.bfloat16, torch.float32)
    real = evaluate(problem, kind, "triton")
    with FakeTensorMode():
        fake = evaluate(cast(make_problem(3, 4, 30), torch.bfloat16, torch.float32), kind, "triton")
    assert all(isinstance(value, FakeTensor) for value in fake.values())
    assert all((fake[name].shape, fake[name].dtype) == (real[name].shape, real[name].dtype) for name in real)
    labels_LB = torch.stack([problem.labels_B, problem.pair[0]])
    heads = triton_loss.HeadsInMemory(problem.features_BD, problem.weight_KD, problem.bias_K, labels_LB)
    first = triton_loss.HeadsPassArguments(heads, Needs(kind, True, True, 10**6))
    check_operator("triton_partials", first)
    exponentials = triton_loss.heads_partials(*first)[-1]
    gradient = LogitGradient(torch.rand_like(exponentials.tile_shift_CB), torch.rand(2, 4))
    dtypes, wanted = (torch.float32, torch.float32), (True, True)
    check_operator(
        "triton_class_gradients", triton_loss.HeadsGradientArguments(heads, exponentials, gradient, *dtypes, *wanted)
    )
    everything = whole_heads.Wanted(kind, True, True, True, 10**6)
    check_operator("triton_heads", (heads, problem.pair[1].float(), everything))


def assert_compiles_into_one_graph(dynamic: bool) -> None:
    def step(features_BD: Tensor, weight_KD: Tensor, labels_B: Tensor) -> Tensor:
        loss = random_label_loss(features_BD, weight_KD, labels_B, regularizer="uniform", joint=True, impl="triton")
        return loss.cross_entropy_B.mean() + loss.regularizer_B.mean() + loss.joint_B.mean() + loss.hit_B.sum()

    problem = make_problem(2, 8, 40).to(torch.float32)
    inputs = (*(tensor.requires_grad_() for tensor in _operands(problem)), problem.labels_B)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected, actual = (torch.autograd.grad(call(*inputs), inputs[:2]) for call in (step, compiled))
    for one, two in zip(expected, actual, strict=True):
        torch.testing.assert_close(two, one)


def saved_bytes(memory_budget: int | None) -> int:
    """Bytes of the largest tensor that autograd keeps of a problem with 64 rows and 700 classes in bfloat16."""
    problem = Case(64, 8, 700, weight_dtype=torch.bfloat16, seed=2).problem()
    problem = cast(problem, torch.bfloat16, torch.bfloat16)
    sizes = [0]

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    use_small_slabs()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            random_label_loss(
                problem.features_BD,
                problem.weight_KD.requires_grad_(),
                problem.labels_B,
                impl="triton",
                memory_budget=memory_budget,
            )
    finally:
        use_default_slabs()
    return max(sizes)
