"""Options of the engine in whole runs: stopped and killed ones end where undisturbed ones do."""

import signal

import pytest
from real_runs import same_result

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

HALF = ["--precision", "fp16", "--loss_scale.initial", "1e18", "--loss_scale.growth_every", "5"]
HALF += ["--regularizer.kind", "uniform", "--regularizer.factor", "1"]
ENDS_AFTER_TWO = ["--epochs", "6", "--early_stopping.patience", "1", "--early_stopping.min_delta", "1"]


def test_killed_pair_in_half_precision_ends_early_at_the_same_bits(runner, record_property):
    """The ranks leave the same steps out while the scales come down, and agree on the last epoch."""
    flags = [*HALF, *ENDS_AFTER_TWO]
    whole = runner.run("whole_half", *flags, ranks=2)
    process = runner.start("killed_half", *flags, ranks=2)
    runner.wait_for_step("killed_half", 30, process)
    runner.kill(process)
    finished = runner.run("killed_half", *flags, ranks=2)
    assert finished.code == whole.code == 0, finished.output + whole.output
    same_result(finished, whole)
    record_property("samples_lost", 0)
    assert finished.status["reason"] == whole.status["reason"]
    assert whole.status["reason"].startswith("early_stopping: eval_top1 is not better by more than 1 than ")
    scales = [row["backbone_loss_scale"] for row in whole.rows("step")]
    assert scales[0] == pytest.approx(5e17)  # the first step overflows
    assert scales[-1] < scales[0]
    assert [row["epoch"] for row in whole.rows("epoch")] == [0, 1]


def stopped(runner, name, step, *flags):
    """Start a run, or go on with it, and stop it when it has recorded a step; return its output."""
    process = runner.start(name, *flags)
    runner.wait_for_step(name, step, process)
    process.send_signal(signal.SIGTERM)
    finished = runner.finish(process, name)
    assert finished.status["status"] == "requeue", finished.output
    return finished


def test_compiled_run_is_stopped_and_killed_and_ends_at_the_same_bits(runner, monkeypatch, record_property):
    """Every start compiles anew, and in another order: the second goes on with an evaluation, whose batches are whole.

    No graph may serve several shapes (dynamic ones have symbols), or its kernels would depend on that order.
    """
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    monkeypatch.setenv("TORCH_LOGS", "dynamic")
    flags = ["--runtime.compile", "true", "--accumulate", "2", "--model.ema_decay", "0.9"]
    whole = runner.run_command("whole_compiled", *flags)
    assert whole.code == 0, whole.output
    assert 8 <= stopped(runner, "compiled", 8, *flags).status["step"] < 22
    assert stopped(runner, "compiled", 22, *flags).status["step"] == 22
    process = runner.start("compiled", *flags)
    runner.wait_for_step("compiled", 30, process)
    runner.kill(process)
    finished = runner.run_command("compiled", *flags)
    assert finished.code == 0, finished.output
    assert "at step 22" in finished.output
    for run in (whole, finished):
        assert "create_env" in run.output, "the log tells of graphs"
        assert "create_symbol" not in run.output
    same_result(finished, whole)
    record_property("samples_lost", 0)
    assert set(whole.status["weights_sha256"]) == {"backbone", "heads", "ema"}
