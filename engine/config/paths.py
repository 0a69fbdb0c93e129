"""Paths as users write them: `~` and environment variables are expanded, and what a run keeps of them is absolute."""

from __future__ import annotations

import os
from dataclasses import replace

from rlpheads.engine.config.errors import refusal
from rlpheads.engine.config.schema import Config

PATH_KEYS = ("run.dir", "data.root", "data.verified", "data.stage", "model.checkpoint")
"""Keys whose values are paths."""


def expand_path(key: str, text: str) -> str:
    """Return a path with its `~`, `~user`, `$NAME` and `${NAME}` replaced, as a shell does it.

    A shell leaves them alone in `--run.dir=~/x`, in quotes and in a file. A variable that is not set stays as it is
    behind the beginning of a path, where `$` may belong to a name.

    Raises:
        ConfigError: the path begins with a variable that is not set, or a home folder that nobody has.
    """
    expanded = os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111 (Path drops the ./ that may keep a ~ as it is)
    if expanded.startswith("$"):
        raise refusal(key, text, "a variable that is set (a folder of that very name: its absolute path)")
    if text.startswith("~") and expanded.startswith("~"):
        raise refusal(key, text, "a home folder that is known (a folder of that very name: its absolute path)")
    return expanded


def with_absolute_paths(config: Config) -> Config:
    """Return the settings with absolute paths of images and weights, so that they are found from any folder."""
    data, model = config.data, config.model
    return replace(
        config,
        data=replace(data, root=_absolute(data.root), verified=_absolute(data.verified), stage=_absolute(data.stage)),
        model=replace(model, checkpoint=_absolute(model.checkpoint)),
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)  # noqa: PTH100 (links stay; Path.resolve would follow them)
