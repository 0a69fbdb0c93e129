"""The main job end to end: what it writes, how it stops, dies and goes on, and that ranks change nothing."""

import json
import os
import random
import re
import shutil
import signal

import pytest
import torch
import yaml
from PIL import Image
from real_runs import same_result, without_times
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlpheads.engine.runs.opened_run import open_checkpoint
from rlpheads.engine.training.loading import evaluation_loader
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.memorization.measures.label_measures import expected_calibration_error

pytestmark = pytest.mark.distributed
TIMES = ("/images_per_second", "data_wait", "seconds", "/slowest_rank")

AUGMENTED = ["--data.crop", "pad", "--data.augment.policy", "rand", "--data.augment.cutout", "2"]
AUGMENTED += ["--data.augment.erase", "0.3", "--data.mix.mixup", "0.8", "--data.mix.cutmix", "1"]


def curves(finished):
    """TensorBoard's scalars, by name: (step, value) in the order in which it shows them; but for times."""
    events = EventAccumulator(str(finished.folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if not name.endswith(TIMES)]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def test_run_leaves_everything_that_it_promises(undisturbed):
    folder = undisturbed.folder
    assert undisturbed.status["status"] == "done"
    assert undisturbed.status["heldout_check"] == "passed"
    memory = json.loads((undisturbed.folder / "memory.json").read_text())
    assert 0 <= memory["membership"]["loss"]["auc"]["value"] <= 1
    assert len(memory["classes"]) == 10
    assert yaml.safe_load((folder / "config.yaml").read_text())["heads"]["labels"] == 10
    assert json.loads((folder / "environment.json").read_text())
    assert (folder / "summary.csv").read_text().startswith("epoch,train_loss,eval_loss,eval_top1,eval_top5,lr")
    assert {path.name for path in (folder / "figures").iterdir()} >= {"rla_by_depth.png", "rla_by_epoch.svg"}
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step=000000022", "step=000000044"]
    assert "random-label accuracy by tap" in undisturbed.output
    assert "inside its exact binomial bounds" in undisturbed.output
    assert f"next: rlpheads audit {folder} " in undisturbed.output
    assert f"tensorboard --logdir {folder / 'tensorboard'}" in undisturbed.output


def test_ledger_has_each_scheduled_sample_exactly_once(undisturbed):
    phases = {"running", "clean", "heldout"}
    assert set(undisturbed.ledgers) == {
        f"ledger/epoch={epoch:04d}/{phase}.parquet" for epoch in (0, 1) for phase in phases
    }
    for name, table in undisturbed.ledgers.items():
        columns = table.to_pydict()
        assert columns["index"] == list(range(len(columns["index"])))
        if "running" in name:  # the last, partial batch is dropped
            assert sum(columns["count"]) == 22 * 64
            assert set(columns["count"]) == {0, 1}
        else:
            assert set(columns["count"]) == {1}


def test_plain_lines_show_what_is_trained(undisturbed):
    assert re.search(r"epoch 0 step 1/22  loss \d.*heads \d.*top-1 .*RLA first .*last .*GiB", undisturbed.output)
    assert "\x1b" not in undisturbed.output


@pytest.fixture(scope="module")
def killed(runner):
    """A run to its end, past SIGKILL in turn: at two steps before its first checkpoint, and at three behind it.

    Training waits for the checkpoint, or it would be killed before the first one of a process is written.
    """
    for step in (6, 12, 24, 30, 36):
        forked = runner.fork("killed", "--checkpoint.every", "1", "--checkpoint.background", "false")
        runner.wait_for_step("killed", step, forked)
        forked.kill()
        runner.join(forked, "killed")
    finished = runner.run("killed")
    assert finished.code == 0, finished.output
    return finished


def test_killed_runs_go_on_to_the_same_end(killed, undisturbed):
    same_result(killed, undisturbed)


def test_killed_runs_curves_are_those_of_an_undisturbed_run(killed, undisturbed):
    """Read as TensorBoard reads them: each step once, in order, with the very values."""
    assert len(list((killed.folder / "tensorboard").iterdir())) > 1, (
        "a file from every start since the first checkpoint"
    )
    assert curves(killed) == curves(undisturbed)
    assert [step for step, _ in curves(killed)["step/class_loss"]] == list(range(1, 45))
    assert [step for step, _ in curves(killed)["epoch/eval_top1"]] == [22, 44]
    of_metrics = [row["class_loss"] for row in killed.rows("step")]
    assert [value for _, value in curves(killed)["step/class_loss"]] == pytest.approx(of_metrics, rel=1e-6)


@pytest.mark.slow
def test_killed_pair_with_everything_on_goes_on_to_the_same_end(runner, record_property):
    """Two ranks, workers, average, accumulation, regulariser and audit heads, augmented and mixed images."""
    flags = ["--data.workers", "1", "--model.ema_decay", "0.9", "--accumulate", "2", "--optim.clip_norm", "1"]
    flags += ["--regularizer.kind", "uniform", "--regularizer.factor", "1", "--regularizer.target", "-0.05"]
    flags += AUGMENTED
    whole = runner.run("whole_pair", *flags, ranks=2)
    assert whole.code == 0, whole.output
    forked = runner.fork("killed_pair", *flags, ranks=2)
    runner.wait_for_step("killed_pair", 30, forked)
    forked.kill()
    runner.join(forked, "killed_pair")
    finished = runner.run("killed_pair", *flags, ranks=2)
    assert finished.code == 0, finished.output
    assert {"backbone", "heads", "audit", "ema"} == set(finished.status["weights_sha256"])
    same_result(finished, whole)
    record_property("samples_lost", 0)


def test_stopped_run_saves_its_place_and_goes_on(runner, undisturbed):
    process = runner.start("stopped")
    runner.wait_for_step("stopped", 30, process)
    process.send_signal(signal.SIGTERM)
    stopped = runner.finish(process, "stopped")
    assert stopped.code == 75, stopped.output
    assert stopped.status["status"] == "requeue"
    assert "SIGTERM" in stopped.status["reason"]
    step = stopped.status["step"]
    assert 30 <= step < 44
    finished = runner.run("stopped")
    assert f"step={step:09d} at step {step}" in finished.output
    same_result(finished, undisturbed)
    assert curves(finished) == curves(undisturbed)


def test_stopped_ranks_agree_on_the_step(runner):
    process = runner.start("both", ranks=2)
    runner.wait_for_step("both", 5, process)
    os.kill(process.pid, signal.SIGTERM)  # torchrun passes it on
    stopped = runner.finish(process, "both")
    status = stopped.status
    assert status["status"] == "requeue", stopped.output
    finished = runner.run("both", ranks=2)
    assert finished.code == 0, finished.output
    assert f"at step {status['step']}" in finished.output
    for name, columns in finished.ledgers.items():
        assert max(columns["count"].to_pylist()) == 1, name


def test_two_ranks_train_what_one_trains(runner, undisturbed):
    """The very samples, augmented and mixed alike, whoever loads them."""
    flags = ["--max_steps", "20", "--model.args", json.dumps(NO_DROPOUT), *AUGMENTED]
    pair, single = runner.run("pair", *flags, ranks=2), runner.run("single", *flags)
    assert pair.code == single.code == 0, pair.output + single.output
    losses = [[row["class_loss"], row["head_cross_entropy"]] for row in single.rows("step")]
    assert len(losses) == 20
    for row, expected in zip(pair.rows("step"), losses, strict=True):
        assert [row["class_loss"], row["head_cross_entropy"]] == pytest.approx(expected, rel=1e-5)


NO_DROPOUT = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "drop_rate": 0.0}


def test_measured_epochs_agree_between_one_rank_and_two(runner):
    """Every figure to 1e-5, refits to a tenth of a point, and every hit: the labels are the same ones."""
    flags = ["--epochs", "1", "--model.args", json.dumps(NO_DROPOUT), "--optim.lr", "1e-4", "--heads.optim.lr", "1e-4"]
    single, pair = runner.run("one_epoch", *flags), runner.run("one_epoch_pair", *flags, ranks=2)
    (left,), (right,) = (without_times(finished.rows("epoch")) for finished in (single, pair))
    assert left.keys() == right.keys()
    assert left.pop("kind") == "epoch"
    for name, value in left.items():
        tolerance = 1e-3 if name.startswith("fresh_refit") else 1e-5  # a refit's ties fall by the last bits
        assert right[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
    for finished, row in ((single, left), (pair, right)):
        assert row["eval_ece"] == pytest.approx(calibration_error_of_saved_weights(finished.folder), abs=1e-6)
        assert finished.status["ece"] == row["eval_ece"]
        assert finished.status["clean_ece"] == row["clean_ece"]
    ours, theirs = single.ledgers, pair.ledgers
    assert ours.keys() == theirs.keys()
    for name in ours:
        for column in ("index", "count", "target", "status", "class_hit", "hit"):
            assert ours[name][column] == theirs[name][column]


@torch.no_grad()
def calibration_error_of_saved_weights(folder):
    """Of the newest checkpoint on the held-out images, each taken once by one process, by the pure function."""
    run = open_checkpoint(folder)
    model, device = run.load_model(), torch.device("cpu")
    confidence_N, hit_N = torch.zeros(360), torch.zeros(360, dtype=torch.bool)
    normalize = Normalize(run.config.data.mean, run.config.data.std)
    for batch in evaluation_loader(run.config, run.sources.heldout, device):
        counted_B = batch.index >= 0
        confidence_B, predicted_B = model(normalize(batch.images))[0].softmax(1).max(1)
        confidence_N[batch.index[counted_B]] = confidence_B[counted_B]
        hit_N[batch.index[counted_B]] = (predicted_B == batch.targets)[counted_B]
    assert confidence_N.min() > 0
    return float(expected_calibration_error(confidence_N, hit_N))


def test_heads_leave_the_backbone_bit_identical(runner):
    heads, none = runner.run("heads", "--epochs", "1"), runner.run("none", "--epochs", "1", "--heads.taps", "none")
    assert heads.code == none.code == 0
    assert heads.status["weights_sha256"]["backbone"] == none.status["weights_sha256"]["backbone"]
    assert "heads" not in none.status["weights_sha256"]


@pytest.mark.wrong("checkpoint")
def test_finished_run_without_its_checkpoints_is_not_lost(runner):
    finished = runner.run("bare", "--epochs", "1")
    for saved in (finished.folder / "checkpoints").iterdir():
        shutil.rmtree(saved)
    before = (finished.folder / "metrics.jsonl").read_bytes()
    refused = runner.run("bare", "--epochs", "1", "--max_steps", "1")
    assert refused.code == 2
    assert (
        "holds a run that is done, but no checkpoint to go on from; begin again with --run.overwrite" in refused.output
    )
    assert (finished.folder / "metrics.jsonl").read_bytes() == before


def test_first_rank_to_fail_is_heard(runner, tmp_path):
    """A picture that is damaged after the scan is read by the second rank only."""
    random_bytes = random.Random(0)
    for split, count in (("train", 16), ("val", 4)):
        for number in range(count):
            folder = tmp_path / split / f"c{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = bytes(random_bytes.randrange(256) for _ in range(8 * 8 * 3))
            Image.frombytes("RGB", (8, 8), pixels).save(folder / f"{number:02d}.png")
    flags = ["--data.dataset", "imagefolder", "--data.root", str(tmp_path), "--data.val_fraction", "null"]
    flags += ["--batch_size", "16", "--epochs", "1"]
    assert runner.run("whole_tree", *flags, ranks=2).code == 0
    for victim in (tmp_path / "train" / "c0").iterdir():
        content = victim.read_bytes()
        victim.write_bytes(content[:20] + bytes(len(content) - 20))
    failed = runner.run_command("damaged_tree", *flags, ranks=2)
    assert failed.code == 1
    assert failed.status["status"] == "failed"
    assert "ImageReadError" in failed.status["reason"]
    assert ".png" in failed.status["reason"]


@pytest.mark.wrong("config")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "epochs: got 0"),
        (["--optim.lrr", "1"], "optim.lrr"),
        (["--model.name", "vit_tinny_patch16_224"], "vit_tiny_patch16_224"),
        (["--data.dataset", "imagefolder", "--data.root", "nowhere"], "a folder that exists"),
        (["--batch_size", "4096"], "batch_size is 4096, but there are only"),
    ],
)
def test_wrong_input_ends_with_one_line_before_anything_is_made(runner, flags, message):
    refused = runner.run("refused", *flags)
    assert refused.code == 2
    (line,) = refused.output.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not refused.folder.exists()


def test_finished_run_trains_no_further(runner, undisturbed):
    before = undisturbed.status["weights_sha256"]
    again = runner.run("undisturbed")
    assert again.code == 0
    assert again.status["weights_sha256"] == before
    assert "resumed from" in again.output


@pytest.mark.wrong("checkpoint")
def test_other_settings_do_not_resume(runner, undisturbed):
    refused = runner.run("undisturbed", "--optim.lr", "0.5", "--epochs", "3")
    assert refused.code == 2
    assert "epochs is 3 now and was 2; optim.lr is 0.5 now and was 0.001" in refused.output
    assert "Traceback" not in refused.output


@pytest.mark.wrong("checkpoint")
def test_resume_must_wants_a_checkpoint(runner):
    refused = runner.run("nothing_there", "--run.resume", "must")
    assert refused.code == 2
    assert "run.resume is must, but" in refused.output


@pytest.mark.wrong("checkpoint")
def test_flipped_bit_in_a_checkpoint_is_found(runner):
    finished = runner.run("flipped", "--epochs", "1")
    (shard,) = finished.folder.glob("checkpoints/*/*.distcp")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    refused = runner.run("flipped", "--epochs", "1")
    assert refused.code == 2
    assert "does not have the hash that was recorded" in refused.output
    assert "Traceback" not in refused.output


def test_diverged_run_says_so(runner):
    diverged = runner.run("diverged", "--optim.name", "sgd", "--optim.lr", "1e9", "--log_every", "1")
    assert diverged.code == 1
    assert re.search(r"error: not finite at step \d+: .*lower optim\.lr", diverged.output)
    assert "Traceback" not in diverged.output
    assert diverged.status["status"] == "failed"
