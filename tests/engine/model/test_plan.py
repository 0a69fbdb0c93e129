"""The plan of a model says what the model has, and a run builds its network once for the plan and once to train it."""

from dataclasses import replace

import pytest
import timm
import torch

from rlpheads.engine.config.learning import ModelConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner.learner import num_parameters
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.model.plan import plan_model
from rlpheads.engine.training.job import run


@pytest.mark.long
def test_plan_agrees_with_the_model_that_is_built(tiny: Config) -> None:
    plan = plan_model(tiny, 10)
    model = build_model(tiny, 10)
    logits, taps = model.eval()(torch.zeros(2, 3, 8, 8))
    assert plan.num_classes == logits.shape[-1] == 10
    assert plan.dims == tuple(tap.shape[-1] for tap in taps) == (24, 24)
    assert plan.num_parameters == num_parameters(model)
    assert (plan.places, plan.taps) == (model.places, (0, 1))
    assert not plan.has_batch_norm


@pytest.mark.long
def test_plan_takes_no_memory_for_weights_or_gradients(tiny: Config) -> None:
    model = plan_model(tiny, 10).model
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


@pytest.mark.long
def test_planning_draws_no_random_number(tiny: Config) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    plan_model(tiny, 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "has_batch_norm", "supports_checkpointing"),
    [("resnet18", True, True), ("wrn_16_4", True, True), ("convnext_atto", False, True), ("repvgg_a0", True, True)],
)
def test_plan_knows_batch_norm_and_checkpointing(
    tiny: Config, name: str, has_batch_norm: bool, supports_checkpointing: bool
) -> None:
    config = replace(tiny, model=ModelConfig(name), data=replace(tiny.data, image_size=64))
    plan = plan_model(config, 10)
    assert (plan.has_batch_norm, plan.supports_checkpointing) == (has_batch_norm, supports_checkpointing)
    assert plan.image_flops


@pytest.mark.long
def test_a_start_builds_the_network_once_for_the_plan_and_once_to_train_it(
    tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []
    create = timm.create_model

    def counting(*args: object, **kwargs: object) -> object:
        devices.append(torch.get_default_device().type)
        return create(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", counting)
    assert run(replace(tiny, max_steps=2)) == 0
    assert devices == ["meta", "cpu"]
