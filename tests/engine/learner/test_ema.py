"""The moving average of the weights: which steps move it, how far, and that a resumed run goes on exactly."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from rlpheads.engine.config.learning import AverageConfig
from rlpheads.engine.learner.ema import Average, build_average


def averages(decay: float, config: AverageConfig, num_steps: int) -> list[float]:
    """Return the average after each step of a weight that is the number of the step plus one."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = build_average(model, decay, config)
    found = []
    for number in range(num_steps):
        nn.init.constant_(model.weight, number + 1.0)
        average.update(model, number)
        found.append(float(average.module.weight.detach()))
    return found


def test_the_first_two_are_copied_and_then_the_decay_holds():
    assert averages(0.5, AverageConfig(), 4) == [1.0, 2.0, 2.5, 3.25]


def test_only_one_step_of_every_few_moves_it():
    assert averages(0.5, AverageConfig(every=3), 10) == [0, 0, 3, 3, 3, 6, 6, 6, 7.5, 7.5]


def test_the_decay_rises_to_its_end():
    """By its own formula; with gamma and power 1 and no end in reach, the plain mean of all that came after the first."""
    assert averages(0.9999, AverageConfig(warmup=True, warmup_power=1.0), 5) == pytest.approx([1, 2, 2.5, 3, 3.5])
    slow = averages(0.9999, AverageConfig(warmup=True, warmup_gamma=4.0, warmup_power=0.5), 3)[-1]
    decay = 1 - (1 + 1 / 4) ** -0.5
    assert slow == pytest.approx(decay * 2 + (1 - decay) * 3)
    assert averages(0.25, AverageConfig(warmup=True, warmup_power=1.0), 6)[-1] == averages(0.25, AverageConfig(), 6)[-1]


@pytest.mark.long
def test_one_by_one_is_the_same(tiny, build):
    found = []
    for foreach in (True, False):
        model = replace(tiny.model, ema_decay=0.5, ema=AverageConfig(foreach=foreach))
        training = build(tiny, model=model)
        train(training, 4)
        found.append(average_of(training))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, msg=name)


def train(training, num_steps: int, first: int = 0) -> None:
    training.learner.train()
    training.splits.trained.loader.set_epoch(0, first * training.run.config.batch_size)
    batches = iter(training.splits.trained.loader)
    for number in range(first, first + num_steps):
        training.step(training.preparation.for_evaluation(next(batches)), number, training.term_weights)


def average_of(training) -> dict[str, torch.Tensor]:
    assert isinstance(training.learner.ema, Average)
    return {name: tensor.clone() for name, tensor in training.learner.ema.module.state_dict().items()}


@pytest.mark.long
def test_a_resumed_run_goes_on_with_the_average_and_its_decay(tiny, build, resumed):
    """Stopped between two updates, while the decay still rises."""
    config = replace(tiny, model=replace(tiny.model, ema_decay=0.9, ema=AverageConfig(every=3, warmup=True)))
    whole = build(config)
    train(whole, 9)
    first = build(config)
    train(first, 7)
    second = resumed(first, 7)
    train(second, 2, first=7)
    expected, obtained = average_of(whole), average_of(second)
    assert all(torch.equal(obtained[name], tensor) for name, tensor in expected.items())
    assert not torch.equal(obtained["backbone.head.weight"], average_of(first)["backbone.head.weight"])
