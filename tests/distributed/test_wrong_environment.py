"""Real faults of the surroundings: disks that are full or read-only, limits, no shared memory, ranks that cannot meet.

Every one ends with one line that says what is wrong and what to do, without a traceback, and nothing that was whole is
lost. Mounts live in a namespace of their own, which takes a right that not every machine grants; permissions would not
do instead, since they do not bind the root user that containers run as.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from real_runs import Finished, Runner

pytestmark = pytest.mark.distributed


def can_mount() -> bool:
    command = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


needs_mounts = pytest.mark.skipif(not can_mount(), reason="no right to mount here (unshare --mount)")


class Shell:
    """Runs a script, in which $RUN is a tiny training of one rank, with mounts of its own."""

    def __init__(self, runner: Runner, folder: Path):
        self._runner = runner
        self.folder = folder

    def __call__(self, script: str, *flags: str, mounts: bool = True, **variables: str) -> Finished:
        command = self._runner.command("mine", "--run.dir", str(self.folder / "runs"), *flags)
        (self.folder / "runs").mkdir(exist_ok=True)
        process = subprocess.Popen(
            [*(["unshare", "--mount"] if mounts else []), "sh", "-c", script],
            env={**os.environ, "OMP_NUM_THREADS": "1", "RUN": shlex.join(command), "RUNS": str(self.folder / "runs")}
            | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        finished = self._runner.finish(process, "mine")
        assert "Traceback" not in finished.output, finished.output
        return replace(finished, folder=self.folder / "runs" / "mine")


@pytest.fixture
def shell(runner: Runner, tmp_path: Path) -> Shell:
    return Shell(runner, tmp_path)


def complaint(finished: Finished) -> str:
    (line,) = [line for line in finished.output.splitlines() if line.startswith("error: ")]
    return line


@needs_mounts
@pytest.mark.wrong("environment")
def test_disk_that_fills_up_in_training_loses_nothing(shell):
    """The second epoch's checkpoint does not fit; with room made, the same command goes on from the first one."""
    first = 'mount -t tmpfs -o size=1000k none "$RUNS"; eval "$RUN"; echo "code $?"'
    script = f'{first}; mount -o remount,size=64m "$RUNS"; eval "$RUN"'
    finished = shell(script)
    assert finished.code == 0, finished.output
    assert "code 1" in finished.output
    assert "No space left on device; make room" in complaint(finished)  # of whichever file met it first
    assert "the same command then goes on from the last checkpoint, which is whole" in complaint(finished)
    assert "step=000000022 at step 22" in finished.output
    assert "done: all 2 epochs trained" in finished.output


@needs_mounts
@pytest.mark.slow
@pytest.mark.wrong("environment")
def test_disk_that_is_full_for_tensorboard_alone(shell):
    """Its files are written by a thread of their own, which would die unheard, or with a traceback."""
    script = 'eval "$RUN --max_steps 3"; mount -t tmpfs -o size=8k none "$RUNS/mine/tensorboard"; eval "$RUN"'
    finished = shell(script)
    assert finished.code == 1, finished.output
    assert "runs/mine: No space left on device; make room" in complaint(finished)
    assert finished.status["status"] == "failed"


@pytest.mark.wrong("environment")
def test_run_folder_that_is_removed_in_training(runner):
    process = runner.start("removed")
    runner.wait_for_step("removed", 3, process)
    process.send_signal(signal.SIGSTOP)  # so that nothing is written while it goes
    shutil.rmtree(runner.folder / "removed")
    process.send_signal(signal.SIGCONT)
    finished = runner.finish(process, "removed")
    assert finished.code == 1, finished.output
    assert "Traceback" not in finished.output
    assert complaint(finished).endswith(
        ": No such file or directory; something has removed or replaced what the run had there: put it back, or use "
        "another --run.name"
    )
    assert "removed/metrics.jsonl" in complaint(finished) or "removed/tensorboard/" in complaint(finished)


@needs_mounts
@pytest.mark.wrong("environment")
def test_disk_that_is_full_from_the_start(shell):
    script = 'mount -t tmpfs -o size=64k none "$RUNS"; head -c 1m /dev/zero > "$RUNS/big" 2>/dev/null; eval "$RUN"'
    finished = shell(script)
    assert finished.code == 2
    assert "No space left on device; " in complaint(finished)
    assert "--run.dir" in complaint(finished)


@needs_mounts
@pytest.mark.wrong("environment")
def test_disk_that_is_read_only(shell):
    finished = shell('mount -t tmpfs -o ro none "$RUNS"; eval "$RUN"')
    assert finished.code == 2
    assert complaint(finished).endswith("runs/mine: Read-only file system; see --run.dir")


@needs_mounts
@pytest.mark.wrong("environment")
def test_too_little_shared_memory_for_the_loaders_workers(shell):
    """It is found before anything starts: a worker whose batch does not fit would be waited for without end."""
    finished = shell('mount -t tmpfs -o size=64k none /dev/shm; eval "$RUN"', "--data.workers", "1")
    assert finished.code == 2
    assert complaint(finished).startswith("error: /dev/shm: 65,536 bytes are free, and the batches that loader workers")
    assert "--data.workers 0" in complaint(finished)


@pytest.mark.wrong("environment")
def test_temporary_folder_whose_path_is_too_long_for_sockets(shell, tmp_path):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    finished = shell('eval "$RUN"', "--data.workers", "1", mounts=False, TMPDIR=str(folder))
    assert finished.code == 2
    assert complaint(finished).startswith(f"error: TMPDIR: got a folder whose path has {len(str(folder))} bytes (")


@pytest.mark.wrong("environment")
def test_heads_that_do_not_fit_into_memory(shell):
    finished = shell('eval "$RUN"', "--heads.labels", "2000000000", mounts=False)
    assert finished.code == 2
    assert "heads.labels: got 2000000000; allowed: at most " in complaint(finished)


@pytest.mark.wrong("environment")
def test_heads_that_do_not_fit_into_a_limit_on_memory(shell):
    finished = shell('ulimit -v 9000000; eval "$RUN"', "--heads.labels", "20000000", mounts=False)
    assert finished.code == 1
    assert "out of memory: " in complaint(finished)
    assert "give fewer --heads.labels, --heads.draws or --heads.taps, a smaller --batch_size" in complaint(finished)
    assert finished.status["status"] == "failed"


@pytest.mark.wrong("environment")
def test_limit_on_the_size_of_files(shell):
    finished = shell('ulimit -f 200; eval "$RUN"', mounts=False)
    assert finished.code == 1
    assert "File too large; lift the limit on the size of files (ulimit -f unlimited)" in complaint(finished)
    assert finished.status["status"] == "failed"


@pytest.mark.wrong("environment")
def test_port_that_is_taken(shell):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        variables = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        finished = shell('eval "$RUN"', mounts=False, **variables)
    assert finished.code == 2
    assert f"the ranks cannot meet at 127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT): " in complaint(finished)
    assert "choose a free port with torchrun's --master-port" in complaint(finished)
    assert finished.status["status"] == "failed"
