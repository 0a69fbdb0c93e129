"""fp16: what an overflow leaves alone, how the scales move, and that nothing couples the parts."""

from dataclasses import replace

import pytest
import torch
from operator_counter import OperatorNames
from torch import nn

from rlpheads.engine.config.learning import LossScaleConfig, OptimConfig, ScheduleConfig
from rlpheads.engine.learner.optimizer import FUSED, host_sync_warnings
from rlpheads.engine.learner.parts import TrainedPart, build_part, with_loss_scale
from rlpheads.engine.learner.schedule import Span

CPU = torch.device("cpu")
PLAIN = {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.1}


@pytest.fixture
def half(tiny):
    return replace(tiny, precision="fp16")


def part(optim: OptimConfig, initial: float = 8.0, growth_every: int = 2000) -> TrainedPart:
    torch.manual_seed(0)
    built = build_part(nn.Linear(4, 3), optim, ScheduleConfig(name="constant"), Span(10, 20), ddp=False)
    return with_loss_scale(built, LossScaleConfig(initial, growth_every), CPU)


def unscaled(optim: OptimConfig) -> TrainedPart:
    torch.manual_seed(0)
    return build_part(nn.Linear(4, 3), optim, ScheduleConfig(name="constant"), Span(10, 20), ddp=False)


def step(trained: TrainedPart, number: int, spoil: bool = False) -> None:
    trained.scaled(trained.module(torch.ones(2, 4)).square().sum()).backward()
    if spoil:
        trained.module.weight.grad[0, 0] = torch.inf
    trained.update(number, trained.gradient_norm())


def take_steps(training, num_steps: int, first: int = 0) -> list[dict[str, float]]:
    training.learner.train()
    training.splits.trained.loader.set_epoch(0, first * training.run.config.batch_size)
    batches = iter(training.splits.trained.loader)
    numbers = range(first, first + num_steps)
    shares = [
        training.step(training.preparation.for_evaluation(next(batches)), number, training.term_weights)
        for number in numbers
    ]
    return [{name: float(value) for name, value in share.items()} for share in shares]


def weights_of(training) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor.clone()
        for part, trained in training.learner.parts.items()
        for name, tensor in trained.module.state_dict().items()
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], prefix: str = "") -> bool:
    names = [name for name in left if name.startswith(prefix)]
    return bool(names) and all(torch.equal(left[name], right[name]) for name in names)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "momentum", "lion"])
@pytest.mark.parametrize("at", [0, 1])
def test_an_overflow_leaves_the_step_out_and_halves_the_scale(name, at):
    """Also the very first step, which torch's fused SGD would leave with a momentum that nobody has set."""
    trained, expected = part(OptimConfig(name=name, **PLAIN)), unscaled(OptimConfig(name=name, **PLAIN))
    for number in range(4):
        before = trained.module.weight.detach().clone()
        step(trained, number, spoil=number == at)
        if number != at:
            step(expected, number)
        assert torch.equal(trained.module.weight, before) == (number == at)
    torch.testing.assert_close(trained.module.weight, expected.module.weight)
    assert float(trained.loss_scale.factor) == 4.0


@pytest.mark.parametrize("initial", [8.0, 8])
def test_the_scale_doubles_after_steps_in_a_row(initial):
    trained = part(OptimConfig(**PLAIN), initial, growth_every=2)
    found = []
    for number in range(5):
        step(trained, number, spoil=number == 1)
        found.append(float(trained.loss_scale.factor))
    assert found == [8.0, 4.0, 4.0, 8.0, 8.0]


@pytest.mark.parametrize("clip", [{"clip_norm": 0.25}, {"clip_value": 0.25}, {"clip_agc": 0.01}])
def test_gradients_are_clipped_after_the_scale_is_taken_out(clip):
    optim = OptimConfig(name="momentum", lr=1.0, momentum=0.0, weight_decay=0.0, **clip)
    trained, expected = part(optim, initial=1024.0), unscaled(optim)
    step(trained, 0)
    step(expected, 0)
    torch.testing.assert_close(trained.module.weight, expected.module.weight)


@pytest.mark.parametrize("name", ["adamw", "momentum", "lion"])
def test_weights_and_scale_move_as_with_torchs_own_scaler(name):
    optim = OptimConfig(name=name, clip_norm=0.25, **PLAIN)
    trained, theirs = part(optim, initial=1024.0, growth_every=3), unscaled(optim)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    for number in range(12):
        spoil = number in (2, 3, 8)
        step(trained, number, spoil)
        scaler.scale(theirs.module(torch.ones(2, 4)).square().sum()).backward()
        if spoil:
            theirs.module.weight.grad[0, 0] = torch.inf
        scaler.unscale_(theirs.optimizer)
        torch.nn.utils.clip_grad_norm_(theirs.module.parameters(), 0.25)
        theirs.scheduler.step_update(number)
        scaler.step(theirs.optimizer)
        scaler.update()
        theirs.optimizer.zero_grad()
        assert float(trained.loss_scale.factor) == scaler.get_scale()
        torch.testing.assert_close(trained.module.weight, theirs.module.weight)


def test_nothing_goes_through_the_gradients_before_a_fused_step_but_their_norm():
    trained = part(OptimConfig(clip_norm=0.25, **PLAIN))
    trained.scaled(trained.module(torch.ones(2, 4)).square().sum()).backward()
    with OperatorNames() as called:
        trained.update(0, trained.gradient_norm())
    of_gradients = [name for name in called.names if "_foreach_" in name or "_amp_foreach" in name]
    assert [name for name in of_gradients if "norm" in name] == ["aten::_foreach_norm.Scalar"]
    assert not any("mul" in name or "div" in name or "unscale" in name for name in of_gradients), of_gradients


def test_a_step_that_is_left_out_is_no_overflow():
    trained = part(OptimConfig(**PLAIN))
    before = trained.module.weight.detach().clone()
    trained.scaled(trained.module(torch.ones(2, 4)).square().sum()).backward()
    trained.update(0, trained.gradient_norm(), torch.tensor(True))
    assert torch.equal(trained.module.weight, before)
    assert float(trained.loss_scale.factor) == 8.0


@pytest.mark.parametrize("name", sorted(FUSED))
def test_fused_optimizers_leave_a_step_out_on_the_device(name):
    assert unscaled(OptimConfig(name=name)).optimizer._step_supports_amp_scaling


def test_optimizers_that_make_the_host_wait_are_named(half):
    waiting = replace(half, heads=replace(half.heads, optim=OptimConfig(name="lion")))
    (line,) = host_sync_warnings(waiting)
    assert line.startswith("heads.optim.name lion cannot leave a step out by itself")
    assert not host_sync_warnings(half)
    assert not host_sync_warnings(replace(waiting, precision="bf16"))
    assert not host_sync_warnings(replace(waiting, heads=replace(waiting.heads, taps="none")))


def test_heads_leave_the_backbone_bit_identical_whatever_overflows_in_them(half, build):
    """Their gradients overflow and the backbone's do not: a shared scale would leave out its steps too."""
    clipped = replace(half, optim=replace(half.optim, clip_norm=0.5), loss_scale=LossScaleConfig(initial=1024.0))
    alone = build(clipped, heads=replace(half.heads, taps="none"))
    beside = build(clipped)
    next(beside.learner.heads.module.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    before = weights_of(beside)
    take_steps(alone, 3)
    shares = take_steps(beside, 3)
    assert same(weights_of(beside), weights_of(alone), "backbone.")
    assert same(weights_of(beside), before, "heads.")
    assert [share["heads_loss_scale"] for share in shares] == [512.0, 256.0, 128.0]
    assert [share["backbone_loss_scale"] for share in shares] == [1024.0] * 3


def test_an_overflow_in_the_backbone_leaves_the_heads_steps_alone(half, build):
    training = build(half, loss_scale=LossScaleConfig(initial=2.0**60))
    training.learner.heads.loss_scale.load(
        {"factor": torch.tensor(1024.0, dtype=torch.float64), "num_good_steps": torch.tensor(0)}
    )
    before = weights_of(training)
    (share,) = take_steps(training, 1)
    assert same(weights_of(training), before, "backbone.")
    assert not same(weights_of(training), before, "heads.")
    assert (share["backbone_loss_scale"], share["heads_loss_scale"]) == (2.0**59, 1024.0)


def test_half_precision_learns_what_full_precision_learns(half, tiny, build):
    """Regulariser and joint term included, whose gradients carry the backbone's scale and not the heads'."""
    from rlpheads.engine.config.learning import RegularizerConfig

    settings = {
        "regularizer": RegularizerConfig(kind="uniform", factor=1.0),
        "heads": replace(tiny.heads, joint=0.5),
        "model": replace(tiny.model, args={**tiny.model.args, "drop_rate": 0.0}),
        "accumulate": 2,
    }
    full, scaled = take_steps(build(tiny, **settings), 6), take_steps(build(half, **settings), 6)
    for name in ("class_loss", "head_cross_entropy", "regularizer", "joint", "audit_head_cross_entropy"):
        assert [row[name] for row in scaled] == pytest.approx([row[name] for row in full], rel=5e-3), name
    assert scaled[-1]["backbone_loss_scale"] == 65536.0


def test_a_resumed_run_goes_on_with_the_scales_it_had(half, build, resumed):
    """Saved in the middle of halving and counting: the same bits as a run that was never stopped."""
    config = replace(half, loss_scale=LossScaleConfig(initial=2.0**60, growth_every=3))
    whole = build(config)
    take_steps(whole, 8)
    first = build(config)
    take_steps(first, 5)
    second = resumed(first, 5)
    assert second.learner.loss_scales == first.learner.loss_scales != build(config).learner.loss_scales
    take_steps(second, 3, first=5)
    assert same(weights_of(second), weights_of(whole))
    assert second.learner.loss_scales == whole.learner.loss_scales
