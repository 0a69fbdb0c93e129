"""How it is computed: switches go back, weights keep their names, results stay."""

from dataclasses import replace

import pytest
import torch

from rlpheads.engine.config.run import RuntimeConfig
from rlpheads.engine.learner.runtime import torch_switches


def switches() -> tuple[bool, ...]:
    cuda = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    return *cuda, torch.are_deterministic_algorithms_enabled()


def test_switches_are_set_and_go_back():
    before = switches()
    with torch_switches(RuntimeConfig(tf32=True, cudnn_benchmark=True)):
        assert switches() == (True, True, True, False)
    with torch_switches(RuntimeConfig(deterministic=True, cudnn_benchmark=True)):
        assert switches() == (False, False, False, True)
    with pytest.raises(KeyError), torch_switches(RuntimeConfig(deterministic=True)):
        raise KeyError
    assert switches() == before


def steps_of(training, num_steps: int = 3) -> list[float]:
    training.learner.train()
    batches = iter(training.splits.trained.loader)
    shares = [
        training.step(training.preparation.for_evaluation(next(batches)), step, training.term_weights)
        for step in range(num_steps)
    ]
    return [float(share[name]) for share in shares for name in ("class_loss", "head_cross_entropy")]


def weights_of(training) -> dict[str, torch.Tensor]:
    return {name: tensor for _, part in training.learner.parts for name, tensor in part.module.state_dict().items()}


@pytest.mark.long
@pytest.mark.parametrize(
    "runtime", [{"activation_checkpointing": True}, {"deterministic": True}, {"channels_last": True}]
)
def test_results_stay(tiny, build, runtime):
    """Dropout included: what is computed again is dropped again."""
    plain, changed = build(tiny), build(tiny, runtime=RuntimeConfig(**runtime))
    with torch_switches(changed.run.config.runtime):
        assert steps_of(changed) == pytest.approx(steps_of(plain), rel=1e-6)
    for name, tensor in weights_of(plain).items():
        torch.testing.assert_close(weights_of(changed)[name], tensor, msg=name)


@pytest.mark.slow
def test_compiled_parts_learn_the_same_under_the_same_names(tiny, build):
    """Network and heads, whole graphs, with a place inside a block and the moving average beside them."""
    undropped = replace(tiny.model, ema_decay=0.9, args={**tiny.model.args, "drop_rate": 0.0})
    config = replace(tiny, model=undropped, heads=replace(tiny.heads, taps=["0.attn", 0, "blocks.1.mlp"]))
    plain, compiled = build(config), build(config, runtime=RuntimeConfig(compile=True))
    assert steps_of(compiled) == pytest.approx(steps_of(plain), rel=1e-4)
    for name, tensor in weights_of(plain).items():
        torch.testing.assert_close(weights_of(compiled)[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    assert compiled.learner.state().keys() == plain.learner.state().keys()
