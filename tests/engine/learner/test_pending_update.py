"""Heads that are stepped where their gradients are made: they learn what they would by torch's own step."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from rlpheads.engine.config.data import MixConfig
from rlpheads.engine.config.learning import (
    LossScaleConfig,
    OptimConfig,
    RegularizerConfig,
    ScheduleConfig,
    StabilityConfig,
)
from rlpheads.engine.learner.parts import build_part, with_loss_scale, with_pending_update
from rlpheads.engine.learner.schedule import Span
from rlpheads.engine.learner.shard_choice import fuses_update
from rlpheads.engine.runs import checkpoint
from rlpheads.engine.runs.checkpoint import Retention, Writers
from rlpheads.engine.runs.checkpoint_writing import write_checkpoint
from rlpheads.memorization.heads.combined_loss import TermWeights, combine_losses
from rlpheads.memorization.heads.head_losses import HeadTerms
from rlpheads.memorization.heads.rlp_heads import RLPHeads

CPU = torch.device("cpu")
MANY = 1200
"""Labels of a head that 32 rows make large enough for tiles."""

COSINE = ScheduleConfig("cosine", warmup_epochs=0.5)
STEPPED = {
    "adamw": OptimConfig("adamw", lr=3e-3, weight_decay=0.1),
    "adam with L2": OptimConfig("adam", lr=3e-3, weight_decay=0.1),
    "sgd": OptimConfig("sgd", lr=0.3, weight_decay=0.01),
    "momentum": OptimConfig("momentum", lr=0.3, weight_decay=0.01),
    "sgd without momentum": OptimConfig("momentum", lr=0.3, momentum=0.0),
    "lion, one head at a time": OptimConfig("lion", lr=1e-3, weight_decay=0.1),
}


def with_heads(config, update, **heads):
    return replace(config, heads=replace(config.heads, update=update, **{"labels": MANY, **heads}))


def take_steps(training, num_steps, spoiled=()):
    """Train; the images of spoiled steps are not finite. Return the figures of each step."""
    training.splits.trained.loader.set_epoch(0)
    training.learner.train()
    figures = []
    for number, delivered in zip(range(num_steps), training.splits.trained.loader, strict=False):
        batch = training.preparation.for_training(delivered, 0, number)
        if number in spoiled:
            batch = batch.with_images(batch.images * torch.nan)
        figures.append({k: float(v) for k, v in training.step(batch, number, training.term_weights).items()})
    return figures


def flat(state, prefix=""):
    """Every tensor and number of a state."""
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, (dict, list)):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, (torch.Tensor, int, float)) and key != "lr":  # the schedule's
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            yield f"{prefix}{key}", torch.as_tensor(whole).clone()


def state_of(training, *parts):
    state = training.learner.state()
    names = [f"{part}{kind}" for part in parts for kind in ("", "_optimizer")]
    return {f"{name} {key}": value for name in names for key, value in flat(state[name])}


def own_steps(heads, optim, update, num_steps=20, is_scaled=False):
    """Train heads alone on features that are always the same, at one batch a step; return their part."""
    part = build_part(heads, optim, COSINE, Span(2, num_steps // 2, 32), ddp=False)
    part = with_loss_scale(part, LossScaleConfig(), torch.device("cpu")) if is_scaled else part
    part = with_pending_update(part) if update == "fused" else part
    generator = torch.Generator().manual_seed(0)
    for number in range(num_steps):
        taps = [torch.randn(32, dim, generator=generator) for dim in heads.tap_dims]
        labels_MB = torch.randint(heads.num_labels, (heads.num_draws, 32), generator=generator)
        losses = part.wrapped(taps, labels_MB, HeadTerms())
        loss = combine_losses(losses, torch.ones(32, dtype=torch.bool), 32, 1, TermWeights()).heads
        part.scaled(loss).backward()
        part.update(number, part.gradient_norm())
    return part


@pytest.mark.parametrize(
    ("clip_norm", "is_scaled"),
    [(None, False), (0.3, False), (0.3, True)],
    ids=["not clipped", "clipped", "clipped, with a loss scale"],
)
@pytest.mark.parametrize("optim", STEPPED.values(), ids=STEPPED)
def test_twenty_steps_are_those_of_the_optimizer(optim, clip_norm, is_scaled):
    """Weights and states, with weight decay, bias correction, schedule and clipping; a 20th step in float32's rounding."""
    optim = replace(optim, clip_norm=clip_norm)
    parts = [
        own_steps(RLPHeads((24, 40), MANY, 1, seed=0), optim, update, is_scaled=is_scaled)
        for update in ("fused", "separate")
    ]
    ours, theirs = (dict(part.module.named_parameters()) for part in parts)
    start = dict(RLPHeads((24, 40), MANY, 1, seed=0).named_parameters())
    tolerance = 2e-3 if optim.name == "lion" else 5e-6  # a sign may be another where it is near 0
    for name, expected in theirs.items():
        assert norm(ours[name] - expected) <= tolerance * norm(expected - start[name]) > 0, name
        states = [
            part.optimizer.state[parameter] for part, parameter in zip(parts, (ours[name], expected), strict=True)
        ]
        assert states[0].keys() == states[1].keys()
        for key, value in states[1].items():
            assert states[0][key].dtype == value.dtype
            power = 2 if key == "exp_avg_sq" else 1  # of squares the relative error is twice that of the gradients
            assert norm(states[0][key] - value) <= power * 5e-6 * norm(value), (name, key)


def norm(tensor):
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))


@pytest.mark.parametrize("clip_norm", [None, 1e6])
@pytest.mark.parametrize(
    "optim", [STEPPED["adamw"], STEPPED["lion, one head at a time"]], ids=["tiles", "one at a time"]
)
def test_the_norm_is_that_of_the_gradient_whether_or_not_a_step_depends_on_it(optim, clip_norm):
    part = build_part(
        RLPHeads((24, 40), MANY, 1, seed=0), replace(optim, clip_norm=clip_norm), COSINE, Span(2, 10, 32), ddp=False
    )
    heads, expected = RLPHeads((24, 40), MANY, 1, seed=0), []
    part = with_pending_update(part)
    generator = torch.Generator().manual_seed(0)
    taps = [torch.randn(32, dim, generator=generator) for dim in heads.tap_dims]
    labels_MB = torch.randint(MANY, (1, 32), generator=generator)
    for module in (heads, part.module):
        losses = module(taps, labels_MB, HeadTerms())
        combine_losses(losses, torch.ones(32, dtype=torch.bool), 32, 1, TermWeights()).heads.backward()
    expected = torch.nn.utils.get_total_norm([parameter.grad for parameter in heads.parameters()])
    bound = part.gradient_norm()
    assert bound >= (1 - 1e-5) * expected
    for left_out in (torch.tensor(True), None):
        if left_out is None:  # what was left out is dropped: once more
            losses = part.module(taps, labels_MB, HeadTerms())
            combine_losses(losses, torch.ones(32, dtype=torch.bool), 32, 1, TermWeights()).heads.backward()
            bound = part.gradient_norm()
        torch.testing.assert_close(
            part.update(0, bound, left_out), expected, rtol=3e-5, atol=0.0
        )  # torch sums in float32


OPTIONS = {
    "clipped": ({}, {"optim": OptimConfig(lr=1e-2, weight_decay=0.1, clip_norm=0.01)}),
    "regulariser, joint and audit heads": ({"regularizer": RegularizerConfig("entropy", 0.5)}, {"joint": 0.5}),
    "hidden layers and dropout": ({}, {"hidden": 20, "dropout": 0.1}),
    "sharded by class": ({}, {"shard": "class"}),
    "half precision": ({"precision": "fp16"}, {"optim": OptimConfig("sgd", lr=0.1, clip_norm=0.1)}),
    "half precision, sharded": ({"precision": "fp16"}, {"optim": OptimConfig("sgd", lr=0.1), "shard": "class"}),
}


@pytest.mark.parametrize(("changes", "heads"), OPTIONS.values(), ids=OPTIONS)
def test_a_run_learns_the_same_either_way(tiny, build, changes, heads):
    config = replace(tiny, **changes)
    trainings = [build(with_heads(config, update, **heads)) for update in ("fused", "separate")]
    figures = [take_steps(training, 4) for training in trainings]
    for found, expected in zip(*figures, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
        assert math.isfinite(found["heads_grad_norm"])
    parts = ["heads", *(["audit"] if trainings[0].learner.audit is not None else [])]
    ours, theirs = (state_of(training, *parts) for training in trainings)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-3, atol=1e-4, check_dtype=True)


def test_mixed_rows_of_two_labels(tiny, build):
    config = replace(tiny, data=replace(tiny.data, mix=MixConfig(mixup=0.8)))
    figures = [take_steps(build(with_heads(config, update)), 3) for update in ("fused", "separate")]
    for found, expected in zip(*figures, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shard", ["none", "class"])
@pytest.mark.parametrize("response", ["stop", "skip"])
def test_a_step_that_is_not_finite_changes_nothing_of_any_head(tiny, build, shard, response):
    stability = StabilityConfig(on_nonfinite=response)
    training = build(with_heads(replace(tiny, stability=stability), "fused", shard=shard))
    take_steps(training, 1)
    before = state_of(training, "heads")
    (_, spoiled) = take_steps(training, 2, spoiled={0, 1})
    assert spoiled["heads_nonfinite"] == 1.0
    after = state_of(training, "heads")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert take_steps(training, 1)[0]["heads_nonfinite"] == 0.0
    assert not all(torch.equal(value, before[name]) for name, value in state_of(training, "heads").items())


def test_an_overflow_in_half_precision_changes_nothing_of_any_head(tiny, build):
    optim = OptimConfig("adamw", lr=1e-2)
    training = build(with_heads(replace(tiny, precision="fp16"), "fused", optim=optim))
    before = state_of(training, "heads")
    scale = training.learner.loss_scales["heads_loss_scale"].clone()
    take_steps(training, 1, spoiled={0})
    after = {name: value for name, value in state_of(training, "heads").items() if name in before}
    assert all(torch.equal(after[name], before[name]) for name in before if "_optimizer" not in name)
    assert training.learner.loss_scales["heads_loss_scale"] == scale / 2


@pytest.mark.parametrize("order", [("separate", "fused"), ("fused", "separate")], ids=" then ".join)
@pytest.mark.parametrize("optim", [OptimConfig(lr=1e-2), OptimConfig("sgd", lr=0.1)], ids=["adamw", "sgd"])
def test_a_checkpoint_of_one_is_one_of_the_other(tiny, build, optim, order):
    """Loaded to the last bit under the same names; the steps that follow are those of a run that went on."""
    saving, loading, going_on = (
        build(with_heads(tiny, update, optim=optim)) for update in (order[0], order[1], order[0])
    )
    writers = Writers(saving.run.launch.control, is_main=True)
    for training in (saving, going_on):
        take_steps(training, 2)
    folder = write_checkpoint(saving.run.folder.checkpoints, 2, saving.learner.state(), {}, writers, Retention(1))
    state = loading.learner.state()
    checkpoint.load(folder, state, loading.run.launch)
    loading.learner.load_optimizers(state)
    ours, theirs = state_of(loading, "heads"), state_of(saving, "heads")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) and ours[name].dtype == value.dtype for name, value in theirs.items())
    for training in (loading, going_on):
        take_steps(training, 2)
    ours, theirs = state_of(loading, "heads"), state_of(going_on, "heads")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def test_a_second_backward_pass_before_the_update_is_refused():
    heads = RLPHeads((24,), MANY, 1, seed=0)
    part = with_pending_update(build_part(heads, OptimConfig(), ScheduleConfig(), Span(1, 1), ddp=False))
    losses = part.wrapped([torch.randn(32, 24)], torch.zeros(1, 32, dtype=torch.long), HeadTerms())
    losses.cross_entropy_TMB.sum().backward(retain_graph=True)
    assert heads.heads[0][0].weight.grad is None
    with pytest.raises(RuntimeError, match="second backward pass reached a head before its update"):
        losses.cross_entropy_TMB.sum().backward()


def test_few_labels_go_through_the_optimizer_alone():
    heads = RLPHeads((24,), 10, 1, seed=0)
    before = [parameter.detach().clone() for parameter in heads.parameters()]
    part = own_steps(heads, OptimConfig(), "fused", num_steps=2)
    assert all(not torch.equal(now, then) for now, then in zip(heads.parameters(), before, strict=True))
    assert isinstance(part.module, nn.Module)


def test_auto_fuses_where_nothing_is_kept(tiny):
    assert fuses_update(tiny, CPU, is_averaged=False)
    assert not fuses_update(tiny, CPU, is_averaged=True)
    assert not fuses_update(tiny, torch.device("cuda"), is_averaged=False)
    assert not fuses_update(replace(tiny, accumulate=2), CPU, is_averaged=False)
    assert not fuses_update(with_heads(tiny, "separate"), CPU, is_averaged=False)
    for optim in (OptimConfig("lion"), OptimConfig("muon"), OptimConfig(clip_value=1.0)):
        assert not fuses_update(with_heads(tiny, "auto", optim=optim), CPU, is_averaged=False)
