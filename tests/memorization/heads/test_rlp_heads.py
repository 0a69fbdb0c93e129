"""The heads: losses, gradient routes and initial weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rlpheads.memorization.heads.head_losses import HeadTerms
from rlpheads.memorization.heads.linear_head import INITIAL_LOGIT_STD
from rlpheads.memorization.heads.rlp_heads import RLPHeads

DIMS, NUM_LABELS, NUM_DRAWS, NUM_ROWS = (6, 9, 9), 5, 2, 8
REGULARIZERS = ("unlikelihood", "uniform", "reversal", "entropy")


def make_inputs(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    taps = [torch.randn(NUM_ROWS, dim, generator=generator, dtype=dtype).requires_grad_() for dim in DIMS]
    return taps, torch.randint(NUM_LABELS, (NUM_DRAWS, NUM_ROWS), generator=generator)


def make_heads(dtype: torch.dtype = torch.float64, **changes) -> RLPHeads:
    """Heads with weights of order 1, so that every row differs."""
    heads = RLPHeads(DIMS, NUM_LABELS, NUM_DRAWS, seed=0, dtype=dtype, **changes)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in heads.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return heads


def test_losses_are_those_of_linear_heads_on_normalised_features():
    heads, (taps, labels_MB) = make_heads(), make_inputs()
    losses = heads(taps, labels_MB, HeadTerms())
    assert losses.regularizer_RMB is None
    assert losses.joint_TMB is None
    for t, features_BD in enumerate(taps):
        for m, labels_B in enumerate(labels_MB):
            head = heads.heads[t][m]
            logits_BK = F.layer_norm(features_BD, features_BD.shape[1:]) @ head.weight.T + head.bias
            cross_entropy_B = F.cross_entropy(logits_BK, labels_B, reduction="none")
            torch.testing.assert_close(losses.cross_entropy_TMB[t, m], cross_entropy_B)
            torch.testing.assert_close(losses.bits_TMB[t, m], (math.log(NUM_LABELS) - cross_entropy_B) / math.log(2))
            assert torch.equal(losses.hit_TMB[t, m], logits_BK.argmax(1) == labels_B)
            label_B = logits_BK.gather(1, labels_B[:, None])[:, 0]
            others_BK = logits_BK.scatter(1, labels_B[:, None], -math.inf)
            torch.testing.assert_close(losses.margin_TMB[t, m], label_B - others_BK.amax(1))


def test_the_norm_takes_scale_and_shift_out_of_the_features():
    heads, (taps, labels_MB) = make_heads(), make_inputs()
    scaled = heads([3 * tap - 2 for tap in taps], labels_MB, HeadTerms())
    plain = heads(taps, labels_MB, HeadTerms())
    torch.testing.assert_close(scaled.bits_TMB, plain.bits_TMB, rtol=1e-3, atol=1e-3)  # but for the norm's epsilon


def test_without_the_norm_heads_read_the_features_as_they_are():
    heads, (taps, labels_MB) = make_heads(norm=False), make_inputs()
    logits_BK = taps[1] @ heads.heads[1][0].weight.T + heads.heads[1][0].bias
    cross_entropy_B = F.cross_entropy(logits_BK, labels_MB[0], reduction="none")
    torch.testing.assert_close(heads(taps, labels_MB, HeadTerms()).cross_entropy_TMB[1, 0], cross_entropy_B)


def test_the_cross_entropy_trains_every_head_and_no_feature():
    heads, (taps, labels_MB) = make_heads(), make_inputs()
    losses = heads(taps, labels_MB, HeadTerms(regularizer="uniform", regularized=(0, 1, 2), joint=True))
    losses.cross_entropy_TMB.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in heads.parameters())
    assert all(tap.grad is None or not tap.grad.any() for tap in taps)


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_the_regularizer_trains_the_chosen_taps_features_and_no_head(kind):
    heads, (taps, labels_MB) = make_heads(), make_inputs()
    losses = heads(taps, labels_MB, HeadTerms(regularizer=kind, regularized=(0, 2)))
    assert losses.regularizer_RMB.shape == (2, NUM_DRAWS, NUM_ROWS)
    losses.regularizer_RMB[1].sum().backward()  # the second regularised tap is tap 2
    assert taps[2].grad.abs().sum() > 0
    assert taps[1].grad is None
    assert taps[0].grad is None or not taps[0].grad.any()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in heads.parameters())


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_minimising_a_regularizer_makes_the_labels_harder_to_predict(kind):
    """The sign, by effect: against the fixed head, the features lose bits about labels that the head predicts."""
    heads, (taps, _) = make_heads(), make_inputs()
    with torch.no_grad():
        logits_BK = F.layer_norm(taps[2], taps[2].shape[1:]) @ heads.heads[2][0].weight.T + heads.heads[2][0].bias
    labels_MB = logits_BK.argmax(1).expand(NUM_DRAWS, -1)
    terms = HeadTerms(regularizer=kind, regularized=(2,))
    before = heads(taps, labels_MB, terms)
    (gradient_BD,) = torch.autograd.grad(before.regularizer_RMB[0, 0].sum(), taps[2])
    after = heads([*taps[:2], taps[2] - 1e-3 * gradient_BD], labels_MB, terms)
    assert after.bits_TMB[2, 0].sum() < before.bits_TMB[2, 0].sum()


def test_joint_is_the_cross_entropy_with_the_gradient_in_the_features():
    heads, (taps, labels_MB) = make_heads(), make_inputs()
    losses = heads(taps, labels_MB, HeadTerms(joint=True))
    torch.testing.assert_close(losses.joint_TMB, losses.cross_entropy_TMB)
    losses.joint_TMB.sum().backward()
    assert all(tap.grad.abs().sum() > 0 for tap in taps)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in heads.parameters())


def test_unregularised_heads_add_no_graph_to_the_backbone():
    heads, (taps, labels_MB) = make_heads(), make_inputs()
    losses = heads(taps, labels_MB, HeadTerms())
    gradients = torch.autograd.grad(losses.cross_entropy_TMB.sum(), taps, allow_unused=True)
    assert gradients == (None,) * len(taps)


def test_heads_memorise_random_labels_of_fewer_samples_than_features():
    num_rows, dim = 20, 40
    features_BD = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(0))
    labels_MB = torch.randint(3, (1, num_rows), generator=torch.Generator().manual_seed(1))
    heads = RLPHeads([dim], 3, 1, seed=0)
    optimizer = torch.optim.SGD(heads.parameters(), lr=1.0)
    for _ in range(100):
        losses = heads([features_BD], labels_MB, HeadTerms())
        optimizer.zero_grad()
        losses.cross_entropy_TMB.mean().backward()
        optimizer.step()
    assert losses.hit_TMB.all()


def test_initial_predictions_are_nearly_uniform():
    num_labels, dim = 1000, 64
    heads = RLPHeads([dim], num_labels, 1, seed=0)
    features_BD = torch.randn(256, dim, generator=torch.Generator().manual_seed(0))
    weight_KD = heads.heads[0][0].weight
    logits_BK = F.layer_norm(features_BD, (dim,)) @ weight_KD.T
    assert logits_BK.std().item() == pytest.approx(INITIAL_LOGIT_STD, rel=0.03)
    losses = heads([features_BD], torch.zeros(1, 256, dtype=torch.int32), HeadTerms())
    assert losses.bits_TMB.abs().max() < 1
    assert not heads.heads[0][0].bias.any()


def test_one_more_tap_or_draw_changes_no_other_head():
    small, large = RLPHeads([6, 9], 5, 2, seed=0), RLPHeads([6, 9, 4], 5, 3, seed=0)
    state = large.state_dict()
    for name, values in small.state_dict().items():
        assert torch.equal(values, state[name]), name


def test_each_head_and_each_seed_has_its_own_weights():
    weights = [
        head.weight for seed in (0, 1) for tap_heads in RLPHeads([9, 9], 5, 2, seed=seed).heads for head in tap_heads
    ]
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 8


def test_initial_weights_do_not_depend_on_device_or_dtype_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    reference = RLPHeads(DIMS, NUM_LABELS, NUM_DRAWS, seed=3)
    built_on_meta = RLPHeads(DIMS, NUM_LABELS, NUM_DRAWS, seed=3, device="meta").to_empty(device="cpu")
    built_on_meta.reset_parameters()
    double = RLPHeads(DIMS, NUM_LABELS, NUM_DRAWS, seed=3, dtype=torch.float64)
    for name, values in reference.state_dict().items():
        assert torch.equal(values, built_on_meta.state_dict()[name]), name
        torch.testing.assert_close(values.double(), double.state_dict()[name], rtol=1e-6, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_larger_than_the_scratch_slab_is_normal_throughout():
    weight_KD = RLPHeads([500], 5000, 1, seed=0).heads[0][0].weight.detach() * math.sqrt(500) / INITIAL_LOGIT_STD
    for part in weight_KD.chunk(5):
        assert abs(part.mean().item()) < 5 / math.sqrt(part.numel())
        assert part.std().item() == pytest.approx(1, rel=0.01)
    assert len(weight_KD[:, 0].unique()) > 4990


def test_imagenet_scale_heads_are_described_on_the_meta_device():
    heads = RLPHeads([768] * 12, 100_000, 1, seed=0, device="meta")
    assert sum(parameter.numel() for parameter in heads.parameters()) == 12 * 100_000 * 769


def test_autocast_and_narrow_features_leave_the_loss_in_the_heads_dtype():
    heads, (taps, labels_MB) = make_heads(torch.float32), make_inputs(torch.bfloat16)
    terms = HeadTerms(regularizer="unlikelihood", regularized=(0,))
    plain = heads([tap.float() for tap in taps], labels_MB, terms)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = heads(taps, labels_MB, terms)
    assert torch.equal(narrow.cross_entropy_TMB, plain.cross_entropy_TMB)
    assert narrow.cross_entropy_TMB.dtype == torch.float32
    narrow.regularizer_RMB.sum().backward()
    assert taps[0].grad.dtype == torch.bfloat16


def test_a_step_reads_nothing_back_from_the_device():
    """Fake tensors have no values: any read of one, or a branch on one, raises."""
    taps, labels_MB = make_inputs(torch.float32)
    with FakeTensorMode() as mode:
        heads = RLPHeads(DIMS, NUM_LABELS, NUM_DRAWS, seed=0)
        fake_taps = [mode.from_tensor(tap) for tap in taps]
        terms = HeadTerms(regularizer="entropy", regularized=(1,), joint=True)
        losses = heads(fake_taps, mode.from_tensor(labels_MB), terms)
        (losses.cross_entropy_TMB.sum() + losses.regularizer_RMB.sum() + losses.joint_TMB.sum()).backward()
        assert all(parameter.grad is not None for parameter in heads.parameters())
    assert losses.hit_TMB.shape == (3, NUM_DRAWS, NUM_ROWS)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (([], 5, 1), "number of taps with heads is 0"),
        (([8, 0], 5, 1), "width of a tap is 0"),
        (([8], 1, 1), "num_labels is 1"),
        (([8], 5, 0), "num_draws is 0"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        RLPHeads(*sizes, seed=0)


@pytest.mark.parametrize(
    "terms", [{"regularizer": "uniform"}, {"regularized": (0,)}, {"regularizer": "uniform", "regularized": (1, 0)}]
)
def test_terms_that_contradict_themselves_are_refused(terms):
    with pytest.raises(ValueError, match="regularized"):
        HeadTerms(**terms)


def test_inputs_that_do_not_fit_are_refused():
    heads, (taps, labels_MB) = make_heads(), make_inputs()
    for bad_taps, bad_labels_MB in ((taps[:2], labels_MB), (taps[::-1], labels_MB), (taps, labels_MB[:1])):
        with pytest.raises(ValueError, match=r"width \[6, 9, 9\] and 2 draws got taps of shape"):
            heads(bad_taps, bad_labels_MB, HeadTerms())
    with pytest.raises(ValueError, match="positions in a list of 3 taps"):
        heads(taps, labels_MB, HeadTerms(regularizer="uniform", regularized=(3,)))
    with pytest.raises(ValueError, match=r"unknown regularizer 'uniforn'.*'uniform'"):
        heads(taps, labels_MB, HeadTerms(regularizer="uniforn", regularized=(0,)))


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_mixed_rows_weigh_both_labels_and_are_measured_by_the_first(num_blocks):
    heads = RLPHeads([8, 6], 5, 2, seed=0, num_blocks=num_blocks)
    taps = [torch.randn(12, width, requires_grad=True) for width in heads.tap_dims]
    first_MB, second_MB = torch.randint(0, 5 * num_blocks, (2, 2, 12))
    weight_B = torch.rand(12)
    terms = HeadTerms("unlikelihood", (0,), joint=True)
    both = heads(taps, first_MB, terms, (second_MB, weight_B))
    first, second = heads(taps, first_MB, terms), heads(taps, second_MB, terms)
    for name in ("cross_entropy_TMB", "regularizer_RMB", "joint_TMB"):
        expected = weight_B * getattr(first, name) + (1 - weight_B) * getattr(second, name)
        torch.testing.assert_close(getattr(both, name), expected)
    for name in ("hit_TMB", "bits_TMB", "margin_TMB"):
        torch.testing.assert_close(getattr(both, name), getattr(first, name))
    both.regularizer_RMB.sum().backward()
    assert taps[0].grad is not None
    assert taps[1].grad is None
