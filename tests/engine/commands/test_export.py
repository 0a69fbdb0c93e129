"""`rlpheads export`: weights that timm and plain PyTorch load, without the images."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from small_runs import small_config

from rlpheads.engine.cli import main
from rlpheads.engine.offline.saved_network import load_saved_network
from rlpheads.engine.runs.opened_run import open_checkpoint, read_run
from rlpheads.engine.training import job


@pytest.fixture(scope="module")
def exported(detached_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "digits"
    assert main(["export", str(detached_run), str(out), "--heads"]) == 0
    return out


def logits(model: torch.nn.Module, side: int) -> torch.Tensor:
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(images)


def test_timm_builds_and_loads_the_network_from_the_folder_alone(detached_run, exported):
    run = open_checkpoint(detached_run)
    ours = run.load_model().backbone
    theirs = timm.create_model(f"local-dir:{exported}", pretrained=True)
    assert torch.equal(logits(ours, run.config.data.image_size), logits(theirs, run.config.data.image_size))


PLAIN = """
import importlib.util, sys, timm, torch
assert importlib.util.find_spec("rlpheads") is None
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
torch.save(model(torch.load("images.pt")), "logits.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("part", ["backbone", "ema"])
def test_without_rlpheads_timm_computes_the_same_bits(part, tmp_path):
    """In a Python that has the packages of this one, but no rlpheads; live weights and their average."""
    config = small_config(tmp_path, "averaged", epochs=2)
    assert job.run(replace(config, model=replace(config.model, ema_decay=0.9))) == 0
    folder, out = tmp_path / "averaged", tmp_path / "out"
    assert main(["export", str(folder), str(out), *(["--ema"] if part == "ema" else [])]) == 0
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save(images, tmp_path / "images.pt")
    packages = {str(Path(module.__file__).parents[1]) for module in (timm, torch)}
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(packages), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-S", "-c", PLAIN, str(out)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = load_saved_network(read_run(folder), part).backbone.eval()
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), ours(images))


def test_the_file_fits_a_network_of_the_same_settings_by_checkpoint_path(detached_run, exported):
    config = open_checkpoint(detached_run).config
    model = timm.create_model(
        config.model.name, num_classes=10, checkpoint_path=str(exported / "model.safetensors"), **config.model.args
    )
    assert torch.equal(model.state_dict()["head.weight"], load_file(exported / "model.safetensors")["head.weight"])


def test_the_description_says_how_images_are_prepared_and_what_the_classes_are(detached_run, exported):
    data = open_checkpoint(detached_run).config.data
    described = json.loads((exported / "config.json").read_text())
    prepared = described["pretrained_cfg"]
    assert prepared["input_size"] == [3, data.image_size, data.image_size]
    assert (prepared["mean"], prepared["std"]) == (list(data.mean), list(data.std))
    assert (prepared["crop_pct"], prepared["interpolation"]) == (data.eval_crop_fraction, data.interpolation)
    assert described["label_names"] == [str(digit) for digit in range(10)]


def test_heads_come_with_the_labels_that_they_predict(detached_run, exported):
    run, tensors = open_checkpoint(detached_run), load_file(exported / "heads.safetensors")
    labels = tensors["labels.train"]
    assert labels.shape[1] == run.sources.train.manifest.num_samples
    assert labels.max() < run.config.heads.num_labels
    assert any(name.startswith("heads.") for name in tensors)


def test_a_run_starts_from_an_exported_file(exported, tmp_path):
    config = small_config(tmp_path, "tuned", epochs=1)
    weights = replace(config.model, checkpoint=str(exported / "model.safetensors"))
    assert job.run(replace(config, model=weights, max_steps=1)) == 0


def test_an_older_checkpoint_is_exported_without_the_images(detached_run, tmp_path, capsys):
    copy = tmp_path / "moved"
    shutil.copytree(detached_run, copy)
    config = (copy / "config.yaml").read_text()
    moved = config.replace("dataset: digits", "dataset: imagefolder").replace("  root: null", "  root: /nowhere/images")
    (copy / "config.yaml").write_text(moved)
    assert main(["export", str(copy), str(tmp_path / "old.safetensors"), "--epoch", "5"]) == 0
    assert "class names are left out" in capsys.readouterr().out
    expected = open_checkpoint(detached_run, epoch=5).load_model().backbone.state_dict()
    assert torch.equal(load_file(tmp_path / "old.safetensors")["head.weight"], expected["head.weight"])


@pytest.mark.wrong("arguments")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out.pth"], "nearest: out.safetensors"),
        (["out.safetensors", "--step", "3"], "no checkpoint of step 3; kept are those of steps:"),
        (["out.safetensors", "--ema"], "has no moving average of its weights"),
        (["taken"], "model.safetensors: there already; replace with --overwrite"),
    ],
)
def test_mistakes_are_answered_in_one_line_and_write_nothing(
    detached_run, tmp_path, monkeypatch, words, message, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "model.safetensors").write_text("somebody's")
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", str(detached_run), *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
