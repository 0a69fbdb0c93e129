"""Batches are cut, moved and pinned without losing a row."""

from dataclasses import replace

import pytest
import torch

from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.errors import ImageReadError


def make_batch(num_rows: int) -> Batch:
    rows = torch.arange(num_rows)
    images = rows.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return Batch(images, rows * 10, rows * 100, num_global_rows=num_rows * 4 - 1)


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 6])
def test_micro_batches_are_the_batch_in_order(num_chunks):
    batch = make_batch(6)
    chunks = batch.chunks(num_chunks)
    assert [len(chunk) for chunk in chunks] == [6 // num_chunks] * num_chunks
    for name in ("images", "targets", "index"):
        assert torch.equal(torch.cat([getattr(chunk, name) for chunk in chunks]), getattr(batch, name))
    assert {chunk.num_global_rows for chunk in chunks} == {23}


@pytest.mark.parametrize(("num_chunks", "nearest"), [(4, 3), (5, 6), (0, 1), (-1, 1), (7, 6)])
def test_unequal_micro_batches_are_refused(num_chunks, nearest):
    with pytest.raises(ValueError, match=f"6 rows cannot be cut into {num_chunks} .* nearest is {nearest}"):
        make_batch(6).chunks(num_chunks)


def test_a_batch_moves_whole():
    moved = make_batch(4).to("meta")
    assert {tensor.device.type for tensor in (moved.images, moved.targets, moved.index)} == {"meta"}
    assert moved.num_global_rows == 15
    assert moved.images.dtype == torch.uint8
    assert moved.index_on_host.tolist() == [0, 100, 200, 300]
    assert moved.chunks(2)[1].index_on_host.tolist() == [200, 300]


def test_skipped_rows_become_padding_and_say_why():
    error = ImageReadError(300, "cat/3.jpg", "the file is empty")
    batch = make_batch(6).skip_rows({3: error})
    assert batch.index.tolist() == [0, 100, 200, -1, 400, 500]
    assert batch.targets.tolist() == [0, 10, 20, 0, 40, 50]
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 4, 5]
    assert batch.num_global_rows == 23
    assert batch.to("meta").skipped == (error,)
    assert batch.skip_rows({}).skipped == (error,)
    assert batch.skipped_index.tolist() == [300]
    assert batch.skipped_index.dtype == torch.int64
    chunks = batch.chunks(3)
    assert [len(chunk.skipped) for chunk in chunks] == [1, 0, 0]
    assert chunks[1].index.tolist() == [200, -1]


@pytest.mark.gpu
def test_a_pinned_batch_reaches_the_gpu_unchanged():
    batch = make_batch(4)
    pinned = batch.pin_memory()
    assert all(tensor.is_pinned() for tensor in (pinned.images, pinned.targets, pinned.index))
    back = pinned.to("cuda", non_blocking=True).to("cpu")
    assert torch.equal(back.images, batch.images)
    assert torch.equal(back.index, batch.index)


def test_indices_that_only_a_device_knows_are_not_read():
    rows = torch.arange(4)
    with pytest.raises(ValueError, match="the indices lie on meta alone; give the batch its host_index"):
        Batch(torch.zeros(4, 3, 2, 2), rows, rows.to("meta"), 4).index_on_host  # noqa: B018


def test_padding_is_looked_for_where_the_host_cannot_rule_it_out():
    batch = make_batch(4)
    assert not batch.may_have_padding
    assert not batch.to("meta").may_have_padding
    skipped = batch.skip_rows({3: ImageReadError(300, "cat/3.jpg", "the file is empty")})
    assert skipped.may_have_padding
    assert skipped.to("meta").may_have_padding
    assert [chunk.may_have_padding for chunk in skipped.to("meta").chunks(2)] == [False, True]
    rows = torch.arange(4)
    assert Batch(torch.zeros(4, 3, 2, 2), rows, rows.to("meta"), 4).may_have_padding


def test_a_batch_that_is_full_stays_so_until_a_row_is_skipped():
    rows = torch.arange(4)
    full = Batch(torch.zeros(4, 3, 2, 2), rows, rows.to("meta"), 4, is_full=True)
    changed = full.with_images(torch.ones(4, 3, 2, 2)).chunks(2)
    assert not any(each.may_have_padding for each in (full, full.to("meta"), *changed, full.skip_rows({})))
    spoiled = replace(full, index=rows).skip_rows({3: ImageReadError(3, "cat/3.jpg", "the file is empty")})
    assert spoiled.with_images(spoiled.images).may_have_padding
