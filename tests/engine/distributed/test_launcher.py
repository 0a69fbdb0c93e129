"""Ranks launched through torch's elastic API: their exit code is the launcher's, and nothing is said but what they said."""

import subprocess
import sys

import pytest

LAUNCH = """
import sys
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.launcher_options import LauncherOptions
from rlpheads.engine.distributed.launcher import launch_ranks
options = eval(sys.argv[1])
try:
    sys.exit(launch_ranks(options, sys.argv[2], ["here"]))
except ConfigError as error:
    print(error)
    sys.exit(2)
"""


def launch(tmp_path, program: str, options: str = "LauncherOptions(2)") -> tuple[int, list[str]]:
    """Run `program` in two ranks; return the exit code, and the lines of both streams."""
    script = tmp_path / "program.py"
    script.write_text(f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{program}\n")
    command = [sys.executable, "-c", LAUNCH, options, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("print(os.environ['WORLD_SIZE'], *sys.argv[1:]) if rank == 0 else None", 0, ["2 here"]),
        ("sys.exit(75)", 75, []),
        ("sys.exit(2) if rank == 1 else time.sleep(100)", 2, []),
        (
            "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(100)",
            137,
            ["error: rank 1 was ended by SIGKILL; the usual cause is memory (see dmesg)"],
        ),
    ],
    ids=["done", "stopped", "one refuses", "one is killed"],
)
@pytest.mark.distributed
def test_exit_code_and_words_are_the_ranks(tmp_path, program, code, said):
    assert launch(tmp_path, program) == (code, said)


@pytest.mark.slow  # torch looks for the other node for more than a minute
@pytest.mark.wrong("launcher")
@pytest.mark.distributed
def test_nodes_that_cannot_meet(tmp_path):
    options = "LauncherOptions(1, 2, 1, 'c10d', '127.0.0.1:1', 'mine', {'is_host': 'false', 'timeout': '2'})"
    code, said = launch(tmp_path, "", options)
    assert code == 2
    assert said[0].startswith("the nodes cannot meet at 127.0.0.1:1 (c10d): ")
    assert "Traceback" not in "".join(said)
