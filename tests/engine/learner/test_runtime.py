"""How it is computed: switches go back, weights keep their names, results stay."""

from dataclasses import replace

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize(("chosen", "mode"), [(True, None), ("reduce-overhead",) * 2, ("max-autotune",) * 2], ids=str)
def test_network_and_heads_are_one_graph_in_every_mode(tiny, build, monkeypatch, chosen, mode):
    """Traced in the mode that is asked for; what the mode does to the graph is torch's, and needs its compiler or a GPU."""
    asked, compiled = [], nn.Module.compile

    def traced(module: nn.Module, *, mode: str | None, **options) -> None:
        asked.append(mode)
        compiled(module, backend="aot_eager", **options)  # torch takes a mode with its own compiler only

    monkeypatch.setattr(nn.Module, "compile", traced)
    undropped = replace(tiny.model, args={**tiny.model.args, "drop_rate": 0.0})
    config = replace(tiny, model=undropped, heads=replace(tiny.heads, update="separate"))
    plain, changed = build(config), build(config, runtime=RuntimeConfig(compile=chosen))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert steps_of(changed, 2) == pytest.approx(steps_of(plain, 2), rel=1e-4)
    assert asked == [mode] * 2
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [True, "reduce-overhead", "max-autotune"])
def test_compiled_parts_learn_the_same_under_the_same_names(tiny, build, chosen):
    """Network and heads, whole graphs, with a place inside a block and the moving average beside them."""
    undropped = replace(tiny.model, ema_decay=0.9, args={**tiny.model.args, "drop_rate": 0.0})
    config = replace(tiny, model=undropped, heads=replace(tiny.heads, taps=["0.attn", 0, "blocks.1.mlp"]))
    plain, compiled = build(config), build(config, runtime=RuntimeConfig(compile=chosen))
    assert steps_of(compiled) == pytest.approx(steps_of(plain), rel=1e-4)
    for name, tensor in weights_of(plain).items():
        torch.testing.assert_close(weights_of(compiled)[name], tensor, atol=1e-4, rtol=1e-3, msg=name)
    assert compiled.learner.state().keys() == plain.learner.state().keys()
