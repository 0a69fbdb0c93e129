"""torchrun's options as `rlpheads train` takes them: one node by default, and one line for what cannot be meant."""

import pytest

from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.launcher_options import LauncherOptions, read_launcher_options

NAMES = ("nproc_per_node", "nnodes", "rdzv_endpoint", "rdzv_backend", "rdzv_id", "rdzv_conf")
NAMES += ("master_addr", "master_port", "node_rank", "local_addr", "max_restarts", "standalone")
ABSENT: dict[str, str | None] = dict.fromkeys(NAMES)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, LauncherOptions(1)),
        ({"nproc_per_node": "8", "standalone": "yes"}, LauncherOptions(8)),
        ({"nproc_per_node": "gpu"}, LauncherOptions(None)),
        ({"max_restarts": "3"}, LauncherOptions(1, restarts=3)),
        (
            {"nnodes": "2", "rdzv_endpoint": "node0:29400", "rdzv_id": "mine", "rdzv_conf": "join_timeout=60"},
            LauncherOptions(1, 2, 0, "c10d", "node0:29400", "mine", {"join_timeout": "60"}),
        ),
        (
            {"nnodes": "2", "master_addr": "node0", "node_rank": "1", "nproc_per_node": "4"},
            LauncherOptions(4, 2, 1, "static", "node0:29500", "rlpheads"),
        ),
    ],
)
def test_options_as_torchrun_names_them(monkeypatch, given, expected):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert read_launcher_options(ABSENT | given) == expected


def test_nodes_of_a_slurm_job_meet_under_its_number(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert read_launcher_options(ABSENT | {"nnodes": "2", "rdzv_endpoint": "node0:1"}).job == "4711"


@pytest.mark.parametrize(("given", "one_process"), [({}, True), ({"nproc_per_node": "2"}, False)])
def test_one_rank_needs_no_launcher(given, one_process):
    assert read_launcher_options(ABSENT | given).one_process == one_process


@pytest.mark.wrong("launcher")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"nproc_per_node": "0"}, "--nproc-per-node: got '0'; allowed: a whole number from 1, or gpu"),
        ({"nproc_per_node": "two"}, "--nproc-per-node: got 'two'; allowed: a whole number from 1, or gpu"),
        ({"nproc_per_node": "9" * 5000}, "--nproc-per-node: got '9999"),
        ({"nnodes": "-1"}, "--nnodes: got '-1'; allowed: a whole number from 1"),
        (
            {"nnodes": "2"},
            "--nnodes: got 2, and not where the nodes meet; give each of them --rdzv-endpoint HOST:29500",
        ),
        ({"nnodes": "2", "standalone": "yes"}, "--nnodes: got 2; allowed: 1 with --standalone"),
        ({"nnodes": "2", "master_addr": "a"}, "--node-rank: not given; allowed with --master-addr: the number of this"),
        (
            {"nnodes": "2", "master_addr": "a", "node_rank": "2"},
            "--node-rank: got '2'; allowed: a whole number from 0 to 1",
        ),
        (
            {"nnodes": "2", "master_addr": "a", "node_rank": "0", "master_port": "65536"},
            "--master-port: got '65536'; allowed: a whole number from 1 to 65535",
        ),
        (
            {"nnodes": "2", "rdzv_endpoint": "a:1", "rdzv_conf": "fast"},
            "--rdzv-conf: got 'fast'; allowed: KEY=VALUE pairs with commas between them",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_options_that_cannot_be_meant(given, expected):
    with pytest.raises(ConfigError) as caught:
        read_launcher_options(ABSENT | given)
    assert str(caught.value).startswith(expected)
