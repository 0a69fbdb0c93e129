"""`rlpheads train` in real processes: what the terminal shows, the exit code, and signals that reach the ranks once."""

import os
import signal

import pytest
from real_runs import Runner

pytestmark = pytest.mark.distributed


@pytest.mark.wrong("launcher")
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim.lrr", "1"], "--optim.lrr: no such key; nearest: --optim.lr"),
        (["--data.dataset", "imagefolder", "--data.root", "nowhere"], "data.root: got 'nowhere'; allowed: a folder"),
    ],
    ids=["wrong key", "missing folder"],
)
def test_mistake_earns_one_line(runner: Runner, flags, message, ranks):
    refused = runner.finish(runner.start_command(runner.train_command("refused", *flags, ranks=ranks)), "refused")
    assert refused.code == 2
    (line,) = refused.output.splitlines()
    assert line.startswith(f"error: {message}")
    assert not refused.folder.exists()


@pytest.mark.parametrize(
    ("number", "ranks"),
    [
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow),
        (signal.SIGINT, 2),
        pytest.param(signal.SIGHUP, 2, marks=pytest.mark.slow),
    ],
)
def test_stopped_run_saves_and_says_how_to_go_on(runner: Runner, number, ranks):
    """Ctrl-C reaches the whole foreground process group, as here; the ranks get one signal each, from the launcher."""
    name = f"stopped_{number.name}_{ranks}"
    process = runner.start_command(runner.train_command(name, "--epochs", "200", ranks=ranks))
    runner.wait_for_step(name, 3, process)
    os.killpg(process.pid, number)
    stopped = runner.finish(process, name)
    assert stopped.code == 75, stopped.output
    assert stopped.status["status"] == "requeue"
    assert f"step={stopped.status['step']:09d}" in {path.name for path in (stopped.folder / "checkpoints").iterdir()}
    last = stopped.output.splitlines()[-2:]
    assert last[0].startswith("requeue: ")
    assert last[1] == "next: the same command again, which goes on from this very sample"
    assert "Traceback" not in stopped.output
