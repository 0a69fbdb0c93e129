"""Traces on request: which steps are in them, and that a run ends with the same bits."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rlpheads.engine.config.run import ProfileConfig, RuntimeConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.gauges.tracing import StepTracer
from rlpheads.engine.report.display import Display
from rlpheads.engine.runs.resume import check_settings
from rlpheads.engine.training.loop import fit


@pytest.fixture
def said() -> list[str]:
    return []


def traced(launched, folder: Path, said: list[str], numbers: range, **settings) -> list[Path]:
    tracer = StepTracer(ProfileConfig(**settings), launched, folder / "profile", said.append)
    for number in numbers:
        with tracer.step(number):
            torch.ones(number + 1).cos()
    tracer.close()
    return sorted((folder / "profile").glob("*")) if (folder / "profile").exists() else []


def spans(path: Path) -> list[str]:
    """Return the names of the steps in a trace, in the order of their beginnings."""
    events = json.loads(path.read_text())["traceEvents"]
    steps = [event for event in events if event.get("name", "").startswith("training step") and event["ph"] == "X"]
    return [event["name"] for event in sorted(steps, key=lambda event: event["ts"])]


def test_the_steps_that_were_asked_for_are_traced(launched, tmp_path, said):
    (path,) = traced(launched, tmp_path, said, range(9), first=3, steps=2)
    assert path.name == "steps=000003-000004.rank=0000.json"
    assert spans(path) == ["training step 3", "training step 4"]
    events = json.loads(path.read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::cos" for event in events) == 2
    assert said == [f"trace of steps 3 to 4: {path}"]


def test_a_run_that_ends_inside_the_window_leaves_what_there_is(launched, tmp_path, said):
    (path,) = traced(launched, tmp_path, said, range(5, 9), first=3, steps=100)
    assert path.name == "steps=000005-000008.rank=0000.json"
    assert len(spans(path)) == 4


def test_nothing_is_written_unasked_and_a_window_that_was_missed_is_named(launched, tmp_path, said):
    assert traced(launched, tmp_path, said, range(3)) == []
    assert said == []
    assert traced(launched, tmp_path, said, range(3), first=7) == []
    assert said == ["no step was traced: runtime.profile.first is 7, and no step from there on was trained"]


def fitted(training) -> tuple[dict[str, torch.Tensor], str]:
    out = io.StringIO()
    console = Console(file=out, width=160)
    fit(training, Display(console, 1, training.order.num_steps, training.run.launch.device, verbose=False))
    return {name: tensor.clone() for name, tensor in training.learner.tapped.state_dict().items()}, out.getvalue()


@pytest.mark.long
def test_a_traced_run_ends_with_the_same_bits(tiny, build):
    short = replace(tiny, epochs=1, max_steps=6)
    plain, _ = fitted(build(short))
    training = build(short, runtime=RuntimeConfig(profile=ProfileConfig(first=2, steps=3)))
    weights, text = fitted(training)
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain.items())
    (path,) = (training.run.folder.path / "profile").iterdir()
    assert f"trace of steps 2 to 4: {path}" in text.replace("\n", "")
    assert any("convolution" in event.get("name", "") for event in json.loads(path.read_text())["traceEvents"])


def test_a_resumed_run_may_trace_other_steps():
    asked = Config(runtime=RuntimeConfig(profile=ProfileConfig(first=100, ranks="all")))
    check_settings(Path("run"), asdict(asked), asdict(Config()))
