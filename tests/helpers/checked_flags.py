"""Check the settings of a run as its start does, from flags over the digits' configuration."""

from __future__ import annotations

import pytest
from wrong_settings import DIGITS

from rlpheads.engine.checks.checks import check_config
from rlpheads.engine.config.command_line import ConfigError, parse_config


def complaint(*flags: str, world_size: int = 1) -> str:
    """The message with which a start on `world_size` ranks is refused."""
    config = parse_config([*DIGITS, *flags])
    with pytest.raises(ConfigError) as caught:
        check_config(config, world_size)
    return str(caught.value)


def accept(*flags: str, world_size: int = 1) -> None:
    """Start as far as the checks go."""
    check_config(parse_config([*DIGITS, *flags]), world_size)
