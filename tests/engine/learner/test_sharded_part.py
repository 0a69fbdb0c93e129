"""Heads sharded by class in the engine, at one rank; `tests/distributed` has several ranks."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributed.tensor.debug import CommDebugMode

from rlpheads.engine.config.learning import OptimConfig, RegularizerConfig
from rlpheads.engine.learner.optimizer import ELEMENTWISE, build_optimizer
from rlpheads.engine.learner.sharded_part import ShardedPart
from rlpheads.engine.runs import checkpoint
from rlpheads.engine.runs.checkpoint import Retention, Writers
from rlpheads.engine.runs.checkpoint_writing import write_checkpoint
from rlpheads.memorization.heads.sharded_heads import ShardedRLPHeads


def sharded(config, **heads):
    return replace(config, heads=replace(config.heads, shard="class", **heads))


def whole(config, **heads):
    return replace(config, heads=replace(config.heads, **heads))


def take_steps(training, num_steps):
    """Train and return the figures of each step."""
    training.splits.trained.loader.set_epoch(0)
    training.learner.train()
    figures = []
    for number, delivered in zip(range(num_steps), training.splits.trained.loader, strict=False):
        batch = training.preparation.for_training(delivered, 0, number)
        figures.append({k: float(v) for k, v in training.step(batch, number, training.term_weights).items()})
    return figures


OPTIONS = {
    "plain": ({}, {}),
    "two micro-batches, hidden layers, audit heads": (
        {"accumulate": 2},
        {"hidden": 6, "dropout": 0.1, "audit_draws": 1},
    ),
    "regulariser and joint": ({"regularizer": RegularizerConfig("entropy", 0.5)}, {"joint": 0.5}),
    "clipped, in half precision": (
        {"precision": "fp16"},
        {"optim": OptimConfig(lr=1e-2, weight_decay=0.1, clip_norm=0.01)},
    ),
    "labels for each class": ({}, {"balance": "per_class"}),
}


@pytest.mark.parametrize(("changes", "heads"), OPTIONS.values(), ids=OPTIONS)
def test_sharded_heads_learn_what_whole_ones_learn(tiny, build, changes, heads):
    config = replace(tiny, **changes)
    trainings = [build(sharded(config, **heads)), build(whole(config, **heads))]
    figures = [take_steps(training, 4) for training in trainings]
    for found, expected in zip(*figures, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    ledgers = [training.splits.trained.ledger.tensors() for training in trainings]
    assert torch.equal(ledgers[0]["hit"], ledgers[1]["hit"])
    torch.testing.assert_close(ledgers[0]["bits"], ledgers[1]["bits"], rtol=1e-3, atol=1e-4)
    modules = [training.learner.parts for training in trainings]
    assert isinstance(modules[0]["heads"], ShardedPart)
    for name in modules[1]:
        parts = [part[name].module.state_dict() for part in modules]
        for key, expected in parts[1].items():
            found = parts[0][key]
            if name != "backbone":
                found = found.full_tensor() if hasattr(found, "full_tensor") else found
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
            elif not changes.get("regularizer"):
                assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("update", ["separate", "fused"])
def test_messages_of_a_step_with_audit_heads(tiny, build, precision, update):
    """One of features, one of partials, one of feature gradients, one of numbers: norm, overflows and what is not finite."""
    regularizer = RegularizerConfig("entropy", 0.5)
    training = build(
        sharded(replace(tiny, regularizer=regularizer, precision=precision), audit_draws=2, labels=1200, update=update)
    )
    assert training.learner.audit is not None
    with CommDebugMode() as counted:
        take_steps(training, 1)
    names = {str(name).rsplit(".", 1)[-1]: count for name, count in counted.get_comm_counts().items()}
    assert names == {"_allgather_base_": 2, "alltoall_base_": 1, "allreduce_": 1}


@pytest.mark.parametrize("first", ["class", "none"])
def test_checkpoints_go_from_sharded_to_whole_heads_and_back(tiny, build, first):
    second = {"class": "none", "none": "class"}[first]
    saving, loading = (build(whole(tiny, shard=shard, hidden=6)) for shard in (first, second))
    take_steps(saving, 3)
    state = saving.learner.state()
    writers = Writers(saving.run.launch.control, is_main=True)
    folder = write_checkpoint(saving.run.folder.checkpoints, 3, state, {}, writers, Retention(1))
    loaded = loading.learner.state()
    checkpoint.load(folder, loaded, loading.run.launch)
    loading.learner.load_optimizers(loaded)
    again = loading.learner.state()
    for part in ("heads", "heads_optimizer"):
        found, expected = (dict(flat(each[part])) for each in (again, state))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name
    weights = [checkpoint.weights_sha256(training.learner.heads.module) for training in (saving, loading)]
    assert weights[0] == weights[1]


def flat(state, prefix=""):
    """Every tensor and number of a state, whole."""
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, (dict, list)):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, (torch.Tensor, int, float)):
            yield f"{prefix}{key}", value.full_tensor() if hasattr(value, "full_tensor") else value


def learned(optim, start_KD, gradients):
    """A weight after steps with these gradients."""
    module = nn.Linear(1, 1, bias=False)
    module.weight = nn.Parameter(start_KD.clone())
    optimizer = build_optimizer(module, optim, optim.lr)
    for gradient_KD in gradients:
        module.weight.grad = gradient_KD.clone()
        optimizer.step()
    return module.weight.detach()


def in_ranges(optim, start_KD, gradients):
    """The same of ranges, one of which is empty, put together."""
    edges = [(0, 2), (2, 2), (2, 7)]
    return torch.cat([learned(optim, start_KD[a:b], [each[a:b] for each in gradients]) for a, b in edges])


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_optimizers_that_are_allowed_learn_the_same_in_ranges(name):
    generator = torch.Generator().manual_seed(0)
    start_KD, *gradients = torch.randn(6, 7, 3, generator=generator)
    optim = OptimConfig(name, lr=0.01, weight_decay=0.1)
    torch.testing.assert_close(
        in_ranges(optim, start_KD, gradients), learned(optim, start_KD, gradients), rtol=1e-6, atol=1e-7
    )


def test_optimizers_that_look_at_whole_matrices_do_not():
    generator = torch.Generator().manual_seed(0)
    start_KD, *gradients = torch.randn(6, 7, 3, generator=generator)
    optim = OptimConfig("lamb", lr=0.01, weight_decay=0.1)
    assert not torch.allclose(in_ranges(optim, start_KD, gradients), learned(optim, start_KD, gradients), rtol=1e-3)


def test_heads_are_not_compiled_and_live_where_they_are_to(tiny, build):
    heads = build(sharded(tiny)).learner.heads.module
    assert isinstance(heads, ShardedRLPHeads)
    assert {parameter.device.type for parameter in heads.parameters()} == {"cpu"}
