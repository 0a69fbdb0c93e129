"""The order is a pure function of (seed, epoch), and every index is read exactly once at any world size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlpheads.loaders.contract.hashing import hash64, stream_key
from rlpheads.loaders.contract.keyed_random import uniforms
from rlpheads.loaders.contract.order import PADDING, Order

sizes = st.integers(1, 300)
worlds = st.sampled_from([1, 2, 3, 4, 8])


def read_by_ranks(order: Order, epoch: int, world_size: int) -> np.ndarray:
    """All that the ranks of one world read in an epoch: (steps, batch_size)."""
    steps = [
        np.concatenate([order.rank_indices(epoch, step, rank, world_size) for rank in range(world_size)])
        for step in range(order.num_steps)
    ]
    return np.stack(steps)


@given(num_samples=sizes, per_rank=st.integers(1, 20), world_size=worlds)
def test_evaluation_reads_each_sample_exactly_once_and_pads_only_at_the_end(num_samples, per_rank, world_size):
    order = Order(num_samples, per_rank * world_size, shuffle=False, partial="pad")
    read = read_by_ranks(order, 0, world_size).ravel()
    np.testing.assert_array_equal(read[:num_samples], np.arange(num_samples))
    assert (read[num_samples:] == PADDING).all()
    assert len(read) - num_samples < order.batch_size
    assert sum(order.rows_at(step) for step in range(order.num_steps)) == num_samples


@given(num_samples=sizes, pairs=st.integers(1, 5), partial=st.sampled_from(["drop", "pad"]), seed=st.integers(0, 2**63))
def test_training_order_is_the_same_at_any_world_size(num_samples, pairs, partial, seed):
    batch_size = 2 * 12 * pairs
    if partial == "drop" and num_samples < batch_size:
        num_samples += batch_size
    order = Order(num_samples, batch_size, seed, True, partial)
    alone = read_by_ranks(order, 3, 1)
    for world_size in (2, 3, 4, 12):
        np.testing.assert_array_equal(read_by_ranks(order, 3, world_size), alone)
    read = alone.ravel()[alone.ravel() != PADDING]
    assert len(np.unique(read)) == len(read) == order.samples_per_epoch
    np.testing.assert_array_equal(read, order.epoch_indices(3)[: len(read)])


@given(num_samples=sizes, batch_size=st.integers(1, 50), partial=st.sampled_from(["drop", "pad"]))
def test_every_position_leads_back_to_its_step(num_samples, batch_size, partial):
    if partial == "drop" and num_samples < batch_size:
        num_samples += batch_size
    order = Order(num_samples, batch_size, shuffle=False, partial=partial)
    assert order.step_at(0) == 0
    for step in range(order.num_steps):
        assert order.step_at(order.consumed_after(step)) == step + 1
    assert order.consumed_after(order.num_steps - 1) == order.samples_per_epoch


def test_a_shuffled_epoch_is_a_permutation_of_its_own():
    orders = [Order(1000, 10, seed).epoch_indices(epoch) for seed in (0, 1) for epoch in (0, 1)]
    for indices in orders:
        np.testing.assert_array_equal(np.sort(indices), np.arange(1000))
        assert indices.dtype == np.int64
    for i, first in enumerate(orders):
        for second in orders[i + 1 :]:
            assert (first == second).sum() < 12  # one match expected, Poisson
    np.testing.assert_array_equal(orders[3], Order(1000, 500, 1).epoch_indices(1))


def test_the_order_of_a_seed_never_changes():
    """Pinned values: a checkpoint of an earlier version must go on with the same samples."""
    np.testing.assert_array_equal(Order(10, 2, seed=5).epoch_indices(2), [7, 6, 1, 5, 4, 0, 8, 2, 3, 9])
    drawn = [[0.05461560984328773, 0.11708374489882067], [0.06270480672694523, 0.9500947771751643]]
    np.testing.assert_array_equal(uniforms(5, 2, np.array([0, 7]), 2), drawn)


@pytest.mark.parametrize("num_samples", [1, 2, 1000, 300_000])
def test_the_indices_are_in_the_order_of_their_hashes(num_samples):
    hashes = hash64(-3, stream_key("order"), 7, np.arange(num_samples))
    np.testing.assert_array_equal(Order(num_samples, 1, seed=-3).epoch_indices(7), np.argsort(hashes))


def test_the_last_positions_are_as_random_as_the_first():
    """Which samples a dropped batch leaves out must vary: each of 20 is left out 4 times in 20 on average."""
    left_out = np.concatenate([Order(20, 16, seed=1).epoch_indices(epoch)[16:] for epoch in range(5000)])
    assert stats.chisquare(np.bincount(left_out, minlength=20)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0, "batch_size": 2}, "num_samples is 0"),
        ({"num_samples": 5, "batch_size": 0}, "batch_size is 0"),
        ({"num_samples": 5, "batch_size": 6}, "leaves no step"),
        ({"num_samples": 5, "batch_size": 2, "partial": "keep"}, "'drop' or 'pad'"),
    ],
)
def test_impossible_orders_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Order(**arguments)


@pytest.mark.parametrize(("batch_size", "world_size", "nearest"), [(6, 2, 8), (7, 1, 8), (2, 4, 8), (100, 8, 96)])
def test_training_keeps_mixup_pairs_on_one_rank(batch_size, world_size, nearest):
    order = Order(1000, batch_size)
    with pytest.raises(ValueError, match=f"multiple of {2 * world_size}; the nearest is {nearest}"):
        order.check_world_size(world_size)


def test_evaluation_needs_no_even_shares():
    Order(1000, 7, shuffle=False, partial="pad").check_world_size(7)
    with pytest.raises(ValueError, match="multiple of 2; the nearest is 8"):
        Order(1000, 7, shuffle=False, partial="pad").check_world_size(2)


@pytest.mark.parametrize(
    ("step", "rank", "world_size", "message"),
    [(3, 0, 1, "step is 3"), (-1, 0, 1, "step is -1"), (0, 2, 2, "rank is 2"), (0, 0, 0, "world_size is 0")],
)
def test_a_slice_that_does_not_exist_is_refused(step, rank, world_size, message):
    with pytest.raises(ValueError, match=message):
        Order(12, 4).rank_indices(0, step, rank, world_size)


def test_steps_beyond_the_epoch_are_refused():
    with pytest.raises(ValueError, match=r"step is 3; the epoch has steps 0\.\.2"):
        Order(12, 4).rank_slices(np.arange(12), range(1, 4), 0, 1)


@given(num_samples=sizes, per_rank=st.integers(1, 20), world_size=worlds, data=st.data())
def test_many_steps_are_cut_as_one_by_one(num_samples, per_rank, world_size, data):
    order = Order(num_samples, per_rank * world_size, shuffle=False, partial="pad")
    indices = order.epoch_indices(0)
    first, end = sorted(data.draw(st.tuples(*[st.integers(0, order.num_steps)] * 2)))
    for rank in range(world_size):
        shares = order.rank_slices(indices, range(first, end), rank, world_size)
        assert shares.shape == (end - first, per_rank)
        for step, share in enumerate(shares, first):
            start = step * order.batch_size + rank * per_rank
            expected = [place if place < num_samples else PADDING for place in range(start, start + per_rank)]
            assert share.tolist() == expected
        shares[:] = -5
    np.testing.assert_array_equal(indices, np.arange(num_samples))  # what is cut out is the caller's


@pytest.mark.parametrize("consumed", [-4, 3, 10, 13, 100])
def test_a_position_between_steps_is_refused(consumed):
    with pytest.raises(ValueError, match="no step begins after"):
        Order(14, 4).step_at(consumed)


@given(
    index=st.lists(st.integers(0, 2**40), min_size=1, max_size=20), seed=st.integers(0, 2**63), epoch=st.integers(0, 99)
)
def test_draws_depend_on_the_sample_and_not_on_its_batch(index, seed, epoch):
    together = uniforms(seed, epoch, np.array(index), 5)
    for row, sample in zip(together, index, strict=True):
        np.testing.assert_array_equal(uniforms(seed, epoch, np.array([sample]), 3)[0], row[:3])
    assert ((together >= 0) & (together < 1)).all()


@pytest.mark.parametrize("axis", ["index", "epoch", "seed", "draw"])
def test_draws_are_uniform_along_every_axis(axis):
    """Kolmogorov-Smirnov on 50,000 draws with fixed keys; a linear or truncated hash fails along some axis."""
    count = 50_000
    draws = {
        "index": lambda: uniforms(0, 0, np.arange(count), 1),
        "epoch": lambda: np.array([uniforms(0, epoch, np.array([3]), 1) for epoch in range(5000)]),
        "seed": lambda: np.array([uniforms(seed, 0, np.array([3]), 1) for seed in range(5000)]),
        "draw": lambda: uniforms(0, 0, np.array([3]), count),
    }[axis]().ravel()
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(len(draws))


def test_streams_epochs_and_draws_are_uncorrelated():
    index = np.arange(50_000)
    columns = [uniforms(0, 0, index, 2), uniforms(0, 1, index, 1), uniforms(1, 0, index, 1)]
    columns.append(uniforms(0, 0, index, 1, stream="flips"))
    correlation = np.corrcoef(np.concatenate(columns, axis=1).T)
    assert np.abs(correlation - np.eye(5)).max() < 4.5 / np.sqrt(len(index))


def test_hashes_are_distinct_and_order_matters():
    hashes = hash64(1, np.arange(1_000_000))
    assert hashes.dtype == np.uint64
    assert len(np.unique(hashes)) == 1_000_000
    assert hash64(1, 2) != hash64(2, 1)
    assert hash64(-1) == hash64(2**64 - 1)
    assert hash64(0, np.arange(3)[:, None], np.arange(4)).shape == (3, 4)
    assert stream_key("crops") != stream_key("flips")


@given(
    distinct=st.integers(2, 12), repeats=st.integers(2, 5), steps=st.integers(1, 6), rest=st.integers(0, 20), seed=sizes
)
def test_repeats_stand_in_one_global_batch_and_each_has_its_draws(distinct, repeats, steps, rest, seed):
    """As timm's RepeatAugSampler: as many steps as without, of the permutation's first samples."""
    batch_size = 24 * distinct * repeats
    plain = Order(steps * batch_size + rest, batch_size, seed)
    order = Order(steps * batch_size + rest, batch_size, seed, repeats=repeats)
    read = read_by_ranks(order, 3, 1)
    assert read.shape == (plain.num_steps, batch_size)
    first = plain.epoch_indices(3)[: read.size // repeats].reshape(len(read), -1)
    for row, expected in zip(read, first, strict=True):
        names, counts = np.unique(row, return_counts=True)
        np.testing.assert_array_equal(names, np.sort(expected))
        assert (counts == repeats).all()
        assert (row.reshape(-1, 2)[:, 0] != row.reshape(-1, 2)[:, 1]).all(), "no sample is mixed with itself"
    for world_size in (2, 3, 4):
        np.testing.assert_array_equal(read_by_ranks(order, 3, world_size), read)
        shares = [order.rank_indices(3, 0, rank, world_size)[None] for rank in range(world_size)]
        keys = np.concatenate([order.draw_keys(share, rank, world_size)[0] for rank, share in enumerate(shares)])
        np.testing.assert_array_equal(keys, order.draw_keys(read[:1], 0, 1)[0])
        assert len(np.unique(keys)) == batch_size
        np.testing.assert_array_equal(keys % order.num_samples, read[0])
        repeat = np.concatenate([order.repeat_of_rows(rank, world_size) for rank in range(world_size)])
        assert np.bincount(repeat).tolist() == [batch_size // repeats] * repeats


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
        ({"repeats": 5}, "the batch size 24 must be a multiple"),
        ({"repeats": 24}, "must be a multiple, twice or more"),
        ({"repeats": 2, "partial": "pad"}, "only a shuffled order that drops"),
        ({"repeats": 2, "shuffle": False}, "only a shuffled order that drops"),
    ],
)
def test_repeats_that_do_not_fit_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        Order(100, 24, **changes)
