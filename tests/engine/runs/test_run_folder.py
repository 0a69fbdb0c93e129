"""A run folder is one run's, and is resumed, refused or overwritten exactly as asked."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlpheads.engine.config.run import RunConfig
from rlpheads.engine.runs.folder import RunFolder, RunFolderError, claim, write_atomically


@pytest.fixture
def wanted(tmp_path: Path) -> RunConfig:
    return RunConfig(dir=str(tmp_path), name="mine")


def occupied(config: RunConfig) -> Path:
    folder = Path(config.dir) / config.name
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "checkpoints").mkdir()
    return folder


def test_new_folder_is_made(wanted):
    folder, lock = claim(wanted)
    assert folder.path.is_dir()
    lock.close()


@pytest.mark.wrong("run folder")
def test_folder_in_use_is_refused_by_another_process(wanted):
    code = (
        "import sys; from rlpheads.engine.runs.folder import claim; from rlpheads.engine.config.run import RunConfig\n"
    )
    code += "claim(RunConfig(dir=sys.argv[1], name='mine'))"
    _, lock = claim(wanted)
    with lock:
        second = subprocess.run([sys.executable, "-c", code, wanted.dir], capture_output=True, text=True)
    assert "is in use by another run; choose another --run.name" in second.stderr
    third = subprocess.run([sys.executable, "-c", code, wanted.dir], capture_output=True, text=True)
    assert third.returncode == 0


@pytest.mark.wrong("run folder")
def test_overwriting_a_folder_in_use_deletes_nothing(wanted):
    folder = occupied(wanted)
    code = (
        "import sys; from rlpheads.engine.runs.folder import claim; from rlpheads.engine.config.run import RunConfig\n"
    )
    code += "claim(RunConfig(dir=sys.argv[1], name='mine', overwrite=True))"
    _, lock = claim(wanted)
    with lock:
        second = subprocess.run([sys.executable, "-c", code, wanted.dir], capture_output=True, text=True)
    assert "is in use by another run" in second.stderr
    assert (folder / "config.yaml").exists()


def test_lock_goes_with_its_process_whoever_lives_on(wanted):
    """A loader worker outlives a killed run for a while."""
    code = "import os, sys, time; from rlpheads.engine.runs.folder import claim\n"
    code += "from rlpheads.engine.config.run import RunConfig\n"
    code += "claimed = claim(RunConfig(dir=sys.argv[1], name='mine'))\n"
    code += "if os.fork(): os.kill(os.getpid(), 9)\ntime.sleep(20)"
    first = subprocess.run(
        [sys.executable, "-c", code, wanted.dir], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert first.returncode == -9
    _, lock = claim(wanted)
    lock.close()


@pytest.mark.parametrize("count", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_restarted_job_keeps_what_its_first_start_made(wanted, monkeypatch, count):
    folder = occupied(wanted)
    monkeypatch.setenv(count, "1")
    for flags in ({"overwrite": True}, {"resume": "never"}):
        _, lock = claim(replace(wanted, **flags))
        lock.close()
    assert (folder / "checkpoints").exists()


@pytest.mark.wrong("run folder")
def test_resume_never_refuses_what_is_there(wanted):
    folder = occupied(wanted)
    with pytest.raises(RunFolderError, match=r"exists and --run\.resume is never.*--run\.overwrite"):
        claim(replace(wanted, resume="never"))
    assert (folder / "config.yaml").exists()


def test_overwrite_empties_the_folder(wanted):
    folder = occupied(wanted)
    _, lock = claim(replace(wanted, resume="never", overwrite=True))
    lock.close()
    assert [entry.name for entry in folder.iterdir()] == ["run.lock"]


def test_overwrite_does_not_follow_links(wanted, tmp_path):
    folder = occupied(wanted)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("four years")
    (folder / "link").symlink_to(precious)
    _, lock = claim(replace(wanted, overwrite=True))
    lock.close()
    assert (precious / "thesis.txt").exists()


@pytest.mark.wrong("run folder")
@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_something_else_is_never_touched(wanted, overwrite):
    folder = Path(wanted.dir) / wanted.name
    folder.mkdir()
    (folder / "thesis.txt").write_text("four years")
    with pytest.raises(RunFolderError, match=r"is no run folder \(it has no config\.yaml\)"):
        claim(replace(wanted, overwrite=overwrite))
    assert (folder / "thesis.txt").read_text() == "four years"


@pytest.mark.wrong("run folder")
def test_file_in_the_place_of_the_folder(wanted):
    (Path(wanted.dir) / wanted.name).write_text("")
    with pytest.raises(RunFolderError, match="is a file, not a run folder"):
        claim(wanted)


@pytest.mark.wrong("run folder")
def test_folder_that_cannot_be_made(wanted, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot write the run folder .*; see --run\.dir"):
        claim(replace(wanted, dir=str(tmp_path / "file" / "runs")))


def test_rewinding_drops_later_lines_and_a_torn_one(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (10, 20, 30):
        folder.append_metrics({"kind": "step", "step": step})
    folder.append_metrics({"kind": "epoch", "step": 20, "epoch": 0})
    folder.append_metrics({"kind": "epoch", "step": 20, "epoch": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    folder.rewind_metrics(20, epoch=1)
    assert [row["step"] for row in folder.metrics("step")] == [10, 20]
    assert [row["epoch"] for row in folder.metrics("epoch")] == [0]


def test_summary_begins_with_timms_columns_and_spreads_lists(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"kind": "step", "step": 1, "class_loss": 2.0})
    folder.append_metrics(
        {
            "kind": "epoch",
            "step": 2,
            "epoch": 0,
            "train_loss": 1.5,
            "eval_loss": 1.0,
            "eval_top1": 0.5,
            "eval_top5": 0.75,
            "lr": 0.1,
            "rla_clean": [0.25, 0.5],
        }
    )
    folder.write_summary()
    header, row = (tmp_path / "summary.csv").read_text().splitlines()
    assert header == "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr,rla_clean_0,rla_clean_1,step"
    assert row == "0,1.5,1.0,0.5,0.75,0.1,0.25,0.5,2"


def test_status_is_replaced_as_a_whole(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.status() == {}
    folder.write_status("running", "started")
    folder.write_status("done", "all 2 epochs trained", step=4)
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "status": "done",
        "reason": "all 2 epochs trained",
        "step": 4,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\udc80")
    assert path.read_text() == "old"
