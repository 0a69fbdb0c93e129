"""A run folder is one run's, and is resumed, refused or overwritten exactly as asked."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rlpheads.engine.config.learning import HeadsConfig
from rlpheads.engine.config.run import RunConfig
from rlpheads.engine.report.summary import write_summary
from rlpheads.engine.runs.folder import RunFolder, RunFolderError, claim, write_atomically
from rlpheads.engine.runs.ownership import MARK

WRITTEN = (
    *("config.yaml", "status.json", "environment.json", "metrics.jsonl", "summary.csv", "canaries.parquet"),
    *("failed.rank0003.json", ".status.json.4711.tmp", "ledger/epoch=0001/clean.parquet", "figures/rla_by_depth.png"),
    *("checkpoints/step=000000012/manifest.json", "checkpoints/step=000000012/.metadata"),
    *("checkpoints/step=000000012/__0_0.distcp", "checkpoints/.step=000000024.tmp/__1_0.distcp"),
    *("tensorboard/events.out.tfevents.1.host", "profile/steps=000010-000014.rank=0000.json"),
    *("audit/step=000000012_least_squares.json", "wandb/run_id.txt", "wandb/offline-run-1-a/files/config.yaml"),
)


@pytest.fixture
def wanted(tmp_path: Path) -> RunConfig:
    return RunConfig(dir=str(tmp_path), name="mine")


def occupied(config: RunConfig) -> Path:
    folder = Path(config.dir) / config.name
    _, lock = claim(config)
    lock.close()
    fill(folder)
    return folder


def fill(folder: Path) -> None:
    """Write what a run writes, though with nothing in it."""
    for name in WRITTEN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_new_folder_is_made(wanted):
    folder, lock = claim(wanted)
    assert folder.path.is_dir()
    lock.close()


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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
    assert sorted(entry.name for entry in folder.iterdir()) == [MARK, "run.lock"]


@pytest.mark.wrong("not ours")
@pytest.mark.parametrize("name", ["link", "checkpoints"])
def test_overwrite_does_not_follow_links(wanted, tmp_path, name):
    folder, precious = Path(wanted.dir) / wanted.name, tmp_path / "precious"
    fill_only(precious, "step=000000012/manifest.json")
    claim(wanted)[1].close()
    (folder / name).symlink_to(precious)
    (folder / "config.yaml").touch()
    claim(replace(wanted, overwrite=True))[1].close()
    assert names_in(precious) == ["step=000000012/manifest.json"]


def fill_only(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("four years")


NOTES = ("notes.txt", "results/table.csv", ".git/HEAD", "thesis.tex", "figures/mine.png", "checkpoints/README.md")


@pytest.mark.wrong("not ours")
def test_overwriting_a_run_leaves_what_no_run_made_and_says_so(wanted):
    folder = occupied(wanted)
    fill_only(folder, *NOTES, "ledger/epoch=0001/figure.py", "checkpoints/step=000000012/why.txt", "config.yaml.orig")
    claimed, lock = claim(replace(wanted, overwrite=True))
    with lock:
        stays = claimed.clear()
    kept = {*NOTES, "ledger/epoch=0001/figure.py", "checkpoints/step=000000012/why.txt", "config.yaml.orig"}
    assert set(names_in(folder)) == kept | {MARK, "run.lock"}
    assert sorted(stays) == sorted((kept - {"results/table.csv", ".git/HEAD"}) | {"results/", ".git/"})


@pytest.mark.wrong("not ours")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("more", [(), NOTES, ("checkpoints/best.pt",), ("status.json",), ("metrics.jsonl",)], ids=str)
def test_project_with_a_config_of_its_own_is_never_touched(wanted, overwrite, more):
    folder = Path(wanted.dir) / wanted.name
    fill_only(folder, "config.yaml", *more)
    with pytest.raises(RunFolderError, match="is no run folder .*nothing in it was touched; choose another --run.name"):
        claim(replace(wanted, overwrite=overwrite))
    assert names_in(folder) == sorted(("config.yaml", *more))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("status.json", {"status": "failed", "reason": "started"}),
        ("checkpoints/step=000000012/manifest.json", {"step": 12, "files": {}}),
    ],
)
def test_run_from_before_there_was_a_mark_is_known_by_what_only_a_run_writes(wanted, name, content):
    folder = Path(wanted.dir) / wanted.name
    fill(folder)
    (folder / name).write_text(json.dumps(content))
    claim(wanted)[1].close()
    assert (folder / "checkpoints").exists()
    claim(replace(wanted, overwrite=True))[1].close()
    assert names_in(folder) == [MARK, "run.lock"]


@pytest.mark.wrong("not ours")
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_link_in_the_place_of_the_lock_empties_nothing(wanted, tmp_path, kind):
    folder, precious = Path(wanted.dir) / wanted.name, tmp_path / "thesis.txt"
    precious.write_text("four years")
    folder.mkdir()
    if kind == "hard":
        (folder / "run.lock").hardlink_to(precious)
        claim(wanted)[1].close()
    else:
        (folder / "run.lock").symlink_to(precious)
        with pytest.raises(RunFolderError, match=r"run\.lock is a link, which no run makes; delete it"):
            claim(wanted)
    assert precious.read_text() == "four years"


def test_start_that_wrote_nothing_is_no_run_that_must_not_exist(wanted):
    claim(wanted)[1].close()
    claim(replace(wanted, resume="never"))[1].close()


def as_job(monkeypatch, slurm: str | None = None, requeues: str | None = None, torchrun: str | None = None) -> None:
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID")
    for name, value in zip(names, (slurm, requeues, torchrun), strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("7",), ("7", "1")),
        (("7", "1", "a"), ("7", "2", "b")),
        (("7", "0", "a"), ("7", "0", "a")),
        ((None, None, "a"), (None, None, "a")),
        ((None, None, "none"), (None, None, "none")),
        ((None, None, "rlpheads"), (None, None, "rlpheads")),
    ],
    ids=["requeue", "second requeue", "torchrun in Slurm", "torchrun", "torchrun without an id", "rlpheads train"],
)
@pytest.mark.parametrize("flags", [{"overwrite": True}, {"resume": "never"}], ids=["overwrite", "never"])
def test_restarted_job_keeps_what_it_made_itself(wanted, monkeypatch, first, second, flags):
    as_job(monkeypatch, *first)
    folder = occupied(wanted)
    as_job(monkeypatch, *second)
    claimed, lock = claim(replace(wanted, **flags))
    lock.close()
    assert claimed.is_restart
    assert (folder / "checkpoints").exists()


@pytest.mark.wrong("not ours")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((), (None, "1")),
        (("6",), ("7", "1")),
        (("6", "0", "a"), ("7", "1", "a")),
        (("7",), ("7",)),
        ((None, None, "a"), (None, None, "b")),
        ((None, None, None), (None, None, "none")),
    ],
    ids=["no job", "another job", "same id in another job", "same allocation", "another torchrun", "by hand"],
)
def test_run_of_another_job_is_overwritten_also_after_a_requeue(wanted, monkeypatch, first, second):
    """It would be reported as this job's result."""
    as_job(monkeypatch, *first)
    folder = occupied(wanted)
    as_job(monkeypatch, *second)
    with pytest.raises(RunFolderError, match="exists and --run.resume is never"):
        claim(replace(wanted, resume="never"))
    claimed, lock = claim(replace(wanted, overwrite=True))
    lock.close()
    assert not claimed.is_restart
    assert names_in(folder) == [MARK, "run.lock"]


@pytest.mark.long
@pytest.mark.wrong("not ours")
@pytest.mark.parametrize("name", ["none", "rlpheads"])
def test_two_launches_without_an_id_are_two_jobs(wanted, monkeypatch, name):
    code = (
        "import sys; from rlpheads.engine.runs.folder import claim; from rlpheads.engine.config.run import RunConfig\n"
    )
    code += "claim(RunConfig(dir=sys.argv[1], name='mine'))"
    launch = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}, sys.argv[1]], check=True)"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
    subprocess.run([sys.executable, "-c", launch, wanted.dir], check=True)
    fill(Path(wanted.dir) / wanted.name)
    claimed, lock = claim(replace(wanted, overwrite=True))
    lock.close()
    assert not claimed.is_restart


def test_run_from_before_there_was_a_mark_is_nobodys_restart(wanted, monkeypatch):
    folder = occupied(wanted)
    (folder / MARK).write_text("{")
    as_job(monkeypatch, "7", "1", "a")
    claim(replace(wanted, overwrite=True))[1].close()
    assert names_in(folder) == [MARK, "run.lock"]


@pytest.mark.wrong("run folder")
@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_something_else_is_never_touched(wanted, overwrite):
    folder = Path(wanted.dir) / wanted.name
    folder.mkdir()
    (folder / "thesis.txt").write_text("four years")
    with pytest.raises(RunFolderError, match=r"is no run folder \(no run left its mark"):
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
        folder.append_metrics({"kind": "step", "step": step, "epoch": 0})
    folder.append_metrics({"kind": "epoch", "step": 20, "epoch": 0})
    folder.append_metrics({"kind": "epoch", "step": 20, "epoch": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    folder.rewind_metrics(20, epoch=1)
    assert [row["step"] for row in folder.metrics("step")] == [10, 20]
    assert [row["epoch"] for row in folder.metrics("epoch")] == [0]


def epoch_line(epoch=0, **figures):
    figures = {"train_loss": 1.5, "eval_loss": 1.0, "eval_top1": 0.5, "eval_top5": 0.75, "lr": 0.1, **figures}
    return {"kind": "epoch", "step": 2, "epoch": epoch, **figures}


def summary(tmp_path, joint=0.0, **options):
    write_summary(RunFolder(tmp_path), HeadsConfig(joint=joint), **options)
    return (tmp_path / "summary.csv").read_text().splitlines()


TIMM = "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr"


def test_summary_has_timms_columns_accuracy_and_excess_by_tap_and_times(tmp_path):
    """A dozen taps are in the order of depth; the times are sums over the epochs, of all devices too."""
    folder, times = RunFolder(tmp_path), {"seconds": 1800.0, "device_seconds": 7200.0}
    taps = {"rla_clean": [0.25, 0.5], "fresh_refit_clean": [0.125, 0.5], "bits_clean": [3.0, 4.0]}
    folder.append_metrics({"kind": "step", "step": 1, "epoch": 0, "class_loss": 2.0})
    folder.append_metrics(epoch_line(**taps, **times))
    folder.append_metrics(epoch_line(1, audit_rla_clean=[0.5, 0.75], **taps, **times))
    header, first, second = summary(tmp_path)
    by_tap = "rla_clean_0,rla_clean_1,audit_rla_clean_0,audit_rla_clean_1,fresh_refit_clean_0,fresh_refit_clean_1"
    assert header == f"{TIMM},{by_tap},excess_clean_0,excess_clean_1,wall_hours,device_hours"
    assert first == "0,1.5,1.0,0.5,0.75,0.1,0.25,0.5,,,0.125,0.5,0.125,0.0,0.5,2.0"
    assert second.endswith("0.5,0.75,0.125,0.5,0.375,0.25,1.0,4.0")
    *_, joint = summary(tmp_path, joint=1.0)  # the network learns the own heads' labels, and none of the audit heads'
    assert joint.endswith("0.5,0.75,0.125,0.5,0.125,0.0,1.0,4.0")


def test_a_summary_can_have_every_figure(tmp_path):
    RunFolder(tmp_path).append_metrics(epoch_line(rla_clean=[0.25, 0.5], bits_clean=[3.0, 4.0]))
    header, row = summary(tmp_path, wide=True)
    assert header == f"{TIMM},bits_clean_0,bits_clean_1,rla_clean_0,rla_clean_1,step"
    assert row == "0,1.5,1.0,0.5,0.75,0.1,3.0,4.0,0.25,0.5,2"


def test_a_run_begun_with_a_wide_summary_goes_on_in_it(tmp_path):
    RunFolder(tmp_path).append_metrics(epoch_line(rla_clean=[0.25]))
    (tmp_path / "summary.csv").write_text(f"{TIMM},rla_clean_0,step\n0,1.5,1.0,0.5,0.75,0.1,0.25,2\n")
    RunFolder(tmp_path).append_metrics(epoch_line(1, rla_clean=[0.5]))
    header, _, second = summary(tmp_path)
    assert header == f"{TIMM},rla_clean_0,step"
    assert second == "1,1.5,1.0,0.5,0.75,0.1,0.5,2"


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
