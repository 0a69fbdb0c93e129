"""The part of a configuration that says where else the figures of metrics.jsonl go."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from rlpheads.engine.config.errors import ConfigError


@dataclass(frozen=True)
class LogConfig:
    """Where the lines of metrics.jsonl go besides. Changes no result."""

    tensorboard: bool = True
    """Write the run folder's tensorboard/ for `tensorboard --logdir`."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases. offline: into the run folder's wandb/, to be sent by `wandb sync`; online: sent as the run goes."""
    wandb_project: str = "rlpheads"
    """W&B project of the run."""


def check_log(log: LogConfig) -> None:
    """Make sure that what `log` asks for is installed.

    Raises:
        ConfigError: W&B is asked for and is not there.
    """
    if log.wandb == "off":
        return
    spec = find_spec("wandb")
    if spec is None or spec.origin is None:  # no origin: a mere folder, such as the one in which W&B keeps its runs
        raise ConfigError(
            f"log.wandb: got {log.wandb!r}, which needs the package wandb, and it is not installed; allowed here: off. "
            "To have it: pip install 'rlpheads[wandb]'"
        )
