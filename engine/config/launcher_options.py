"""How many ranks `rlpheads train` launches on how many nodes, and where the nodes meet: torchrun's options, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from rlpheads.engine.config.errors import ConfigError, refusal

LAUNCHER_OPTIONS = (
    *("nproc-per-node", "nnodes", "rdzv-endpoint", "rdzv-backend", "rdzv-id", "rdzv-conf"),
    *("master-addr", "master-port", "node-rank", "local-addr", "standalone", "max-restarts"),
)
"""Options of `rlpheads train` itself, by torchrun's names; torchrun takes them before engine/train.py."""

_PORT = 29500
_LARGEST = 100_000


@dataclass(frozen=True)
class LauncherOptions:
    """The ranks of this node, and the rendezvous of the nodes."""

    num_ranks: int | None
    """Ranks on this node; None: one for each GPU."""
    num_nodes: int = 1
    node_rank: int = 0
    backend: str = "c10d"
    endpoint: str = "localhost:0"
    """HOST:PORT of the first node; one node alone takes a free port."""
    job: str = ""
    """What tells this job's nodes from another's; empty: a name that nobody else has."""
    settings: dict[str, str] = field(default_factory=dict)
    """Of the rendezvous backend."""
    address: str | None = None
    """Of this node; None: its host name's."""
    restarts: int = 0
    """How often ranks that failed or were killed are started again."""

    @property
    def one_node(self) -> bool:
        """Whether all ranks are on this node."""
        return self.num_nodes == 1

    @property
    def one_process(self) -> bool:
        """Whether there is one rank in all, which nobody has to start again."""
        return self.one_node and self.num_ranks == 1 and self.restarts == 0


def read_launcher_options(given: Mapping[str, str | None]) -> LauncherOptions:
    """Return the options from the command line's words, by torchrun's names with underscores; None: not given.

    Raises:
        ConfigError: a number is none, or the nodes are not told where they meet.
    """
    per_node = given["nproc_per_node"]
    num_ranks = None if per_node == "gpu" else _number(given, "nproc_per_node", 1, least=1, also=", or gpu")
    num_nodes = _number(given, "nnodes", 1, least=1)
    if given["standalone"] and num_nodes > 1:
        raise refusal("--nnodes", num_nodes, "1 with --standalone")
    restarts = _number(given, "max_restarts", 0, least=0)
    if num_nodes == 1 and given["rdzv_endpoint"] is None:
        return LauncherOptions(num_ranks, restarts=restarts)
    return LauncherOptions(
        num_ranks,
        num_nodes,
        _number(given, "node_rank", 0, least=0, most=num_nodes - 1),
        *_meeting_place(given, num_nodes),
        given["rdzv_id"] or os.environ.get("SLURM_JOB_ID") or "rlpheads",
        _pairs(given["rdzv_conf"] or ""),
        given["local_addr"],
        restarts,
    )


def _meeting_place(given: Mapping[str, str | None], num_nodes: int) -> tuple[str, str]:
    """Return the rendezvous backend and its endpoint."""
    if endpoint := given["rdzv_endpoint"]:
        return given["rdzv_backend"] or "c10d", endpoint
    if address := given["master_addr"]:
        if given["node_rank"] is None:
            raise ConfigError("--node-rank: not given; allowed with --master-addr: the number of this node, from 0")
        return "static", f"{address}:{_number(given, 'master_port', _PORT, least=1, most=65535)}"
    raise ConfigError(
        f"--nnodes: got {num_nodes}, and not where the nodes meet; give each of them --rdzv-endpoint HOST:{_PORT}, where "
        "HOST is the first one"
    )


def _number(
    given: Mapping[str, str | None], name: str, default: int, *, least: int, most: int = _LARGEST, also: str = ""
) -> int:
    text = given[name]
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        up_to = "" if most == _LARGEST else f" to {most}"
        raise refusal(f"--{name.replace('_', '-')}", text, f"a whole number from {least}{up_to}{also}")
    return int(text)


def _pairs(text: str) -> dict[str, str]:
    pairs = dict(pair.partition("=")[::2] for pair in text.split(",") if pair)
    if not all(key and value for key, value in pairs.items()):
        raise refusal("--rdzv-conf", text, "KEY=VALUE pairs with commas between them")
    return pairs
