"""Ranges of the classes of heads of few labels: merged, they give what whole heads give, in C++ and in PyTorch."""

import pytest
import torch
from kernel_problems import KINDS, relative_error
from torch import Tensor

from rlpheads.kernels.batched.batched_loss import BatchedLabels, BatchedTerms, batched_losses
from rlpheads.kernels.batched.range_rows import HeldRange, RangeSums, range_partials, rows_of_ranges
from rlpheads.kernels.batched.written_rows import WrittenHeads

NUM_ROWS, DIMS = 7, (5, 9, 9)
RANGES = {"one": [0, 10], "ragged": [0, 4, 8, 10], "empty ones": [0, 1, 2, 2, 2], "many labels": [0, 70, 140, 200]}
WANTED = (True, True)


def problem(
    num_labels: int, mixed: bool, dtype: torch.dtype, spread: float = 3.0
) -> tuple[WrittenHeads, BatchedLabels]:
    generator = torch.Generator().manual_seed(num_labels)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).mul(spread).to(dtype)

    heads = WrittenHeads(
        [draw(NUM_ROWS, dim) for dim in DIMS], [draw(num_labels, dim) for dim in DIMS], [draw(num_labels) for _ in DIMS]
    )
    index_LR = torch.randint(num_labels, (1 + mixed, len(DIMS) * NUM_ROWS), generator=generator)
    weight_R = torch.rand(index_LR.shape[1], generator=generator, dtype=torch.float64).to(dtype) if mixed else None
    return heads, BatchedLabels(index_LR, weight_R)


def merged(
    heads: WrittenHeads, labels: BatchedLabels, bounds: list[int], kind: str | None, plain: list[bool]
) -> list[tuple[Tensor, ...]]:
    """The rows that the holder of each range gets; its gradients are those of its classes."""
    parts: list[tuple[HeldRange, RangeSums]] = []
    for start, stop, is_plain in zip(bounds, bounds[1:], plain, strict=False):
        weights, biases = ([each[start:stop] for each in of_heads] for of_heads in heads[1:])
        held = HeldRange(start, bounds[-1], kind, is_plain)
        parts.append((held, range_partials(WrittenHeads(heads.features, weights, biases), labels, held)))
    gathered_NFR = torch.stack([sums.packed_FR for _, sums in parts])
    wanted = (True, kind is not None)
    return [rows_of_ranges(gathered_NFR, sums, labels, len(DIMS), held, wanted) for held, sums in parts]


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", RANGES)
def test_ranges_give_the_rows_of_whole_heads(kind: str | None, mixed: bool, name: str) -> None:
    """Ranks with a compiler and without may work together: their messages are alike."""
    bounds = RANGES[name]
    truth = merged(*problem(bounds[-1], mixed, torch.float64), [0, bounds[-1]], kind, [True])[0]
    heads, labels = problem(bounds[-1], mixed, torch.float32)
    for plain in ([False] * 4, [True] * 4, [False, True, False, True]):
        found = merged(heads, labels, bounds, kind, plain)
        for own in found[1:]:  # the same at every rank, but for the rounding of C++ beside PyTorch
            for value, first in zip(own[:6], found[0][:6], strict=True):
                torch.testing.assert_close(
                    value, first, rtol=1e-5 if len(set(plain)) > 1 else 0, atol=1e-5 * (len(set(plain)) > 1)
                )
        assert torch.equal(found[0].hit_R, truth.hit_R)
        for number, (value, expected) in enumerate(zip(found[0][:5], truth[:5], strict=True)):
            if kind is not None or number != 1:
                assert relative_error(value, expected) <= 1e-5
        for member in ("class_gradient_RK", "feature_gradient_RK"):
            expected_RK = getattr(truth, member)
            if expected_RK is not None:
                value_RK = torch.cat([getattr(own, member) for own in found], 1)
                assert relative_error(value_RK, expected_RK) <= 1e-5, member


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_ranges_of_no_rows(plain: bool, mixed: bool) -> None:
    """What a rank of an empty batch sends and gets: all that it else does, of no row."""
    heads, labels = problem(10, mixed, torch.float32)
    heads = heads._replace(features=[features_BD[:0] for features_BD in heads.features])
    labels = BatchedLabels(labels.index_LR[:, :0], None if labels.first_weight_R is None else labels.first_weight_R[:0])
    sums = range_partials(heads, labels, HeldRange(0, 10, "entropy", plain))
    assert [tuple(each.shape) for each in sums] == [(7 + mixed, 0), (0, 10), (0, 10)]
    for rows, num_held in zip(merged(heads, labels, [0, 4, 10], "entropy", [plain] * 2), (4, 6), strict=True):
        assert [len(value) for value in rows[:6]] == [0] * 6
        assert [each.shape for each in rows[6:]] == [(0, num_held)] * 2


def test_every_rank_has_the_same_bits() -> None:
    heads, labels = problem(10, True, torch.float32)
    first, *others = merged(heads, labels, [0, 4, 8, 10], "entropy", [False] * 3)
    assert all(
        torch.equal(value, expected) for own in others for value, expected in zip(own[:6], first[:6], strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_that_is_the_whole_gives_the_bits_of_whole_heads(kind: str) -> None:
    heads, labels = problem(10, True, torch.float32)
    whole = batched_losses(heads, labels, BatchedTerms(kind, False))
    found = merged(heads, labels, [0, 10], kind, [False])[0]
    pairs = [(found.cross_entropy_R, whole[0]), (found.regularizer_R, whole[1]), (found.lse_R, whole[6])]
    for value, expected in pairs:
        torch.testing.assert_close(value, expected.flatten(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("plain", [False, True])
def test_rows_that_are_not_finite_are_seen_at_every_rank(plain: bool) -> None:
    heads, labels = problem(10, False, torch.float32)
    heads.features[0][2, 1] = torch.nan
    for rows in merged(heads, labels, [0, 4, 8, 10], None, [plain] * 3):
        assert rows.cross_entropy_R.isnan().nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("plain", [False, True])
def test_labels_beyond_the_whole_head_are_refused(plain: bool) -> None:
    heads, labels = problem(10, False, torch.float32)
    labels.index_LR[0, 3] = 10
    with pytest.raises(ValueError, match=r"labels must be in \[0, 10\); got labels from \d to 10"):
        merged(heads, labels, [0, 4, 8, 10], None, [plain] * 3)
