"""What is asked for at a step is the same wherever an iteration began and however much was drawn at once."""

import pickle
from functools import partial

import numpy as np
import pytest

from rlpheads.loaders.contract import request as module
from rlpheads.loaders.contract.crops import CropSpec, draw_crops, keyed_crops, no_draws, place_crops
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.contract.request import Request, rank_requests

CROP = CropSpec(16)
ORDER = Order(1003, 24, seed=4, partial="pad")


def asked(first_step: int = 0, rank: int = 0, world_size: int = 1) -> list[Request]:
    return list(rank_requests(ORDER, partial(draw_crops, CROP, 4), 3, first_step, rank=rank, world_size=world_size))


@pytest.mark.parametrize("drawn_at_once", [1, 24, 100, 2048])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (0, 3)])
def test_each_step_has_its_rows_and_their_draws(monkeypatch, drawn_at_once, rank, world_size):
    monkeypatch.setattr(module, "DRAWN_AT_ONCE", drawn_at_once)
    steps = asked(rank=rank, world_size=world_size)
    assert len(steps) == ORDER.num_steps
    for step, request in enumerate(steps):
        np.testing.assert_array_equal(request.index_B, ORDER.rank_indices(3, step, rank, world_size))
        np.testing.assert_array_equal(request.draws_UB, draw_crops(CROP, 4, 3, request.index_B))
        assert request.num_global_rows == ORDER.rows_at(step)
    present = 1003 - 41 * 24 - rank * 24 // world_size  # of the last batch; all others are whole
    assert steps[-1].samples.tolist() == steps[-1].index_B[:present].tolist()


@pytest.mark.parametrize("first_step", [1, 17, 41, 42])
def test_the_steps_after_a_resume_are_those_of_the_whole_epoch(monkeypatch, first_step):
    monkeypatch.setattr(module, "DRAWN_AT_ONCE", 100)
    rest = asked(first_step)
    assert len(rest) == 42 - first_step
    for resumed, whole in zip(rest, asked()[first_step:], strict=True):
        np.testing.assert_array_equal(resumed.index_B, whole.index_B)
        np.testing.assert_array_equal(resumed.draws_UB, whole.draws_UB)


def test_a_resume_draws_for_nothing_that_was_consumed():
    drawn = []

    def draw(epoch, index_B):
        drawn.extend(index_B.tolist())
        return no_draws(index_B)

    list(rank_requests(ORDER, draw, 0, 40, rank=0, world_size=1))
    assert drawn[: 1003 - 40 * 24] == ORDER.epoch_indices(0)[40 * 24 :].tolist()


def test_a_request_arrives_whole_in_another_process():
    for request in asked()[-2:]:
        again = pickle.loads(pickle.dumps(request))
        assert isinstance(again, Request)
        np.testing.assert_array_equal(again.index_B, request.index_B)
        np.testing.assert_array_equal(again.draws_UB, request.draws_UB)
        assert (again.num_global_rows, again.epoch) == (request.num_global_rows, 3)
    nothing = Request(np.arange(4), no_draws(np.arange(4)), 4, 0)
    assert pickle.loads(pickle.dumps(nothing)).draws_UB.shape == (0, 4)


def test_rows_of_a_request_are_placed_like_samples_of_their_own():
    request = asked()[5]
    sizes_B2 = np.random.default_rng(0).integers(20, 500, (24, 2))
    rows = np.array([3, 20, 7])
    boxes, flipped = place_crops(CROP, request.draws_UB[:, rows], sizes_B2[rows])
    alone, alone_flipped = keyed_crops(CROP, 4, 3, request.index_B[rows], sizes_B2[rows])
    np.testing.assert_array_equal(boxes, alone)
    np.testing.assert_array_equal(flipped, alone_flipped)
