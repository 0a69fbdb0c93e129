"""Parts are stepped, scheduled and clipped each by itself."""

import pytest
import torch
from torch import nn

from rlpheads.engine.config import OptimConfig, ScheduleConfig
from rlpheads.engine.optimizer import Span, TrainedPart, build_part

SPAN = Span(epochs=10, steps_per_epoch=20)


def part(optim: OptimConfig | None = None, schedule: ScheduleConfig | None = None) -> TrainedPart:
    torch.manual_seed(0)
    return build_part(nn.Linear(4, 3), optim or OptimConfig(), schedule or ScheduleConfig(), SPAN, ddp=False)


def rates(trained: TrainedPart, steps: list[int]) -> list[float]:
    found = []
    for step in steps:
        trained.module(torch.ones(2, 4)).sum().backward()
        trained.update(step)
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
    trained.update(0)
    moved = torch.cat(
        [(new.detach() - old).flatten() for new, old in zip(trained.module.parameters(), before, strict=True)]
    )
    assert float(moved.norm()) == pytest.approx(0.25, rel=1e-4)


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
