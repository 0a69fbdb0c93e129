"""Ranks that are killed under a launcher that starts them again: the run ends as if nothing had happened."""

import os
import signal
import socket
import time

import pytest
from real_runs import Runner, rank_processes, same_result
from stuck_ranks import come_late

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def undisturbed_pair(runner):
    finished = runner.run("undisturbed_pair", ranks=2)
    assert finished.code == 0, finished.output
    return finished


@pytest.fixture(params=["torchrun", "rlpheads train"])
def restarting(request, runner: Runner):
    """Return the command of a run of two ranks under a launcher that starts them again."""

    def command(name, *flags):
        make = runner.command if request.param == "torchrun" else runner.train_command
        words = make(name, *flags, ranks=2)
        place = words.index("--nproc-per-node")
        return [*words[:place], "--max-restarts", "5", *words[place:]]

    return command


def test_killed_ranks_start_again_and_end_alike(runner: Runner, restarting, undisturbed_pair, request, record_property):
    """Rank 0, which has the addresses, and the other one: before the first checkpoint and behind it."""
    name = request.node.name
    process = runner.start_command(restarting(name))
    reached = []
    for step, victim in ((6, 0), (12, 1), (30, 0)):
        runner.wait_for_step(name, step, process)
        reached.append(time.monotonic())
        rank_processes(process)[victim].kill()
    finished = runner.finish(process, name)
    assert finished.code == 0, finished.output
    same_result(finished, undisturbed_pair)
    record_property("seconds_to_recover", round(reached[1] - reached[0]))
    record_property("samples_lost", 0)


@pytest.mark.parametrize(
    ("launcher", "address"),
    [
        ("rlpheads train", "127.0.0.9"),
        ("rlpheads train", "127.0.0.1"),
        ("torchrun", "127.0.0.9"),
        ("torchrun", "127.0.0.1"),
    ],
    ids=["rlpheads, as rank 1", "rlpheads, as rank 0", "torchrun, as rank 1", "torchrun, as rank 0"],
)
def test_launcher_of_another_node_is_replaced(
    runner: Runner, undisturbed_pair, monkeypatch, launcher, address, record_property
):
    """The launcher that is not the meeting place is killed; one that is started anew joins, also where it takes the lead.

    torch numbers the nodes in the order of their addresses. A torchrun that joins as another than rank 0 needs a setting.
    """
    if (launcher, address) == ("torchrun", "127.0.0.9"):
        monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    name = f"two_launchers_{launcher.split()[0]}_{address}"
    make = runner.command if launcher == "torchrun" else runner.train_command
    words = [word for word in make(name, ranks=2) if word != "--standalone"]
    place = words.index("--nproc-per-node")
    nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
    nodes += ["--rdzv-endpoint", endpoint, "--rdzv-id", "pair"]

    def start(address, *, host):
        place_of_node = ["--local-addr", address, "--rdzv-conf", f"is_host={int(host)}"]
        return runner.start_command([*words[:place], *nodes, *place_of_node, *words[place + 2 :]])

    first, second = start("127.0.0.5", host=True), start("127.0.0.9", host=False)
    runner.wait_for_step(name, 6, first)
    second.kill()
    second.communicate()
    third = start(address, host=False)
    finished = runner.finish(first, name)
    third.communicate(timeout=60)
    assert finished.code == third.returncode == 0, finished.output
    same_result(finished, undisturbed_pair)
    record_property("samples_lost", 0)


def test_stopped_run_is_not_started_again(runner: Runner):
    words = runner.train_command("stopped", "--epochs", "200", ranks=2)
    process = runner.start_command([*words, "--max-restarts", "3"])
    runner.wait_for_step("stopped", 3, process)
    os.kill(process.pid, signal.SIGTERM)
    stopped = runner.finish(process, "stopped")
    assert stopped.code == 75, stopped.output
    assert stopped.output.count("requeue: ") == 1


def test_refused_settings_are_said_once(runner: Runner):
    """The parser knows nothing of the images: rank 0 refuses, and is started again in vain."""
    words = runner.train_command("refused", "--batch_size", "4096", ranks=2)
    refused = runner.finish(runner.start_command([*words, "--max-restarts", "2"]), "refused")
    assert refused.code == 2
    (line,) = refused.output.splitlines()
    assert "batch_size is 4096" in line


def test_refusal_is_said_however_late_the_first_rank_is(runner: Runner):
    """A launcher ends all ranks as soon as one ends: one that leaves the word to the first must not end before it."""
    refused = runner.join(runner.fork("late", "--batch_size", "4096", ranks=2, prepare=come_late), "late")
    assert refused.code == 2
    (line,) = refused.output.splitlines()
    assert "batch_size is 4096" in line


def test_launcher_that_waits_for_other_nodes_says_so(runner: Runner):
    words = runner.train_command("lonely", ranks=1)
    process = runner.start_command([*words, "--nnodes", "2", "--rdzv-endpoint", "localhost:0"])
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("waiting for 2 nodes at localhost:0 since 30 s, at most 600 s")
    finally:
        runner.kill(process)
