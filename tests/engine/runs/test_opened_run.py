"""A run folder opened for reading: which checkpoint, whose weights, and which images."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from strangers_files import Command, replace_metadata

from rlpheads.engine.cli import main
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.runs.checkpoint import weights_sha256
from rlpheads.engine.runs.checkpoint_metadata import read_metadata
from rlpheads.engine.runs.opened_run import RunError, open_checkpoint


@pytest.mark.long
def test_a_run_opens_at_its_newest_and_at_a_kept_epoch(detached_run):
    newest, earlier = open_checkpoint(detached_run), open_checkpoint(detached_run, epoch=5)
    assert (newest.saved.epoch, earlier.saved.epoch) == (6, 5)
    assert newest.saved.step > earlier.saved.step
    weights = [run.load_model().state_dict()["backbone.pos_embed"] for run in (newest, earlier)]
    assert not torch.equal(*weights)


def test_the_model_has_the_weights_of_the_checkpoint(detached_run):
    status = json.loads((detached_run / "status.json").read_text())
    assert weights_sha256(open_checkpoint(detached_run).load_model()) == status["weights_sha256"]["backbone"]


def test_other_images_are_refused(detached_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(detached_run, copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("val_fraction: 0.9", "val_fraction: 0.8"))
    with pytest.raises(RunError, match="the train images are not those of the checkpoint"):
        open_checkpoint(copy)


@pytest.mark.wrong("paths")
@pytest.mark.parametrize("root", ["plain", "/nowhere/images"])
def test_images_that_are_gone_are_asked_for_by_root(detached_run, tmp_path, root):
    copy = tmp_path / "copy"
    shutil.copytree(detached_run, copy)
    config = (copy / "config.yaml").read_text()
    moved = config.replace("dataset: digits", "dataset: imagefolder").replace("  root: null", f"  root: {root}")
    (copy / "config.yaml").write_text(moved)
    with pytest.raises(ConfigError, match=f"{root} .*; if the images were moved, name their folder: --root FOLDER"):
        open_checkpoint(copy)


@pytest.mark.long
@pytest.mark.wrong("checkpoint")
def test_run_from_a_stranger_is_refused_on_resume_and_by_audit(detached_run, tmp_path, capsys):
    copy, touched = tmp_path / "detached", tmp_path / "touched"
    shutil.copytree(detached_run, copy)
    newest = sorted(copy.glob("checkpoints/*"))[-1]
    replace_metadata(newest, Command(touched))
    resume = ["train", "--config", str(copy / "config.yaml"), f"--run.dir={tmp_path}", "--run.name=detached"]
    for command in (["audit", str(copy)], resume):
        status = (copy / "status.json").read_bytes()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert f"{newest} is damaged: .metadata asks for posix.system" in error
        assert not touched.exists()
        assert (copy / "status.json").read_bytes() == status


@pytest.mark.long
@pytest.mark.wrong("run folder")
@pytest.mark.parametrize("line", [b"[1]", b"\xff", b"[" * 200_000], ids=["no mapping", "no text", "brackets"])
def test_finished_run_with_a_damaged_line_of_metrics_stays_done(detached_run, tmp_path, capsys, line):
    copy = tmp_path / "detached"
    shutil.copytree(detached_run, copy)
    with (copy / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    files = {
        name: (copy / name).read_bytes() for name in ("status.json", "metrics.jsonl", "summary.csv", "config.yaml")
    }
    assert main(["train", "--config", str(copy / "config.yaml"), f"--run.dir={tmp_path}", "--run.name=detached"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {copy / 'metrics.jsonl'} is damaged (line ")
    assert error.count("\n") == 1
    assert {name: (copy / name).read_bytes() for name in files} == files


@pytest.mark.wrong("run folder")
@pytest.mark.parametrize(
    ("key", "value"),
    [("data.canaries.repeats", [2, 10**12]), ("epochs", 0), ("data.image_size", -8), ("heads.labels", 2**40)],
)
def test_settings_out_of_range_are_one_line_of_audit(detached_run, tmp_path, capsys, key, value):
    copy = shutil.copytree(detached_run, tmp_path / "detached")
    settings = yaml.safe_load((copy / "config.yaml").read_text())
    *groups, name = key.split(".")
    holder = settings
    for group in groups:
        holder = holder[group]
    holder[name] = value
    (copy / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["audit", str(copy)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: {copy / 'config.yaml'}: {key}: got ")
    assert "\n" not in said


@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize("lost", ["heads.", "ledger.", ""])
def test_metadata_without_a_part_of_the_state_is_one_line_of_a_resumed_run(detached_run, tmp_path, capfd, lost):
    copy = shutil.copytree(detached_run, tmp_path / "detached")
    saved, newest = sorted((copy / "checkpoints").glob("step=*"))
    shutil.rmtree(newest)
    found = read_metadata(saved)
    kept = {name: entry for name, entry in found.state_dict_metadata.items() if not name.startswith(lost)}
    assert len(kept) < len(found.state_dict_metadata), sorted(found.state_dict_metadata)
    replace_metadata(saved, replace(found, state_dict_metadata=kept))
    resume = ["train", "--config", str(copy / "config.yaml"), f"--run.dir={tmp_path}", "--run.name=detached"]
    assert main(resume) == 1
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert f"{saved.name} is damaged: it does not hold the state that its manifest promises (" in said
    assert "Traceback" not in said


@pytest.mark.wrong("run folder")
def test_a_model_that_cannot_be_built_is_one_line_in_audit_and_export(detached_run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(detached_run, copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("vit_tiny_patch16_224", "vit_tiny_patch16_2222"))
    for command in (["audit", str(copy)], ["export", str(copy), str(tmp_path / "out")]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "model.name=vit_tiny_patch16_2222 cannot be built" in line
