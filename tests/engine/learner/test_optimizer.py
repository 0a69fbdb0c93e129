"""Parts are stepped, scheduled and clipped each by itself."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from timm.optim import get_optimizer_info, list_optimizers
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from rlpheads.engine.config.learning import OptimConfig, ScheduleConfig
from rlpheads.engine.learner.optimizer import argument_defaults, build_optimizer, prepare_to_skip, stepper_of, take_step
from rlpheads.engine.learner.parts import TrainedPart, build_part
from rlpheads.engine.learner.schedule import Span

SPAN = Span(epochs=10, steps_per_epoch=20)


def part(optim: OptimConfig | None = None, schedule: ScheduleConfig | None = None) -> TrainedPart:
    torch.manual_seed(0)
    return build_part(nn.Linear(4, 3), optim or OptimConfig(), schedule or ScheduleConfig(), SPAN, ddp=False)


def rates(trained: TrainedPart, steps: list[int]) -> list[float]:
    found = []
    for step in steps:
        trained.module(torch.ones(2, 4)).sum().backward()
        trained.update(step, trained.gradient_norm())
        found.append(trained.lr)
    return found


def test_cosine_rises_then_falls_to_its_end():
    trained = part(OptimConfig(lr=1.0), ScheduleConfig(warmup_epochs=2, min_lr_fraction=0.1))
    first, rising, middle, last = rates(trained, [0, 20, 100, 199])
    assert 0 < first < 0.03
    assert rising == pytest.approx(0.5, abs=0.02)
    assert middle == pytest.approx(0.55, abs=0.01)
    assert last == pytest.approx(0.1, abs=0.001)


def test_constant_stays_at_its_peak():
    assert rates(part(OptimConfig(lr=0.5), ScheduleConfig(name="constant")), [0, 100, 199]) == [0.5, 0.5, 0.5]


def test_rate_depends_on_the_step_number_alone():
    """A resumed run sets out at any step."""
    schedule = ScheduleConfig(warmup_epochs=2)
    assert rates(part(schedule=schedule), [57]) == rates(part(schedule=schedule), [0, 56, 57])[-1:]


def test_clipping_bounds_the_step():
    optim = OptimConfig(name="momentum", lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=0.25)
    trained = part(optim, ScheduleConfig(name="constant"))
    before = [parameter.detach().clone() for parameter in trained.module.parameters()]
    (trained.module(torch.ones(2, 4)) * 1000).sum().backward()
    trained.update(0, trained.gradient_norm())
    moved = torch.cat(
        [(new.detach() - old).flatten() for new, old in zip(trained.module.parameters(), before, strict=True)]
    )
    assert float(moved.norm()) == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "args", "found"),
    [
        ("adamw", {"betas": [0.7, 0.95], "eps": 1e-6}, {"betas": (0.7, 0.95), "eps": 1e-6}),
        ("sgd", {"nesterov": False}, {"nesterov": False}),
        ("sgd", {}, {"nesterov": True}),
        ("lamb", {"trust_clip": True}, {"trust_clip": True}),
    ],
)
def test_arguments_are_the_optimizers_own(name, args, found):
    (group,) = part(OptimConfig(name=name, args=args, weight_decay=0.0)).optimizer.param_groups
    assert {key: group[key] for key in found} == found


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
def test_every_optimizer_takes_the_arguments_that_it_is_said_to_take():
    """Given what they are otherwise, nothing changes; what has a key of its own, or is the engine's, is not among them."""
    for name in list_optimizers():
        if get_optimizer_info(name).second_order or isinstance(get_optimizer_info(name).opt_class, str):
            continue
        defaults = argument_defaults(name)
        assert not defaults.keys() & {"params", "lr", "weight_decay", "momentum", "fused", "foreach", "maximize"}
        defaults.pop("betas", None)  # the first would be the momentum's
        given = {each: list(value) if isinstance(value, tuple) else value for each, value in defaults.items()}
        plain, told = (part(OptimConfig(name=name, args=args)).optimizer for args in ({}, given))
        assert [{**each, "params": 0} for each in told.param_groups] == [
            {**each, "params": 0} for each in plain.param_groups
        ], name


@pytest.mark.parametrize(("name", "betas"), [("adamw", (0.8, 0.999)), ("lion", (0.8, 0.99))])
def test_momentum_is_the_first_beta(name, betas):
    trained = part(OptimConfig(name=name, momentum=0.8))
    assert trained.optimizer.param_groups[0]["betas"] == betas


def test_gradients_are_dropped_after_a_step():
    trained = part()
    rates(trained, [0])
    assert all(parameter.grad is None for parameter in trained.module.parameters())


def test_biases_and_norms_do_not_decay():
    trained = build_part(
        nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
        OptimConfig(weight_decay=0.3),
        ScheduleConfig(),
        SPAN,
        ddp=False,
    )
    decays = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in trained.optimizer.param_groups}
    assert decays == {0.0: {1}, 0.3: {2}}


@pytest.mark.parametrize("layer_decay", [None, 0.9])
def test_what_the_model_excepts_does_not_decay(tiny, layer_decay):
    """Position embeddings and the class token have three axes: no rule by shape would find them."""
    from rlpheads.engine.model.builder import build_model

    model = build_model(tiny, 10)
    trained = build_part(
        model, OptimConfig(weight_decay=0.3, layer_decay=layer_decay), ScheduleConfig(), SPAN, ddp=False
    )
    decay = {id(p): group["weight_decay"] for group in trained.optimizer.param_groups for p in group["params"]}
    backbone = model.backbone
    assert {decay[id(kept)] for kept in (backbone.pos_embed, backbone.cls_token, backbone.norm.weight)} == {0.0}
    assert {decay[id(layer.weight)] for layer in (backbone.patch_embed.proj, backbone.head)} == {0.3}
    assert decay.keys() == {id(parameter) for parameter in model.parameters()}


def test_restarts_begin_lower_each_time_and_the_cool_down_stays_at_the_end():
    """Ten epochs: two cycles of four, then two at the last rate."""
    schedule = ScheduleConfig(cycles=2, cycle_decay=0.5, cooldown_epochs=2, min_lr_fraction=0.01)
    found = rates(part(OptimConfig(lr=1.0), schedule), [0, 79, 80, 159, 160, 199])
    assert found == pytest.approx([1.0, 0.01, 0.5, 0.01, 0.01, 0.01], abs=0.002)


def test_linear_goes_down_evenly():
    schedule = ScheduleConfig(name="linear", cooldown_epochs=2, min_lr_fraction=0.2)
    assert rates(part(OptimConfig(lr=1.0), schedule), [0, 40, 80, 199]) == pytest.approx([1.0, 0.8, 0.6, 0.2], abs=0.01)


def test_steps_and_milestones():
    step = ScheduleConfig(name="step", decay_every=4, decay_rate=0.5)
    assert rates(part(OptimConfig(lr=1.0), step), [0, 79, 80, 160]) == pytest.approx([1.0, 1.0, 0.5, 0.25])
    milestones = ScheduleConfig(name="multistep", milestones=[2, 7], decay_rate=0.1, warmup_epochs=1)
    found = rates(part(OptimConfig(lr=1.0), milestones), [10, 39, 40, 139, 140])
    assert found == pytest.approx([0.525, 1.0, 0.1, 0.1, 0.01], abs=0.03)


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 0.4), ("sqrt", 0.2)])
def test_rate_grows_with_the_batch_over_its_base(scaling, expected):
    optim = OptimConfig(lr=0.1, base_batch_size=256, batch_scaling=scaling)
    trained = build_part(nn.Linear(4, 3), optim, ScheduleConfig(name="constant"), Span(10, 20, 1024), ddp=False)
    assert rates(trained, [5]) == pytest.approx([expected])
    assert rates(part(OptimConfig(lr=0.1), ScheduleConfig(name="constant")), [5]) == [0.1]


def gradient_step(optim: OptimConfig) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return weights before a step of rate 1 on a large gradient, and what the step took from them."""
    trained = part(optim, ScheduleConfig(name="constant"))
    before = [parameter.detach().clone() for parameter in trained.module.parameters()]
    (trained.module(torch.ones(2, 4)) * 1000).sum().backward()
    trained.update(0, trained.gradient_norm())
    return before, [old - new for old, new in zip(before, trained.module.parameters(), strict=True)]


def test_clipping_by_value_and_by_the_weights_norms():
    plain = {"name": "momentum", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    _, taken = gradient_step(OptimConfig(**plain, clip_value=0.25))
    assert all(torch.allclose(step, torch.full_like(step, 0.25)) for step in taken)
    (weight, _), (step, _) = gradient_step(OptimConfig(**plain, clip_agc=0.01))
    torch.testing.assert_close(step.norm(dim=1), 0.01 * weight.norm(dim=1), rtol=1e-3, atol=1e-6)


def test_layers_learn_the_slower_the_earlier_they_are(tiny):
    from rlpheads.engine.model.builder import build_model

    optim = OptimConfig(lr=1.0, layer_decay=0.5)
    model = build_model(tiny, 10)
    trained = build_part(model, optim, ScheduleConfig(name="constant"), SPAN, ddp=False)
    trained.scheduler.step_update(0)
    rate = {id(p): group["lr"] for group in trained.optimizer.param_groups for p in group["params"]}
    backbone = model.backbone
    layers = (backbone.patch_embed.proj, backbone.blocks[0].norm1, backbone.blocks[1].norm1, backbone.head)
    found = [rate[id(layer.weight)] for layer in layers]
    assert found == pytest.approx([found[-1] * 0.5**k for k in (3, 2, 1, 0)])
    assert trained.lr == found[-1] == 1.0
    assert sum(len(group["params"]) for group in trained.optimizer.param_groups) == len(list(model.parameters()))


def network_and_optimizer(name: str, **args: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = build_optimizer(network, OptimConfig(name=name, args=args), 0.1)
    prepare_to_skip(optimizer)
    return network, optimizer


def take_some_steps(network: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[..., None]) -> None:
    """Seven steps: the second is left out, the third divided, and the last layer's weight has a gradient in some alone."""
    torch.manual_seed(1)
    for number in range(7):
        for weight in network.parameters():
            weight.grad = torch.randn_like(weight)
        if number in (0, 4):
            network[1].weight.grad = None
        if number == 5:  # as a resumed run does
            optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
        step(torch.tensor(number == 1), torch.tensor(3.0) if number == 2 else None)


@pytest.mark.parametrize(
    ("name", "args"), [("adamw", {}), ("adam", {"betas": (0.7, 0.9)}), ("adamw", {"amsgrad": True}), ("sgd", {})]
)
def test_steps_that_look_states_up_once_are_the_optimizers_own(name, args):
    theirs, their_optimizer = network_and_optimizer(name, **args)
    take_some_steps(theirs, their_optimizer, partial(take_step, their_optimizer))
    ours, our_optimizer = network_and_optimizer(name, **args)
    take_some_steps(ours, our_optimizer, stepper_of(our_optimizer))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
        for key, kept in their_optimizer.state[other].items():
            assert torch.equal(our_optimizer.state[mine][key], kept), key


def test_hooks_and_traces_see_every_step():
    network, optimizer = network_and_optimizer("adamw")
    step, told = stepper_of(optimizer), []
    take_some_steps(network, optimizer, step)
    hooks = [optimizer.register_step_post_hook(lambda *_: told.append("its own"))]
    hooks.append(register_optimizer_step_post_hook(lambda *_: told.append("all")))
    step(torch.tensor(False), None)
    for hook in hooks:
        hook.remove()
    step(torch.tensor(False), None)
    assert told == ["its own", "all"]
    with torch.profiler.profile(acc_events=True, activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        step(torch.tensor(False), None)
    assert "Optimizer.step#AdamW.step" in {event.name for event in trace.events()}
