"""Mixup and CutMix: who is mixed with whom, timm's arithmetic and distributions, and draws that belong to pairs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from timm.data.mixup import rand_bbox, rand_bbox_minmax
from torch._subclasses.fake_tensor import FakeTensorMode

from rlpheads.kernels.pixels.mixing_native import load_native_mixing
from rlpheads.loaders.augment.mixing import Mixer, MixSpec, cutmix_box, cutmix_box_minmax, weight_quantiles
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.hashing import hash64, stream_key
from rlpheads.loaders.contract.keyed_random import KeyedStream
from rlpheads.loaders.contract.order import Order

BOTH = MixSpec(mixup=0.8, cutmix=1.0)


def make_batch(index: list[int] | torch.Tensor, side: int = 8) -> Batch:
    """Return a batch of normalised images whose pixels all equal 1 + index."""
    index_B = torch.as_tensor(index)
    images = (1.0 + index_B)[:, None, None, None] * torch.ones(len(index_B), 3, side, side)
    return Batch(images, index_B.clamp(min=0) % 7, index_B, len(index_B))


def neighbour(rows: torch.Tensor) -> torch.Tensor:
    return rows[torch.arange(len(rows)) ^ 1]


def test_the_partner_is_the_neighbour_and_mixup_is_the_weighted_mean():
    batch = make_batch(torch.arange(64) * 5)
    out = Mixer(MixSpec(mixup=1.0), 3)(batch, 0, 0)
    partners = out.partners
    assert partners is not None
    assert torch.equal(partners.index, neighbour(batch.index))
    assert torch.equal(partners.targets, neighbour(batch.targets))
    assert torch.equal(partners.weight, neighbour(partners.weight))
    weight = partners.weight[:, None, None, None]
    torch.testing.assert_close(out.images, weight * batch.images + (1 - weight) * neighbour(batch.images))
    assert torch.equal(out.index, batch.index)
    assert torch.equal(out.targets, batch.targets)


def test_cutmix_pastes_a_box_and_weighs_by_its_area():
    batch = make_batch(torch.arange(400), side=16)
    out = Mixer(MixSpec(cutmix=1.0), 3)(batch, 0, 0)
    own = out.images == batch.images
    partner = out.images == neighbour(batch.images)
    assert (own ^ partner).all()
    torch.testing.assert_close(out.partners.weight, own[:, 0].float().mean((1, 2)))
    for covered in partner[:, 0]:
        heights, widths = covered.any(1).sum(), covered.any(0).sum()
        assert heights * widths == covered.sum()


@given(st.floats(0.05, 8), st.booleans(), st.integers(0, 2**62))
@settings(max_examples=20)
def test_a_row_keeps_at_least_half_of_itself(alpha, cut, seed):
    batch = make_batch(torch.arange(200))
    spec = MixSpec(cutmix=alpha) if cut else MixSpec(mixup=alpha)
    out = Mixer(spec, seed)(batch, 0, 0)
    assert float(out.partners.weight.min()) >= 0.5
    assert float(out.partners.weight.max()) <= 1


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 4.0])
def test_weights_have_the_distribution_of_the_greater_of_two_betas(alpha):
    batch = make_batch(torch.arange(40_000), side=1)
    out = Mixer(MixSpec(mixup=alpha), 0)(batch, 0, 0)
    theirs = np.random.default_rng(0).beta(alpha, alpha, 20_000)
    ours = out.partners.weight[::2].double().numpy()
    greater = np.maximum(theirs, 1 - theirs).astype(np.float32)  # as rounded as ours: many are next to 1
    assert stats.ks_2samp(ours, greater).pvalue > 1e-3
    assert weight_quantiles(alpha)[0] == pytest.approx(0.5, abs=1e-9)


def test_boxes_are_timms():
    """The same middle and weight give the box of timm's `rand_bbox`."""
    size = torch.Size((20, 30))
    random = np.random.default_rng(0)
    for _ in range(300):
        weight, middle = random.uniform(0, 1), random.uniform(size=2)
        np.random.seed(0)
        drawn = iter((int(middle[0] * 20), int(middle[1] * 30)))
        original = np.random.randint
        np.random.randint = lambda *_, drawn=drawn, **__: next(drawn)
        try:
            top, bottom, left, right = rand_bbox((3, 20, 30), weight)
        finally:
            np.random.randint = original
        start, sides = cutmix_box(np.array([weight]), middle[None], size)
        assert start.tolist() == [[top, left]]
        assert sides.tolist() == [[bottom - top, right - left]]


def test_probability_and_switch_are_shares_of_the_pairs():
    batch = make_batch(torch.arange(20_000), side=8)
    out = Mixer(MixSpec(mixup=1.0, cutmix=1.0, probability=0.6, switch=0.25), 0)(batch, 0, 0)
    changed = (out.images != batch.images).flatten(1)
    blended = changed.all(1)
    assert float((out.partners.weight < 1).float().mean()) == pytest.approx(0.6, abs=0.03)  # some boxes are empty
    assert float(blended.float().mean()) == pytest.approx(0.6 * 0.75, abs=0.02)
    whole = Mixer(MixSpec(mixup=1.0, probability=0.0), 0)(batch, 0, 0)
    assert torch.equal(whole.images, batch.images)


def test_a_pairs_draws_belong_to_its_two_samples():
    mixer = Mixer(BOTH, 11)
    index = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:64]
    batch = make_batch(index)
    out = mixer(batch, 4, 0)
    elsewhere = index.view(-1, 2).flip(0).flip(1).flatten()  # other pairs first, each the other way round
    out_too = mixer(make_batch(elsewhere), 4, 0)
    places = torch.tensor([elsewhere.tolist().index(each) for each in index.tolist()])
    assert torch.equal(out_too.images[places], out.images)
    assert torch.equal(out_too.partners.weight[places], out.partners.weight)
    assert not torch.equal(mixer(batch, 5, 0).images, out.images)
    assert not torch.equal(Mixer(BOTH, 12)(batch, 4, 0).images, out.images)


def test_a_pairs_key_is_a_hash_that_the_host_can_compute():
    index = torch.tensor([[7, 3], [3, 7]])
    words = KeyedStream(9, "mix").words(2, index.amin(1), index.amax(1))
    assert words[0] == words[1]
    assert int(words.numpy().view(np.uint64)[0]) == int(hash64(9, stream_key("mix"), 2, 3, 7))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(
    "spec",
    [BOTH, replace(BOTH, mode="elem"), replace(BOTH, mode="batch"), MixSpec(mixup=1.0, cutmix_minmax=(0.2, 0.9))],
    ids=str,
)
def test_ranks_and_micro_batches_change_nothing(world_size, spec):
    order = Order(96, 32, seed=5)
    whole = {}
    for rank in range(world_size):
        index = torch.from_numpy(order.rank_indices(1, 2, rank, world_size))
        out = Mixer(spec, 0)(make_batch(index), 1, 2)
        parts = [(part.index, part.partners) for part in out.chunks(2)]
        weights = torch.cat([partners.weight for _, partners in parts])
        for row, sample in enumerate(index.tolist()):
            whole[sample] = (float(out.images[row].sum()), float(weights[row]))
    index = torch.from_numpy(order.rank_indices(1, 2, 0, 1))
    out = Mixer(spec, 0)(make_batch(index), 1, 2)
    assert whole == {
        sample: (float(out.images[row].sum()), float(out.partners.weight[row]))
        for row, sample in enumerate(index.tolist())
    }


def test_each_row_by_itself_has_a_weight_and_a_box_of_its_own():
    batch = make_batch(torch.randperm(4000))
    mixer = Mixer(replace(BOTH, mode="elem"), 3)
    out = mixer(batch, 0, 0)
    weight = out.partners.weight
    assert torch.equal(out.partners.index, neighbour(batch.index))
    assert (weight == neighbour(weight)).float().mean() < 0.2, "only where there is no box for both"
    assert float(weight.min()) >= 0.5
    pixels = out.images.double().mean((1, 2, 3))
    expected = weight.double() * (1 + batch.index) + (1 - weight.double()) * (1 + neighbour(batch.index))
    torch.testing.assert_close(pixels, expected, rtol=1e-5, atol=1e-3)
    pairs = weight.view(-1, 2)
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 4 / len(pairs) ** 0.5
    again = mixer(make_batch(batch.index[100:120]), 0, 7)  # the step is of no account
    assert torch.equal(again.partners.weight, weight[100:120])


def test_a_batch_has_one_weight_one_box_and_one_way_of_mixing():
    batch = make_batch(torch.randperm(64))
    mixer = Mixer(replace(BOTH, mode="batch", probability=0.8), 3)
    weights, ways = [], []
    for step in range(600):
        out = mixer(batch, 1, step)
        (weight,) = set(out.partners.weight.tolist())
        own, partner = out.images == batch.images, out.images == neighbour(batch.images)
        cut = (own | partner).flatten(1).all(1)
        assert cut.all() or not cut.any()
        assert (own == own[:1]).all()
        weights.append(weight)
        ways.append("none" if own.all() else "cut" if cut.all() else "blend")
    assert ways.count("blend") / 600 == pytest.approx(0.4, abs=0.07)
    assert ways.count("none") / 600 == pytest.approx(0.2, abs=0.07)
    assert min(weights) >= 0.5
    assert mixer(batch, 2, 0).partners.weight[0] != weights[0]
    blended = np.array([weight for weight, way in zip(weights, ways, strict=True) if way == "blend"])
    theirs = np.random.default_rng(0).beta(0.8, 0.8, 20_000)
    assert stats.ks_2samp(blended, np.maximum(theirs, 1 - theirs)).pvalue > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("minmax", [(0.2, 0.8), (0.5, 0.5), (0.0, 1.0)])
def test_boxes_between_two_sides_are_timms(minmax, monkeypatch):
    """The same uniform numbers give the box of timm's `rand_bbox_minmax`, which wants a range to draw from."""
    random = np.random.default_rng(0)
    for _ in range(300):
        height, top, left, width = random.uniform(size=4)
        drawn = iter((height, width, top, left))
        monkeypatch.setattr(
            np.random, "randint", lambda low, high, drawn=drawn, **_: low + int(next(drawn) * (high - low))
        )
        first_row, end_row, first_column, end_column = rand_bbox_minmax((3, 20, 30), minmax)
        draws = np.array([[height, top, left, width]])
        start, sides = cutmix_box_minmax(minmax, draws, torch.Size((20, 30)))
        assert start.tolist() == [[first_row, first_column]]
        assert sides.tolist() == [[end_row - first_row, end_column - first_column]]


@pytest.mark.parametrize("mode", ["pair", "elem", "batch"])
def test_in_a_box_of_more_than_half_stands_the_rows_own_sample(mode):
    batch = make_batch(torch.arange(400), side=16)
    out = Mixer(MixSpec(cutmix_minmax=(0.85, 0.95), mode=mode), 3)(batch, 0, 0)
    own, partner = out.images[:, 0] == batch.images[:, 0], out.images[:, 0] == neighbour(batch.images)[:, 0]
    assert (own ^ partner).all()
    torch.testing.assert_close(out.partners.weight, own.float().mean((1, 2)))
    assert float(out.partners.weight.min()) >= 0.5
    assert not own.all(2).all(1).any(), "something of the partner is in every image"
    for inside in own:
        assert inside.any(1).sum() * inside.any(0).sum() == inside.sum(), "a box"


def test_a_row_beside_padding_stays_as_it_is():
    batch = make_batch([10, 11, 12, -1, -1, 13, -1, -1])
    out = Mixer(MixSpec(mixup=1.0), 0)(batch, 0, 0)
    assert torch.equal(out.images[2:], batch.images[2:])
    assert not torch.equal(out.images[:2], batch.images[:2])
    assert out.partners.weight[2:].tolist() == [1.0] * 6


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels last"])
@pytest.mark.parametrize(
    "spec",
    [
        *(replace(BOTH, mode=mode) for mode in ("pair", "elem", "batch")),
        MixSpec(mixup=0.2, cutmix_minmax=(0.1, 0.95), mode="elem", probability=0.8),
    ],
    ids=str,
)
def test_native_code_mixes_in_place_what_masks_mix_in_new_memory(spec, layout):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 21, 34, generator=generator).contiguous(memory_format=layout)
    index = torch.arange(64)
    index[5] = -1
    batch = Batch(images, index % 7, index, 64)
    in_place = load_native_mixing()
    assert in_place is not None
    for step in range(4):
        expected = Mixer(spec, 3)(batch, 1, step)
        given = batch.with_images(images.clone())
        mixed = Mixer(spec, 3, in_place)(given, 1, step)
        torch.testing.assert_close(mixed.images, expected.images, rtol=1e-6, atol=1e-6)
        assert mixed.images is given.images
        assert torch.equal(mixed.partners.weight, expected.partners.weight)
        assert torch.equal(mixed.images[4:6], images[4:6])
    half = batch.with_images(images.to(torch.bfloat16))
    assert torch.equal(Mixer(spec, 3, in_place)(half, 1, 0).images, Mixer(spec, 3)(half, 1, 0).images)


def test_off_epoch_and_no_alpha_mix_nothing():
    batch = make_batch(torch.arange(8))
    mixer = Mixer(MixSpec(mixup=1.0, off_epoch=3), 0)
    assert mixer(batch, 2, 0).partners is not None
    assert mixer(batch, 3, 0) is batch
    assert Mixer(MixSpec(), 0)(batch, 0, 0) is batch


def test_memory_format_and_type_stay_and_nothing_waits():
    batch = make_batch(torch.arange(8))
    last = batch.images.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    mixed = Mixer(BOTH, 0)(batch.with_images(last), 0, 0)
    assert mixed.images.dtype == torch.bfloat16
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)
    with FakeTensorMode():
        zeros = torch.zeros(8, dtype=torch.int64)
        fake = Batch(torch.zeros(8, 3, 4, 4), zeros, zeros, 8, host_index=np.zeros(8, dtype=np.int64))
        assert Mixer(BOTH, 0)(fake, 0, 0).images.shape == (8, 3, 4, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"mixup": -1.0}, {"cutmix": float("inf")}, {"probability": 1.5}, {"switch": -0.1}, {"mixup": float("nan")}),
        *({"mode": "half"}, {"cutmix_minmax": (0.8, 0.2)}, {"cutmix_minmax": (0.2, 1.2)}),
        {"cutmix": 1.0, "cutmix_minmax": (0.2, 0.8)},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="it must be|a probability"):
        MixSpec(**wrong)
