"""How it is computed: switches go back, weights keep their names, results stay."""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from rlpheads.engine.config.learning import ModelConfig, RegularizerConfig
from rlpheads.engine.config.run import RuntimeConfig
from rlpheads.engine.learner.runtime import SideStream, torch_switches


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
    return {
        name: tensor for part in training.learner.parts.values() for name, tensor in part.module.state_dict().items()
    }


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


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "wrn_16_4"])
def test_what_is_computed_again_enters_the_statistics_of_batch_norm_once(tiny, build, name):
    config = replace(tiny, model=ModelConfig(name=name), data=replace(tiny.data, image_size=32), batch_size=8)
    plain, changed = build(config), build(config, runtime=RuntimeConfig(activation_checkpointing=True))
    assert steps_of(changed, 2) == pytest.approx(steps_of(plain, 2), rel=1e-6)
    for weight, tensor in weights_of(plain).items():
        torch.testing.assert_close(weights_of(changed)[weight], tensor, msg=weight)


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


class TracedStreams:
    """Streams that write down what they are asked for; the work itself runs where it is called."""

    def __init__(self, monkeypatch):
        self.told, self._current, self._names = [], "main", iter(["side"])
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda _tensor, stream: self.told.append(f"kept for {stream.name}")
        )

    def Stream(self):  # noqa: N802 - torch's name
        return TracedStream(self.told, next(self._names))

    def current_stream(self):
        return TracedStream(self.told, self._current)

    @contextmanager
    def stream(self, stream):
        before, self._current = self._current, stream.name
        self.told.append(f"work on {stream.name}")
        yield
        self._current = before


@dataclass(frozen=True)
class TracedStream:
    told: list
    name: str

    def wait_stream(self, other):
        self.told.append(f"{self.name} waits for {other.name}")


def test_a_side_stream_waits_for_what_it_reads_and_is_waited_for(monkeypatch):
    streams = TracedStreams(monkeypatch)
    side = SideStream(streams)
    with side.work(torch.zeros(2), torch.zeros(3)):
        pass
    side.join()
    forked = ["side waits for main", "kept for side", "kept for side", "work on side"]
    assert streams.told == [*forked, "main waits for side"]
    none = SideStream.of_device(torch.device("cpu"))
    with none.work(torch.zeros(2)):
        none.join()
    assert not none.exists


def weights_with(training, stream: SideStream) -> tuple[list[float], dict[str, torch.Tensor]]:
    training.step = replace(training.step, heads_stream=stream)
    return steps_of(training), weights_of(training)


def test_heads_beside_the_backbones_backward_pass_learn_the_same_bits(tiny, build, monkeypatch):
    """Apart from it where no gradient of theirs reaches the features, and with it where one does."""
    for config, is_apart in ((tiny, True), (replace(tiny, regularizer=RegularizerConfig(factor=1.0)), False)):
        streams = TracedStreams(monkeypatch)
        figures, weights = weights_with(build(config), SideStream(streams))
        expected, expected_weights = weights_with(build(config), SideStream())
        assert figures == expected
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected_weights.items())
        assert streams.told.count("work on side") == (6 if is_apart else 0)
        assert streams.told.count("main waits for side") == (3 if is_apart else 0)


@pytest.mark.gpu
def test_heads_on_a_stream_of_a_gpu_learn_the_same(tiny, build):
    found = []
    for stream in (SideStream(torch.cuda), SideStream()):
        figures, weights = weights_with(build(replace(tiny, device="cuda")), stream)
        torch.cuda.synchronize()
        found.append((figures, weights))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, tensor in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], tensor, rtol=1e-4, atol=1e-5)
