"""All heads' rows behind the pass over their classes: in C++ what PyTorch computes, over any ranges of the classes."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from kernel_problems import KINDS, check_operator, relative_error
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from rlpheads.kernels import native
from rlpheads.kernels.cpu import tiled_cpu
from rlpheads.kernels.head_rows.feature_gradients import Summed, sum_feature_gradients
from rlpheads.kernels.head_rows.head_rows import HeadRows, head_rows
from rlpheads.kernels.rows.partials import NO_CLASS_SHIFT, ClassRange, Needs
from rlpheads.kernels.rows.row_softmax import LabelsOfRows
from rlpheads.kernels.stages import attach_class_gradients, feature_gradients_of_heads, pass_over_heads

NUM_ROWS, NUM_LABELS, DIMS = 7, 40, (5, 9, 9)
RANGES = {"one": (0, 40), "ragged": (0, 13, 37, 40), "of one label": (0, 1, 2, 40), "empty ones": (0, 0, 22, 22, 40)}
kinds = pytest.mark.parametrize("kind", KINDS)


class Heads(NamedTuple):
    """Several heads, of different widths, and the labels of their rows."""

    features: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]
    labels: LabelsOfRows

    def to(self, dtype: torch.dtype) -> "Heads":
        """The same numbers in a dtype."""
        features, weights, biases = ([each.to(dtype) for each in of_heads] for of_heads in self[:3])
        return Heads(features, weights, biases, self.labels)


class Found(NamedTuple):
    """What the holder of a range finds."""

    rows: HeadRows
    class_gradients: list[Tensor]
    feature_gradients: list[Tensor]
    """Of the cross-entropy, then of the regulariser."""


def drawn_heads(mixed: bool) -> Heads:
    generator = torch.Generator().manual_seed(int(mixed))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).mul(2)  # in float32, so that float64 has the same numbers

    index_LB = torch.randint(NUM_LABELS, (1 + mixed, len(DIMS) * NUM_ROWS), generator=generator)
    if mixed:
        index_LB[1, ::3] = index_LB[0, ::3]
    weight_B = torch.rand(index_LB.shape[1], generator=generator) if mixed else None
    return Heads(
        [draw(NUM_ROWS, dim) for dim in DIMS],
        [draw(NUM_LABELS, dim) for dim in DIMS],
        [draw(NUM_LABELS) for _ in DIMS],
        LabelsOfRows(index_LB, weight_B),
    )


def over_ranges(heads: Heads, bounds: tuple[int, ...], kind: str, upstream_R: Tensor) -> list[Found]:
    """The stages as the holder of each range runs them."""
    needs = [Needs(kind, feature_gradient=True, class_gradients=True, memory_budget=2**20)] * len(DIMS)
    passes, parameters = [], []
    for start, stop in pairwise(bounds):
        held = [[each[start:stop].clone().requires_grad_() for each in of_heads] for of_heads in heads[1:3]]
        ranges = [ClassRange(weight, bias, start, NUM_LABELS) for weight, bias in zip(*held, strict=True)]
        passes.append(pass_over_heads(tiled_cpu, heads.features, ranges, heads.labels.index_LB, needs))
        parameters.append([*held[0], *held[1]])
    gathered_NFR = torch.stack([each.packed_FR for each in passes])
    found = []
    for own, of_range in zip(passes, parameters, strict=True):
        rows = head_rows(gathered_NFR, heads.labels, NUM_LABELS, kind)
        local = [each.local for each in own.heads]
        value_R = attach_class_gradients(rows.cross_entropy_B, local, rows, rows.of_cross_entropy, tiled_cpu)
        of_features = [
            gradient_BD
            for term in ("cross_entropy", kind)
            for gradient_BD in feature_gradients_of_heads(tiled_cpu, own, rows, term, range(len(DIMS)))
        ]
        found.append(Found(rows, list(torch.autograd.grad(value_R, of_range, upstream_R.to(value_R))), of_features))
    return found


@kinds
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("compiled", [True, False])
def test_ranges_give_what_whole_heads_give(
    kind: str, mixed: bool, name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 against float64, which is PyTorch; of heads of different widths, with repeated second labels."""
    heads, upstream_R = drawn_heads(mixed), torch.rand(len(DIMS) * NUM_ROWS)
    (truth,) = over_ranges(heads.to(torch.float64), (0, NUM_LABELS), kind, upstream_R)
    if not compiled:
        monkeypatch.setattr(native, "load_library", lambda: None)
    found = over_ranges(heads, RANGES[name], kind, upstream_R)
    assert torch.equal(found[0].rows.hit_B, truth.rows.hit_B)
    for member in ("cross_entropy_B", "regularizer_B", "bits_B", "margin_B", "lse_B"):
        assert relative_error(getattr(found[0].rows, member), getattr(truth.rows, member)) <= 1e-5, member
    for number, expected in enumerate(truth.class_gradients):
        parts = [own.class_gradients[number] for own in found]
        assert relative_error(torch.cat(parts), expected) <= 1e-5
    for number, expected in enumerate(truth.feature_gradients):
        assert relative_error(sum(own.feature_gradients[number] for own in found), expected) <= 1e-5


@kinds
def test_some_heads_alone_and_narrower_weights(kind: str) -> None:
    """Weights in bfloat16 are widened as they are read; the sums are those of the numbers that they hold."""
    heads = drawn_heads(False)
    narrow = heads._replace(weights=[each.bfloat16() for each in heads.weights])
    needs = [Needs(kind, feature_gradient=number != 1, class_gradients=False, memory_budget=0) for number in range(3)]
    results = []
    for of_heads in (narrow, narrow.to(torch.float64)):
        ranges = [ClassRange(*of_head, 0, NUM_LABELS) for of_head in zip(*of_heads[1:3], strict=True)]
        own = pass_over_heads(tiled_cpu, of_heads.features, ranges, heads.labels.index_LB, needs)
        rows = head_rows(own.packed_FR[None], heads.labels, NUM_LABELS, kind)
        results.append(feature_gradients_of_heads(tiled_cpu, own, rows, kind, [2, 0]))
    for value, expected, dim in zip(*results, (9, 5), strict=True):
        assert value.shape == (NUM_ROWS, dim)
        assert relative_error(value, expected) <= 1e-5


@kinds
@pytest.mark.parametrize("compiled", [True, False])
def test_rows_without_any_class_but_their_label(kind: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All other classes are barred by a bias of −∞: p_y = 1, and no gradient is NaN."""
    if not compiled:
        monkeypatch.setattr(native, "load_library", lambda: None)
    heads = drawn_heads(False)
    bias_K = torch.full((NUM_LABELS,), -torch.inf)
    bias_K[3] = 0.0
    barred = heads._replace(biases=[bias_K] * 3, labels=LabelsOfRows(torch.full_like(heads.labels.index_LB, 3), None))
    for own in over_ranges(barred, (0, 20, 40), kind, torch.ones(len(DIMS) * NUM_ROWS)):
        assert not own.rows.cross_entropy_B.any()
        assert own.rows.hit_B.all()
        assert all(not each.any() for each in own.class_gradients)
        if kind in ("reversal", "entropy"):
            assert all(each.isfinite().all() for each in own.feature_gradients)


def test_a_row_that_is_not_finite_is_seen_by_the_holder_of_every_range() -> None:
    heads = drawn_heads(False)
    heads.features[0][2, 1] = torch.nan
    for own in over_ranges(heads, (0, 13, 40), "uniform", torch.ones(len(DIMS) * NUM_ROWS)):
        assert own.rows.cross_entropy_B.isnan().nonzero().flatten().tolist() == [2]
        assert own.feature_gradients[0].isnan().any(1).nonzero().flatten().tolist() == [2]


def test_ties_over_ranges_go_to_the_lowest_label() -> None:
    packed_NFR = torch.zeros(2, 7, 3)
    packed_NFR[:, 4] = torch.tensor([[1.0, -torch.inf, 1.0], [-torch.inf, 1.0, -torch.inf]])  # the labels' own logits
    packed_NFR[0, 5:] = torch.tensor([[0.0, 1.0, -torch.inf], [0.0, -torch.inf, 0.0]])  # before and after, first range
    packed_NFR[1, 5:] = torch.tensor([[-torch.inf, 0.0, -torch.inf], [1.0, 0.0, 1.0]])
    rows = head_rows(packed_NFR, LabelsOfRows(torch.tensor([[2, 7, 0]]), None), 10, None)
    assert rows.hit_B.tolist() == [True, False, True]
    assert rows.margin_B.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("compiled", [True, False])
def test_no_rows(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native, "load_library", lambda: None)
    heads = drawn_heads(True)
    assert heads.labels.first_weight_B is not None
    none = heads._replace(
        features=[each[:0] for each in heads.features],
        labels=LabelsOfRows(heads.labels.index_LB[:, :0], heads.labels.first_weight_B[:0]),
    )
    for own in over_ranges(none, (0, 13, 40), "entropy", torch.ones(0)):
        assert own.rows.lse_B.shape == (0,)
        assert all(not each.any() for each in own.class_gradients)
        assert [tuple(each.shape) for each in own.feature_gradients] == [(0, dim) for dim in DIMS] * 2


@pytest.mark.parametrize("num_threads", [2, 3])
def test_any_number_of_threads_gives_the_same_bits(num_threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    packed_NFR = torch.randn(3, 7, 5000, generator=generator)
    packed_NFR[:, 1] = packed_NFR[:, 1].exp()
    packed_NFR[1:, 4] = -torch.inf
    labels = LabelsOfRows(torch.randint(50, (1, 5000), generator=generator), None)
    gradient_BD, upstream_B = torch.randn(5000, 40, generator=generator), torch.rand(5000, generator=generator)
    parts = [Summed(0, 0, (0,)), Summed(0, 0, (0,))]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, num_threads):
            torch.set_num_threads(threads)
            rows = head_rows(packed_NFR, labels, 50, "entropy")
            results.append([*rows[:7], *rows.coefficients("entropy")[:3]])
            results[-1] += sum_feature_gradients([upstream_B], [gradient_BD, gradient_BD.exp()], parts, 1)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_over_terms_and_heads(dtype: torch.dtype) -> None:
    """Two heads of two rows: what the first gradient holds of the second head is left out; sums may appear in any order."""
    upstreams = [torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype), torch.tensor([10.0, 20.0, 30.0, 40.0], dtype=dtype)]
    both_RD, second_BD = torch.ones(4, 1, dtype=dtype), torch.ones(2, 2, dtype=dtype)
    parts = [Summed(0, 0, (1, -1)), Summed(1, 1, (0,)), Summed(1, 0, (1, 1))]
    first, other = sum_feature_gradients(upstreams, [both_RD, second_BD, both_RD], parts, 2)
    assert first.tolist() == [[30.0, 30.0], [40.0, 40.0]]
    assert other.tolist() == [[1.0 + 10 + 30], [2.0 + 20 + 40]]


def operators_of_a_step(kind: str) -> dict[str, tuple[Any, ...]]:
    """Arguments that operators have in a step in tiles, by their names."""
    seen: dict[str, tuple[Any, ...]] = {}
    heads = drawn_heads(True)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            seen.setdefault(str(operation), tree_map_only(Tensor, Tensor.detach, args))
            return operation(*args, **(kwargs or {}))

    with Watch():
        over_ranges(heads, (0, 13, 40), kind, torch.ones(len(DIMS) * NUM_ROWS))
    gradients, of_parts = [torch.rand(4, 3)] * 2, ([0, 0], [0, 0], [2, 2], [0, 1, 1, -1])
    seen["rlpheads.sum_feature_gradients.default"] = ([torch.rand(4)], gradients, *of_parts, 2)
    return seen


@pytest.mark.parametrize("kind", ["uniform", "entropy"])
def test_operators_pass_torchs_own_check(kind: str) -> None:
    names = ("head_rows", "logit_gradients", "feature_gradients", "sum_feature_gradients")
    seen = operators_of_a_step(kind)
    for name in (*names, "tiled_cpu_partials_of_heads", "tiled_cpu_gradients_of_heads"):
        check_operator(name, seen[f"rlpheads.{name}.default"])


def test_shifts_of_empty_ranges_are_finite() -> None:
    """Differences of shifts are never NaN."""
    heads = drawn_heads(False)
    ranges = [ClassRange(weight[:0], bias[:0], 0, NUM_LABELS) for weight, bias in zip(*heads[1:3], strict=True)]
    needs = [Needs(None, feature_gradient=False, class_gradients=False, memory_budget=0)] * 3
    own = pass_over_heads(tiled_cpu, heads.features, ranges, heads.labels.index_LB, needs)
    assert (own.packed_FR[0] == NO_CLASS_SHIFT).all()
