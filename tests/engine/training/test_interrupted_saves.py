"""A power failure at every file operation of a save: the run goes on from this checkpoint or from the one before."""

from dataclasses import replace
from pathlib import Path

import pytest
from recorded_files import recorded, write_tree

from rlpheads.engine.config.run import CheckpointConfig
from rlpheads.engine.runs.checkpoint import list_whole
from rlpheads.engine.runs.resume import find_resume_point
from rlpheads.engine.runs.run_manifest import Position
from rlpheads.engine.training.training import Training


def saved_steps(folder: Path) -> list[int]:
    return [int(path.name[-9:]) for path in list_whole(folder / "checkpoints")]


def save_at(training: Training, step: int) -> None:
    training.move_to(Position(0, step * training.run.config.batch_size))
    training.save()
    training.saver.wait()
    assert training.saver.last_failure is None


@pytest.mark.long
@pytest.mark.parametrize("steps", [(1, 2, 3), (1, 2, 2)], ids=["a new step", "the same step again"])
def test_after_every_prefix_of_a_save_there_is_a_whole_checkpoint_and_the_next_can_be_saved(
    tiny, build, tmp_path, steps
):
    """What is found is verified by its hashes; the oldest of two checkpoints goes on the way."""
    config = replace(tiny, checkpoint=CheckpointConfig(keep=2, keep_epochs=0))
    training = build(config)
    for step in steps[:-1]:
        save_at(training, step)
    with recorded(training.run.folder.path) as folder:
        save_at(training, steps[-1])
    kept = set(sorted(set(steps))[-2:])
    assert len(folder.states) > 12
    assert set(saved_steps(folder.path)) == kept
    found = []
    for state in folder.states:
        write_tree(state, tmp_path / "failed")
        point = find_resume_point(config, tmp_path / "failed" / "checkpoints", training.run.sources)
        assert point is not None
        assert point.warnings == (), "nothing is damaged: what is not whole is no checkpoint"
        found.append(training.order.step_at(point.position.consumed))
        leftovers = [path.name for path in (tmp_path / "failed" / "checkpoints").iterdir() if path.name[0] == "."]
        assert not leftovers
    assert found == sorted(found)
    assert (found[0], found[-1]) == steps[-2:]
