"""Whole runs with sharded heads: the same figures as with whole ones, killed, and resumed at other numbers of ranks."""

import json
import signal
from functools import partial

import pytest
import torch
from faulty_steps import Fault, put_in
from real_runs import ROOT, same_result

from rlpheads.engine.learner.learner import build_heads
from rlpheads.engine.runs.opened_run import open_checkpoint

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

RANKS_2_AND_3 = ["--batch_size", "96", "--heads.optim.clip_norm", "0.5"]
SHARDED = [*RANKS_2_AND_3, "--heads.shard", "class"]
EVERY_IMAGE = ROOT / "configs" / "imagenet_vit_b_every_sample.yaml"
SMALL = ["--data.val_fraction", "0.9", "--batch_size", "32", "--log_every", "3", "--model.args.drop_rate", "0"]
TIMES = {"images_per_second", "data_wait", "seconds", "device_seconds"}
TIMES |= {"slowest_rank", "slowest_rank_seconds", "slowest_rank_data_wait"}


@pytest.fixture(scope="module")
def whole(runner):
    return done(runner.run("whole_heads", *RANKS_2_AND_3, ranks=2))


@pytest.fixture(scope="module")
def sharded(runner):
    return done(runner.run("sharded_heads", *SHARDED, ranks=2))


def done(finished):
    assert finished.code == 0, finished.output
    return finished


def assert_alike(found, expected, tolerance):
    """Metrics and ledgers to rounding; hits, counts and whatever is no measurement exactly."""
    for kind in ("step", "epoch"):
        for ours, theirs in zip(found.rows(kind), expected.rows(kind), strict=True):
            assert ours.keys() == theirs.keys()
            assert ours["kind"] == theirs["kind"]
            for name in ours.keys() - TIMES - {"kind"}:
                assert ours[name] == pytest.approx(theirs[name], rel=tolerance, abs=1e-4), name
    assert found.ledgers.keys() == expected.ledgers.keys()
    for name, table in expected.ledgers.items():
        for column in table.column_names:
            ours, theirs = (each[column].to_pylist() for each in (found.ledgers[name], table))
            if column in ("bits", "margin", "class_loss", "confidence"):
                gap = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
                assert gap.nan_to_num().abs().max() <= tolerance, (name, column)
            else:
                assert ours == theirs, (name, column)


def test_figures_and_ledgers_are_those_of_whole_heads(whole, sharded):
    """The network to the last bit; hits equal."""
    assert "heads.shard class: " in sharded.output
    assert_alike(sharded, whole, 1e-5)
    hashes = [finished.status["weights_sha256"] for finished in (sharded, whole)]
    assert hashes[0]["backbone"] == hashes[1]["backbone"]
    assert hashes[0]["heads"] != hashes[1]["heads"]  # rounding


def test_a_killed_run_ends_where_an_undisturbed_one_does(runner, sharded):
    process = runner.start("killed_shards", *SHARDED, ranks=2)
    runner.wait_for_step("killed_shards", 16, process)
    runner.kill(process)
    same_result(done(runner.run("killed_shards", *SHARDED, ranks=2)), sharded)


def test_a_run_goes_on_at_other_numbers_of_ranks_and_with_whole_heads(runner, whole):
    """Stopped at 2 ranks, stopped again at 3, and finished at one with whole heads."""
    for ranks, step, shard in ((2, 4, "class"), (3, 18, "auto")):
        process = runner.start("moved", *RANKS_2_AND_3, "--heads.shard", shard, ranks=ranks)
        runner.wait_for_step("moved", step, process)
        process.send_signal(signal.SIGTERM)
        finished = runner.finish(process, "moved")
        assert finished.status["status"] == "requeue", finished.output
    assert "heads.shard auto: none (" in finished.output
    finished = done(runner.run("moved", *RANKS_2_AND_3))
    for name, table in whole.ledgers.items():
        assert finished.ledgers[name]["index"] == table["index"]
    last = [each.rows("epoch")[-1] for each in (finished, whole)]
    assert last[0]["eval_loss"] == pytest.approx(last[1]["eval_loss"], rel=0.02)  # dropout is drawn rank by rank
    assert [row["step"] for row in finished.rows("step")] == [row["step"] for row in whole.rows("step")]


def test_commands_read_a_sharded_checkpoint(sharded, whole):
    """Into heads that one process holds whole."""
    opened = [open_checkpoint(finished.folder) for finished in (sharded, whole)]
    modules = [build_heads(run.config, (24, 24), "heads", 1) for run in opened]
    for run, module in zip(opened, modules, strict=True):
        run.load_weights("heads", module)
    for name, parameter in modules[1].named_parameters():
        torch.testing.assert_close(modules[0].get_parameter(name), parameter, rtol=1e-4, atol=1e-5)
    assert json.loads((sharded.folder / "status.json").read_text())["heldout_check"] == "passed"


def test_sharded_heads_of_a_frozen_network_leave_no_weights_to_compare_over_ranks(runner):
    flags = [*SMALL, "--epochs", "1", "--model.frozen", "--stability.drift_every", "2"]
    shards, whole = (
        done(runner.run(f"frozen_{shard}", *flags, "--heads.shard", shard, ranks=2)) for shard in ("class", "none")
    )
    assert_alike(shards, whole, 1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_label_for_every_image(runner, ranks):
    """n = K = 20,000 images and labels: heads find some of the images, which chance would find once."""
    flags = ["--config", str(EVERY_IMAGE), "--heads.labels", "20000", "--heads.taps", "[0, 1]", "--heads.shard", "auto"]
    flags += ["--data.dataset", "synthetic", "--data.val_fraction", "null", "--data.synthetic.train", "20000"]
    flags += ["--epochs", "1", "--batch_size", "256", "--log_every", "10"]
    finished = done(runner.finish(runner.start("every_image", *flags, ranks=ranks), "every_image", limit_s=1200))
    assert ("heads.shard auto: class (" in finished.output) == (ranks == 2)
    clean = finished.ledgers["ledger/epoch=0000/clean.parquet"]
    assert clean["index"].to_pylist() == list(range(20_000))
    assert torch.tensor(clean["hit"].to_pylist()).sum(0).max() >= 4
    # some 4 * 10^10 multiplications a tap, by one core: the longest loop that `eval.refit` auto admits
    assert min(finished.rows("epoch")[-1]["fresh_refit_clean"]) > 100 / 20_000


def test_a_rollback_with_a_fused_update_is_that_of_a_separate_one(runner):
    """What a rank's own range left pending is forgotten; the same batch is left out, and the figures are alike."""
    flags = [*SMALL, "--heads.labels", "1100", "--heads.shard", "class", "--stability.on_nonfinite", "rollback"]
    ended = {}
    for update in ("fused", "separate"):
        given = [*flags, "--heads.update", update]
        forked = runner.fork(update, *given, ranks=2, prepare=partial(put_in, [Fault(7, rank=1)]))
        ended[update] = done(runner.join(forked, update))
    fused, separate = ended["fused"], ended["separate"]
    assert len(fused.rows("event")) == 1
    for name, table in separate.ledgers.items():
        for column in ("index", "status", "count", "hit"):
            assert fused.ledgers[name][column] == table[column], (name, column)
    for figure in ("train_loss", "eval_loss", "rla_running"):
        ours, theirs = (run.rows("epoch")[-1][figure] for run in (fused, separate))
        assert ours == pytest.approx(theirs, rel=1e-4), figure


def test_a_compiled_network_with_sharded_heads_learns_what_an_uncompiled_one_does(runner):
    """The network alone is compiled; the heads are not, and their messages pass between the graphs."""
    flags = [*SMALL, "--heads.shard", "class", "--regularizer.factor", "1"]
    compiled = runner.start("compiled_shards", *flags, "--runtime.compile", "true", ranks=2)
    compiled = done(runner.finish(compiled, "compiled_shards", limit_s=1200))
    plain = done(runner.run("plain_shards", *flags, ranks=2))
    assert "runtime.compile: the network alone; heads are not compiled where they are sharded by class" in (
        compiled.output
    )
    for name, table in plain.ledgers.items():
        assert compiled.ledgers[name]["index"] == table["index"]
    for figure in ("train_loss", "eval_loss"):
        ours, theirs = (run.rows("epoch")[-1][figure] for run in (compiled, plain))
        assert ours == pytest.approx(theirs, rel=1e-3), figure
