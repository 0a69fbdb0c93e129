"""launch/two_nodes.sh, started twice on this machine as on two: two launchers, each with a rank of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from real_runs import ROOT, Runner, same_result


@pytest.mark.slow
@pytest.mark.distributed
def test_two_launchers_train_as_one_with_two_ranks_does(tmp_path, monkeypatch, record_property):
    runner = Runner(tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, value in {"FIRST": "localhost", "PORT": port, "RANKS_PER_NODE": 1, "JOB": "pair"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    flags = ["--config", str(runner.config), "--run.dir", str(tmp_path), "--run.name", "pair"]
    nodes = [runner.start_command([str(ROOT / "launch" / "two_nodes.sh"), *flags]) for _ in range(2)]
    finished = [runner.finish(node, "pair") for node in nodes]
    assert [node.code for node in finished] == [0, 0], finished
    same_result(finished[0], runner.run("one_launcher", ranks=2))
    record_property("samples_lost", 0)


def test_without_the_first_machine_the_script_says_what_it_lacks():
    without = {name: value for name, value in os.environ.items() if name != "FIRST"}
    done = subprocess.run([str(ROOT / "launch" / "two_nodes.sh")], env=without, capture_output=True, text=True)
    assert done.returncode != 0
    assert "FIRST: the address of the first machine" in done.stderr
