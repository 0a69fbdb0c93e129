"""`rlpheads evaluate`: a run's weights give the run's own figures, wherever they lie, and every prediction."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file
from small_runs import small_config

from rlpheads.engine.cli import main
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.model.initial_weights import load_weights
from rlpheads.engine.runs.weights_files import read_weights
from rlpheads.engine.training import job
from rlpheads.memorization.records.ledger_file import read_ledger

pytestmark = pytest.mark.long


def evaluated(capsys, *arguments):
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def last_line(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "epoch"][-1]


def test_a_run_is_evaluated_as_it_evaluated_itself(detached_run, capsys, tmp_path):
    found, line = evaluated(capsys, detached_run, "--out", tmp_path / "predictions.parquet"), last_line(detached_run)
    for ours, theirs in (("loss", "eval_loss"), ("top1", "eval_top1"), ("top5", "eval_top5"), ("ece", "eval_ece")):
        assert found[ours] == pytest.approx(line[theirs], abs=1e-6), ours
    rows = pq.read_table(tmp_path / "predictions.parquet")
    ledger = read_ledger(detached_run / "ledger" / "epoch=0006" / "heldout.parquet")
    assert np.array_equal(rows.column("predicted"), ledger.predicted)
    np.testing.assert_allclose(rows.column("confidence"), ledger.confidence, atol=1e-6)
    assert rows.column("class_name").to_pylist() == [str(target) for target in ledger.target]
    assert len(set(rows.column("file").to_pylist())) == found["num_samples"] == len(ledger.index)


def test_training_images_and_an_earlier_checkpoint(detached_run, capsys):
    found = evaluated(capsys, detached_run, "--split", "train", "--epoch", 5)
    assert (found["split"], found["num_samples"], found["image_size"]) == ("train", 179, 8)
    assert found["loss"] != evaluated(capsys, detached_run, "--split", "train")["loss"]


def test_an_exported_file_gives_the_same_figures(detached_run, capsys, tmp_path):
    assert main(["export", str(detached_run), str(tmp_path / "out.safetensors")]) == 0
    flags = ["--data.dataset", "digits", "--data.val_fraction", "0.9", "--data.workers", "0"]
    of_file, of_run = evaluated(capsys, tmp_path / "out.safetensors", *flags), evaluated(capsys, detached_run)
    assert {**of_file, "weights": ""} == {**of_run, "weights": ""}


def test_a_run_folder_is_a_place_of_initial_weights(detached_run):
    """It leaves them where it ends, and they are those of its last checkpoint."""
    config = parse_config(["--config", str(detached_run / "config.yaml")])
    model = build_model(config, 10)
    assert load_weights(model.backbone, read_weights(str(detached_run))).startswith("weights from ")
    last = load_file(detached_run / "weights" / "last.safetensors")
    assert all((tensor == last[name]).all() for name, tensor in model.backbone.state_dict().items())


def test_a_frozen_network_from_a_checkpoint_is_measured_and_evaluated_as_it_was(detached_run, tmp_path, capsys):
    newest = sorted((detached_run / "checkpoints").iterdir())[-1]
    config = small_config(tmp_path, "audited", epochs=1)
    frozen = replace(config.model, checkpoint=str(newest), frozen=True)
    assert job.run(replace(config, model=frozen)) == 0
    theirs, ours = last_line(detached_run), last_line(tmp_path / "audited")
    assert (ours["eval_loss"], ours["eval_top1"]) == (theirs["eval_loss"], theirs["eval_top1"])
    assert evaluated(capsys, newest)["loss"] == pytest.approx(theirs["eval_loss"], abs=1e-6)


@pytest.mark.wrong("arguments")
def test_what_cannot_be_evaluated_is_one_line(detached_run, capsys, tmp_path):
    (tmp_path / "bare.safetensors").write_bytes((detached_run / "weights" / "last.safetensors").read_bytes())
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "two" / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "two" / place / "0.png")
    moved = shutil.copytree(detached_run, tmp_path / "moved")
    config = (moved / "config.yaml").read_text().replace("dataset: digits", "dataset: imagefolder")
    (moved / "config.yaml").write_text(config.replace("  root: null", "  root: /nowhere"))
    two = ["--data.dataset", "imagefolder", "--data.root", tmp_path / "two", "--data.val_fraction", "null"]
    wrong = {
        (tmp_path / "nowhere",): "nowhere has no config.json beside it",
        (tmp_path / "bare.safetensors",): "has no config.json beside it, .*; name its network: --model.name NAME",
        (moved,): "/nowhere does not exist; if the images were moved, name their folder: --data.root FOLDER",
        (detached_run, "--ema"): "has no moving average of its weights",
        (detached_run, "--epoch", "2"): "has no checkpoint of the end of epoch 2",
        (detached_run, "--data.datset", "digits"): "data.datset.*data.dataset",
        (detached_run, *two): "the network tells 10 classes apart, and the images have 2",
        (detached_run, "--eval.image_size", "64"): "does not take images of 64 x 64 .*dynamic_img_size true",
        (detached_run, "--model.args.embed_dim", "48"): "its weights are not those of vit_tiny_patch16_224 with .*48",
    }
    for arguments, message in wrong.items():
        assert main(["evaluate", *map(str, arguments)]) == 2, arguments
        assert re.search(message, capsys.readouterr().err), arguments
