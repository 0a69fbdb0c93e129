"""A run on DALI, end to end: what torch's run records, stopped and gone on to the same bit."""

import random
import signal
import subprocess
import sys

import pyarrow.compute as pc
import pytest
from loader_libraries import require_library
from real_runs import ROOT, same_result

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def flags(runner) -> list[str]:
    require_library("dali")
    tree = runner.folder / "photographs"
    script = ROOT / "benchmarks" / "make_photo_tree.py"
    sizes = ["--train", "144", "--val", "20", "--width", "60", "--height", "45"]
    subprocess.run([sys.executable, str(script), str(tree), *sizes], check=True, capture_output=True)
    data = {"dataset": "imagefolder", "root": str(tree), "val_fraction": "null", "workers": "2", "hflip": "0.5"}
    return [*(part for key, value in data.items() for part in (f"--data.{key}", value)), "--batch_size", "8"]


@pytest.fixture(scope="module")
def whole(runner, flags):
    finished = runner.run("dali", *flags, "--data.loader", "dali")
    assert finished.code == 0, finished.output
    return finished


def test_a_run_on_dali_records_what_a_run_on_torch_records(runner, flags, whole):
    with_torch = runner.run("torch", *flags)
    assert with_torch.code == 0, with_torch.output
    assert whole.ledgers.keys() == with_torch.ledgers.keys()
    for name, ledger in whole.ledgers.items():
        for column in ("index", "status", "count", "target"):
            assert ledger[column].equals(with_torch.ledgers[name][column]), (name, column)
    first, second = (run.ledgers["ledger/epoch=0000/running.parquet"] for run in (whole, with_torch))
    away = pc.abs(pc.subtract(first["class_loss"], second["class_loss"]))
    assert pc.max(away).as_py() < 0.05, "the pixels differ by a fifth of a level"
    waits = [row["data_wait"] for row in whole.rows("step") if "data_wait" in row]  # the first steps are not timed
    assert waits
    assert all(0 <= wait < 1 for wait in waits)


def test_a_stopped_run_on_dali_goes_on_to_the_same_bit(runner, flags, whole):
    process = runner.start("stopped_dali", *flags, "--data.loader", "dali")
    runner.wait_for_step("stopped_dali", random.Random(5).randrange(3, 30), process)
    process.send_signal(signal.SIGTERM)
    stopped = runner.finish(process, "stopped_dali")
    assert stopped.code == 75, stopped.output
    finished = runner.run("stopped_dali", *flags, "--data.loader", "dali")
    assert "resumed from" in finished.output
    same_result(finished, whole)


@pytest.mark.slow
def test_two_ranks_on_dali_end_where_one_ends(runner, flags, whole):
    pair = runner.run("dali_pair", *flags, "--data.loader", "dali", "--model.args.drop_rate", "0", ranks=2)
    assert pair.code == 0, pair.output
    for name, ledger in pair.ledgers.items():
        for column in ("index", "status", "count", "target"):
            assert ledger[column].equals(whole.ledgers[name][column]), (name, column)
