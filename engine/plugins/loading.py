"""Modules that a run names in `plugins`: imported when it starts, and looked through for callbacks and a data set."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, TypeAlias

from rlpheads.engine.config.data import PLUGIN_DATASET
from rlpheads.engine.config.errors import ConfigError, nearest, show_value
from rlpheads.engine.plugins.callback import EVENTS, Callback
from rlpheads.loaders.sources.datasets import ImageSource

DatasetOpener: TypeAlias = Callable[[str | None, int], tuple[ImageSource, ImageSource]]
"""`open_images(root, seed)` of a plug-in: the training and the held-out images; `seed` keys a split, where there is one."""


@dataclass(frozen=True)
class Plugins:
    """What the plug-ins of a run offer.

    Attributes:
        callbacks: in the order in which they are named.
        openers: modules with a data set, and what opens it.
    """

    callbacks: tuple[Callback, ...] = ()
    openers: tuple[tuple[str, DatasetOpener], ...] = ()

    def open_images(self, root: str | None, seed: int) -> tuple[ImageSource, ImageSource]:
        """Open the data set that a plug-in offers; both splits.

        Raises:
            ConfigError: none does, or several do.
        """
        if len(self.openers) != 1:
            offering = " and ".join(name for name, _ in self.openers) or "no module of plugins"
            raise ConfigError(
                f"data.dataset: got {PLUGIN_DATASET!r}, for which one module of plugins has open_images(root, seed); "
                f"{offering} {'have' if self.openers else 'has'}"
            )
        return self.openers[0][1](root, seed)


def load_plugins(names: Sequence[str]) -> Plugins:
    """Import the modules of these names, each once in a process, and return what they offer.

    Models and optimizers are registered with timm by the import itself (`timm.models.register_model`,
    `timm.optim._optim_factory.default_registry`).

    Raises:
        ConfigError: one cannot be imported, or offers what cannot be used; the message says which and why.
    """
    return _load(tuple(names))


@functools.cache
def _load(names: tuple[str, ...]) -> Plugins:
    callbacks: list[Callback] = []
    openers: list[tuple[str, DatasetOpener]] = []
    for name in names:
        module = _import(name)
        callbacks += _callbacks_of(name, module)
        if (opener := getattr(module, "open_images", None)) is not None:
            if not callable(opener):
                raise ConfigError(
                    f"plugins: {name}.open_images is {type(opener).__name__}; allowed: a function of (root, seed)"
                )
            openers.append((name, opener))
    return Plugins(tuple(callbacks), tuple(openers))


def _import(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"plugins: got {show_value(name)}; allowed: names of modules, such as my_package.my_module")
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(
                f"plugins: there is no module {error.name}; install the package, or name the folder that it lies in in the "
                "environment variable PYTHONPATH"
            ) from error
        raise ConfigError(f"plugins: {name} imports {error.name}, which is not installed") from error
    except Exception as error:  # whatever a stranger's module raises
        raise ConfigError(
            f"plugins: {name} cannot be imported: {_where(error)}{type(error).__name__}: {error}"
        ) from error


def _where(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: "
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}: "


def _callbacks_of(name: str, module: ModuleType) -> list[Callback]:
    found: Any = getattr(module, "callbacks", [])
    if not isinstance(found, (list, tuple)):
        raise ConfigError(f"plugins: {name}.callbacks is {type(found).__name__}; allowed: a list of Callback objects")
    for each in found:
        if not isinstance(each, Callback):
            kind = f"the class {each.__name__}" if isinstance(each, type) else type(each).__name__
            raise ConfigError(f"plugins: {name}.callbacks holds {kind}; allowed: objects of subclasses of Callback")
        _check_events(name, type(each))
    return list(found)


def _check_events(name: str, kind: type[Callback]) -> None:
    """Refuse a public method that is nearly the name of an event: it would never be called."""
    for method in vars(kind):
        close = nearest(method, EVENTS)
        if not method.startswith("_") and method not in EVENTS and close is not None:
            raise ConfigError(
                f"plugins: {name}.{kind.__name__}.{method} is no event; allowed: {', '.join(EVENTS)} (nearest: {close})"
            )
