"""The message of the ranks' rows: what comes out is what went in, in the order of the ranks, in C++ and in PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlpheads.kernels.batched.row_message import (
    OwnRows,
    pack_rows,
    packed_by_pytorch,
    unpack_rows,
    unpacked_by_pytorch,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def rows_of_a_rank(
    rank: int, num_rows: int, dims: list[tuple[int, torch.dtype]], draws: list[int], *, mixed: bool, padded: bool
) -> OwnRows:
    generator = torch.Generator().manual_seed(rank)
    labels = [torch.randint(2**31, (each, num_rows), generator=generator) for each in draws * (1 + mixed)]
    return OwnRows(
        [torch.randn(num_rows, dim, generator=generator).to(dtype) for dim, dtype in dims],
        labels,
        torch.rand(num_rows, generator=generator) if mixed else None,
        torch.rand(num_rows, generator=generator) < 0.5 if padded else None,
    )


def every_head_reads(labels: list[Tensor], copies: list[int]) -> Tensor:
    """The labels of the heads by definition: of each call, tap by tap, draw by draw."""
    return torch.cat([row for each, count in zip(labels, copies, strict=True) for _ in range(count) for row in each])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    num_ranks=st.integers(1, 3),
    num_rows=st.integers(0, 3),
    dims=st.lists(st.tuples(st.integers(1, 3), st.sampled_from(DTYPES)), min_size=1, max_size=4),
    calls=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3)), min_size=1, max_size=2),
    mixed=st.booleans(),
    padded=st.booleans(),
)
def test_every_rank_reads_what_each_has_packed(num_ranks, num_rows, dims, calls, mixed, padded):
    """Also where one has a compiler and another has none: their messages are the same bytes."""
    draws, copies = map(list, zip(*calls, strict=True))
    ranks = [rows_of_a_rank(rank, num_rows, dims, draws, mixed=mixed, padded=padded) for rank in range(num_ranks)]
    messages = [pack_rows(rows) for rows in ranks]
    assert all(torch.equal(one, packed_by_pytorch(rows)) for one, rows in zip(messages, ranks, strict=True))
    gathered_NX = torch.stack(messages)
    found = unpack_rows(gathered_NX, ranks[0], copies)
    by_tensor = [torch.cat(parts, -1) for parts in zip(*(rows.labels for rows in ranks), strict=True)]
    firsts, seconds = by_tensor[: len(draws)], by_tensor[len(draws) :]
    expected = [every_head_reads(each, copies) for each in ([firsts, seconds] if mixed else [firsts])]
    assert torch.equal(found.labels.index_LR, torch.stack(expected))
    if mixed:
        weight_G = torch.cat([rows.weight_B for rows in ranks])
        assert torch.equal(found.labels.first_weight_R, weight_G.repeat(sum(a * b for a, b in calls)))
    else:
        assert found.labels.first_weight_R is None
    is_valid = [torch.ones(num_rows, dtype=torch.bool) if rows.valid_B is None else rows.valid_B for rows in ranks]
    assert torch.equal(found.valid_G, torch.cat(is_valid))
    for number, features_GD in enumerate(found.features):
        assert torch.equal(features_GD, torch.cat([rows.features[number] for rows in ranks]))
    index_LR, weight_R, valid_G, *features = unpacked_by_pytorch(gathered_NX, ranks[0], copies)
    native = [found.labels.index_LR, found.valid_G, *found.features]
    assert all(torch.equal(*pair) for pair in zip([index_LR, valid_G, *features], native, strict=True))
    assert not mixed or torch.equal(weight_R, found.labels.first_weight_R)


def test_large_messages_on_two_threads():
    torch.manual_seed(0)
    rows = OwnRows([torch.randn(256, 768) for _ in range(4)], [torch.randint(9, (1, 256))], None, None)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = unpack_rows(torch.stack([pack_rows(rows)] * 3), rows, [4])
    finally:
        torch.set_num_threads(before)
    for features_GD, features_BD in zip(found.features, rows.features, strict=True):
        assert torch.equal(features_GD, features_BD.repeat(3, 1))


def test_labels_and_features_need_not_lie_in_one_piece():
    columns, labels_BM = torch.randn(3, 4), torch.randint(9, (4, 2), dtype=torch.int32)
    rows = OwnRows([columns.T], [labels_BM.T], None, None)
    found = unpack_rows(pack_rows(rows)[None], rows, [1])
    assert torch.equal(found.features[0], columns.T)
    assert torch.equal(found.labels.index_LR.view(2, 4), labels_BM.T.long())


@pytest.mark.parametrize("mixed", [False, True])
def test_the_shapes_are_known_without_values(mixed):
    rows = rows_of_a_rank(0, 3, [(2, torch.float32), (5, torch.bfloat16)], [2], mixed=mixed, padded=True)
    gathered_NX = torch.stack([pack_rows(rows)] * 2)
    torch.library.opcheck(torch.ops.rlpheads.pack_rows.default, tuple(rows), test_utils="test_faketensor")
    arguments = (gathered_NX, *rows[:3], [4])
    torch.library.opcheck(torch.ops.rlpheads.unpack_rows.default, arguments, test_utils="test_faketensor")
