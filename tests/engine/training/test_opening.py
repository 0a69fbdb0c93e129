"""The first lines of a run."""

from dataclasses import replace

import pytest
import torch

from rlpheads.engine.distributed import cores
from rlpheads.engine.training.closing import forget_earlier_end
from rlpheads.engine.training.opening import opening_lines


@pytest.mark.long
def test_threads_are_told_once_where_they_do_not_suit_the_cores(build, tiny, monkeypatch):
    training = build(tiny)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for available, expected in ((8, 1), (torch.get_num_threads(), 0)):
        monkeypatch.setattr(cores, "usable_cores", lambda available=available: available)
        lines = list(opening_lines(training, fresh=True))
        assert sum(line.startswith("threads: ") for line in lines) == expected


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ({"shard": "class"}, "heads are not compiled where they are sharded by class (heads.shard)"),
        (
            {"update": "fused"},
            "heads are not compiled where they are updated as their gradients are made (heads.update)",
        ),
        ({"update": "separate"}, None),
    ],
    ids=str,
)
def test_what_is_not_compiled_is_said(build, tiny, heads, said):
    config = replace(tiny, runtime=replace(tiny.runtime, compile=True), heads=replace(tiny.heads, **heads))
    lines = [line for line in opening_lines(build(config), fresh=True) if line.startswith("runtime.compile")]
    assert lines == ([] if said is None else [f"runtime.compile: the network alone; {said}"])


def test_a_start_with_no_step_left_keeps_what_the_run_ended_with(build, tiny):
    for config in (replace(tiny, max_steps=0), tiny):
        training = build(config)
        kept = training.run.folder.path / "memory.json"
        kept.touch()
        if config is tiny:
            training.move_to(replace(training.position, epoch=tiny.epochs))
        forget_earlier_end(training)
        assert kept.is_file()
