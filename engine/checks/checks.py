"""All checks of a run's settings, before any process group is made or any image is listed.

The checks yield their errors in groups, from those that need nothing to those that build the model. A run stops at the first
error (`check_config`), so that a wrong number is reported before torch is imported; `find_errors` returns all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from rlpheads.engine.checks.settings import log_errors, settings_errors
from rlpheads.engine.checks.workers import worker_errors
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.ranges import range_errors
from rlpheads.engine.config.schema import Config

if TYPE_CHECKING:
    from rlpheads.engine.model.plan import ModelPlan


def check_config(config: Config, world_size: int) -> ModelPlan:
    """Return the plan of the model that `config` describes, if all of it can be run on `world_size` ranks.

    Data and process groups are not looked at, but for the number of classes. The random numbers of the process stay as
    they were.

    Raises:
        ConfigError: the first problem found: the key, what was given, what is allowed.
    """
    start = _Start(config, world_size)
    for group in _GROUPS:
        for error in group.errors(start):
            raise error
    return start.plan


def find_errors(config: Config, world_size: int) -> dict[str, tuple[ConfigError, ...] | None]:
    """Return every error of `config`, by the name of the group of checks that found it, in the order of the checks.

    None stands for a group that was left out, since one that must hold before it has errors.
    """
    start = _Start(config, world_size)
    found: dict[str, tuple[ConfigError, ...] | None] = {}
    for group in _GROUPS:
        is_open = all(found[needed] == () for needed in group.needs)
        found[group.name] = tuple(group.errors(start)) if is_open else None
    return found


class _Start:
    """A run that is about to start: its settings, and what checks find out about them, each once and when it is needed."""

    def __init__(self, config: Config, world_size: int):
        self.config = config
        self.world_size = world_size

    @cached_property
    def num_classes(self) -> int:
        """Number of classes of the images; see `count_classes`. Raises ConfigError."""
        from rlpheads.engine.checks.model import count_model_classes

        return count_model_classes(self.config.data, self.config.plugins)

    @cached_property
    def plan(self) -> ModelPlan:
        """The plan of the model; see `make_plan`. Raises ConfigError."""
        from rlpheads.engine.checks.model import make_plan

        return make_plan(self.config, self.num_classes)


class _Group(NamedTuple):
    """Checks of one concern, and the groups that must hold before they make sense."""

    name: str
    errors: Callable[[_Start], Iterator[ConfigError]]
    needs: tuple[str, ...] = ()


def _ranges(start: _Start) -> Iterator[ConfigError]:
    return range_errors(start.config)


def _plugins(start: _Start) -> Iterator[ConfigError]:
    if start.config.plugins:
        from rlpheads.engine.plugins.loading import load_plugins  # imports torch

        try:
            load_plugins(start.config.plugins)
        except ConfigError as error:
            yield error


def _settings(start: _Start) -> Iterator[ConfigError]:
    return settings_errors(start.config, start.world_size)


def _workers(start: _Start) -> Iterator[ConfigError]:
    return worker_errors(start.config, start.world_size)


def _device(start: _Start) -> Iterator[ConfigError]:
    from rlpheads.engine.checks.device import dali_errors, device_errors  # import torch

    yield from device_errors(start.config)
    yield from dali_errors(start.config)


def _log(start: _Start) -> Iterator[ConfigError]:
    return log_errors(start.config.log)


def _model(start: _Start) -> Iterator[ConfigError]:
    from rlpheads.engine.checks.model import model_errors, name_errors  # import torch and timm

    if wrong := list(name_errors(start.config.model)):
        yield from wrong
        return
    try:
        plan = start.plan
    except ConfigError as error:
        yield error
        return
    yield from model_errors(start.config, plan, start.world_size)


def _optimizers(start: _Start) -> Iterator[ConfigError]:
    from rlpheads.engine.checks.model import optimizer_errors

    return optimizer_errors(start.config, start.world_size)


_GROUPS = (
    _Group("ranges", _ranges),
    _Group("settings", _settings, needs=("ranges",)),
    _Group("plugins", _plugins, needs=("ranges",)),
    _Group("workers", _workers, needs=("ranges",)),
    _Group("device", _device),
    _Group("log", _log),
    _Group("model", _model, needs=("settings", "plugins")),
    _Group("optimizers", _optimizers, needs=("settings", "plugins")),
)
