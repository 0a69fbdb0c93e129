"""What a step that is not finite leaves alone: weights, optimizer and batch norm; and whose step is left out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlpheads.engine.config.learning import (
    LossScaleConfig,
    ModelConfig,
    OptimConfig,
    RegularizerConfig,
    StabilityConfig,
)
from rlpheads.engine.learner.optimizer import host_sync_warnings

OPTIMIZERS = ["adamw", "sgd", "lion"]


def state_of(training, part: str) -> dict[str, Tensor]:
    """Weights and what the optimizer keeps, but for its count of steps."""
    state = training.learner.state()
    found = {name: tensor.clone() for name, tensor in state[part].items()}
    kept = state[f"{part}_optimizer"]["state"]
    return found | {f"{name}.{key}": value.clone() for name, each in kept.items() for key, value in each.items()}


def take_step(training, number: int, *spoiled: str) -> dict[str, Tensor]:
    """Take a step, with an infinity in the gradients of some parts."""
    parts = training.learner.parts
    parameters = [next(iter(parts[name].module.parameters())) for name in spoiled]
    hooks = [parameter.register_hook(lambda gradient: gradient * torch.inf) for parameter in parameters]
    training.learner.train()
    training.splits.trained.loader.set_epoch(0, number * training.run.config.batch_size)
    batch = training.preparation.for_evaluation(next(iter(training.splits.trained.loader)))
    shares = training.step(batch, number, training.term_weights)
    for hook in hooks:
        hook.remove()
    return shares


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_left_out_changes_nothing(tiny, build, name):
    """In any optimizer, with clipping and accumulation; those without a fused step are let wait for it."""
    optim = OptimConfig(name=name, lr=0.01, clip_norm=1.0)
    settings = {"optim": optim, "heads": replace(tiny.heads, optim=optim), "accumulate": 2}
    training = build(tiny, stability=StabilityConfig(on_nonfinite="skip"), **settings)
    take_step(training, 0)
    before = {part: state_of(training, part) for part in ("backbone", "heads")}
    shares = take_step(training, 1, "backbone")
    assert {part: float(shares[f"{part}_nonfinite"]) for part in before} == {"backbone": 1.0, "heads": 1.0}
    assert all(same(state_of(training, part), before[part]) for part in before)
    assert float(take_step(training, 2)["backbone_nonfinite"]) == 0.0
    assert not any(same(state_of(training, part), before[part]) for part in before)


def test_heads_leave_their_own_step_out_alone(tiny, build):
    """The audit heads' trouble is not the heads', and neither's is the backbone's, as λ = 0 asks for."""
    regularized = replace(tiny, regularizer=RegularizerConfig(kind="uniform", factor=1.0))
    spoiled, plain = build(regularized), build(regularized)
    for training, parts in ((spoiled, ("audit",)), (plain, ())):
        take_step(training, 0, *parts)
    assert same(state_of(spoiled, "backbone"), state_of(plain, "backbone"))
    assert same(state_of(spoiled, "heads"), state_of(plain, "heads"))
    assert not same(state_of(spoiled, "audit"), state_of(plain, "audit"))


def test_batch_norm_forgets_images_that_are_not_finite(tiny, build):
    model = ModelConfig(name="wrn_16_4")
    training = build(tiny, model=model, heads=replace(tiny.heads, taps="none"))
    take_step(training, 0)
    before = {name: buffer.clone() for name, buffer in training.learner.tapped.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    batch = training.preparation.for_evaluation(next(iter(training.splits.trained.loader)))
    training.step(batch.with_images(batch.images * torch.nan), 1, training.term_weights)
    assert same(dict(training.learner.tapped.named_buffers()), before)
    training.step(batch, 2, training.term_weights)
    assert not same(dict(training.learner.tapped.named_buffers()), before)


def test_an_overflow_that_a_smaller_loss_scale_mends_is_none(tiny, build):
    """fp16 halves its scale and goes on; below 1, or where the loss itself is not finite, the step counts as not finite."""
    training = build(tiny, precision="fp16", loss_scale=LossScaleConfig(initial=2.0))
    flags = [float(take_step(training, number, "backbone")["backbone_nonfinite"]) for number in range(3)]
    assert flags == [0.0, 0.0, 1.0]  # at the scales 2, 1 and 1/2
    fresh = build(tiny, precision="fp16", loss_scale=LossScaleConfig(initial=1024.0))
    batch = fresh.preparation.for_evaluation(next(iter(fresh.splits.trained.loader)))
    shares = fresh.step(batch.with_images(batch.images * torch.nan), 0, fresh.term_weights)
    assert (float(shares["backbone_nonfinite"]), float(shares["heads_nonfinite"])) == (1.0, 1.0)


def test_optimizers_that_wait_to_leave_a_step_out_are_named(tiny):
    waiting = replace(tiny, optim=OptimConfig(name="lion"), stability=StabilityConfig(on_nonfinite="skip"))
    (line,) = host_sync_warnings(waiting)
    assert line.startswith("optim.name lion cannot leave a step out by itself: with on_nonfinite skip the host waits")
    assert not host_sync_warnings(replace(waiting, stability=StabilityConfig()))
