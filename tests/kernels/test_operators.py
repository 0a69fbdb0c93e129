"""The package's operators: seen by whatever watches operators, computed without them where nothing does."""

import torch
from operator_counter import OperatorNames
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rlpheads.kernels.random_label_loss import random_label_losses


def values(features_BD: Tensor, weight_KD: Tensor, table: Tensor) -> list[Tensor]:
    labels = [(table, torch.arange(4), 1)] * 2
    losses = random_label_losses(features_BD, [weight_KD, weight_KD], labels, impl="batched").by_head()
    return [loss.cross_entropy_B for loss in losses]


def problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(5, (2, 4), generator=generator)
    return torch.randn(4, 7, generator=generator), torch.randn(5, 7, generator=generator), table


def test_whoever_watches_sees_the_operators_and_the_same_values() -> None:
    given = problem()
    plain = values(*given)
    with OperatorNames() as watched:
        found = values(*given)
    assert {"rlpheads::gather_labels", "rlpheads::batched_forward"} <= set(watched.names)
    assert all(map(torch.equal, found, plain))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        values(*given)
    assert "rlpheads::batched_forward" in {event.key for event in profile.key_averages()}


def test_fake_tensors_are_not_computed_with_inside_their_mode_or_outside() -> None:
    mode = FakeTensorMode()
    fake = [mode.from_tensor(tensor) for tensor in problem()]
    with mode:
        assert [tuple(each.shape) for each in values(*fake)] == [(4,)] * 2
    labels = mode.from_tensor(torch.zeros(4, dtype=torch.int64))
    (loss,) = random_label_losses([fake[0]], [fake[1]], [labels], impl="batched").by_head()
    assert type(loss.lse_B) is type(fake[0])
