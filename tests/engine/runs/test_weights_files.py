"""Weights of a run as the start of another: its folder, one of its checkpoints, and what is said of incomplete ones."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlpheads.engine.model.initial_weights import WeightsError
from rlpheads.engine.runs.checkpoint import list_whole
from rlpheads.engine.runs.weights_files import read_weights


def checkpoints(run: Path) -> list[Path]:
    return list_whole(run / "checkpoints")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_folder_and_its_newest_checkpoint_mean_the_same_weights(detached_run, tmp_path):
    ended = load_file(detached_run / "weights" / "last.safetensors")
    newest = checkpoints(detached_run)[-1]
    assert same(read_weights(str(detached_run)).tensors, ended)
    assert same(read_weights(str(newest)).tensors, ended)
    stopped = shutil.copytree(detached_run, tmp_path / "stopped", ignore=shutil.ignore_patterns("weights"))
    found = read_weights(str(stopped))
    assert same(found.tensors, ended)
    assert found.words == str(stopped / "checkpoints" / newest.name)


def test_the_average_comes_before_the_live_weights(tiny, build):
    training = build(replace(tiny, model=replace(tiny.model, ema_decay=0.9)))
    with torch.no_grad():
        next(training.learner.tapped.parameters()).add_(1.0)
    training.save()
    training.saver.wait()
    (saved,) = checkpoints(training.run.folder.path)
    found = read_weights(str(saved))
    assert found.words == f"{saved}, averaged"
    assert same(found.tensors, training.learner.ema.module.backbone.state_dict())


@pytest.mark.wrong("checkpoint")
def test_incomplete_checkpoints_are_no_place_of_weights(detached_run, tmp_path):
    copy = shutil.copytree(detached_run, tmp_path / "copy", ignore=shutil.ignore_patterns("weights"))
    *_, newest = checkpoints(copy)
    file = next(newest.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        WeightsError, match=f"{file.name} does not have the hash .*; name another checkpoint, or a file"
    ):
        read_weights(str(newest))
    file.unlink()
    with pytest.raises(WeightsError, match=f"{file.name} is missing; name another"):
        read_weights(str(newest))
    (newest / "manifest.json").unlink()
    with pytest.raises(WeightsError, match="is a checkpoint without manifest.json, which is written last"):
        read_weights(str(newest))
    assert read_weights(str(copy)).words.endswith(checkpoints(copy)[-1].name)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(WeightsError, match="has saved nothing yet"):
        read_weights(str(copy))
