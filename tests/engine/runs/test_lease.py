"""Two hosts at one run folder: the second start waits for a sign of life, and a run whose lease was taken ends."""

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from rlpheads.engine.config.run import RunConfig
from rlpheads.engine.runs import folder as folder_module
from rlpheads.engine.runs.folder import RunFolderError, claim
from rlpheads.engine.runs.lease import LEASE, kept_lease, read_lease, wait_for_lease


def leave_lease(path, beat=0, host="elsewhere"):
    path.mkdir(exist_ok=True)
    (path / "lease.tmp").write_text(json.dumps({"host": host, "pid": 7, "word": "w", "beat": beat}))
    (path / "lease.tmp").replace(path / LEASE)


@contextmanager
def another_host(path):
    """A run on another host that beats."""
    over = threading.Event()

    def beat():
        number = 0
        while not over.wait(0.05):
            leave_lease(path, number := number + 1)

    leave_lease(path)
    thread = threading.Thread(target=beat)
    thread.start()
    yield
    over.set()
    thread.join()


def test_lease_is_kept_and_given_back(tmp_path):
    with kept_lease(tmp_path, beat_s=0.02):
        first = read_lease(tmp_path)
        assert not first.is_elsewhere
        assert wait_for_lease(tmp_path, 10) is None, "the lock answers for processes of this host"
        while read_lease(tmp_path) == first:
            pass
    assert list(tmp_path.iterdir()) == []


def test_silent_holder_elsewhere_is_waited_for_and_its_folder_taken(tmp_path, capsys):
    leave_lease(tmp_path)
    assert wait_for_lease(tmp_path, 0.3) is None
    assert "is held by process 7 on elsewhere; waiting" in capsys.readouterr().err


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(folder_module, "wait_for_lease", lambda path: wait_for_lease(path, 1))


def test_folder_of_a_living_run_elsewhere_is_refused(tmp_path, impatient):
    config = RunConfig(dir=str(tmp_path), name="run")
    with claim(config)[1]:
        pass
    with another_host(tmp_path / "run"):
        with pytest.raises(RunFolderError, match="in use by process 7 on elsewhere, which is alive"):
            claim(config)
        with claim(RunConfig(dir=str(tmp_path), name="run", takeover=True))[1]:
            pass


def test_damaged_lease_holds_nobody_up(tmp_path):
    (tmp_path / LEASE).write_text("{")
    assert wait_for_lease(tmp_path, 10) is None


@pytest.mark.timeout(60)
def test_run_whose_lease_is_taken_ends_and_leaves_it(tmp_path):
    holding = "import sys, time; from pathlib import Path; from rlpheads.engine.runs.lease import kept_lease\n"
    holding += "with kept_lease(Path(sys.argv[1]), beat_s=0.05): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", holding, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    while process.poll() is None:
        leave_lease(tmp_path)  # again: a beat may have been on its way
        time.sleep(0.2)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "was taken over by process 7 on elsewhere; this run ends" in said
    assert read_lease(tmp_path).host == "elsewhere"
