"""torch's compiler loaded when something is compiled, and not because something is marked as not to be.

`torch._dynamo` takes a third of the time that torch and timm take to load. torchvision loads it to ask a question that it never
puts here, timm to mark functions and to set a limit, torch's optimizers to mark theirs: none of it means anything until
something is compiled. Until then a stand-in answers, which hands over to the real package when it is asked for more.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

_PACKAGE = "torch._dynamo"
_UTILS = f"{_PACKAGE}.utils"


def defer() -> None:
    """Have a stand-in take the place of torch's compiler, unless it is loaded."""
    import torch  # noqa: F401 - the stand-in is for those who come after it

    if _PACKAGE not in sys.modules:
        sys.modules[_PACKAGE] = _StandIn()
        sys.modules[_UTILS] = _Utils()
        sys.meta_path.insert(0, _Parts())


def is_deferred() -> bool:
    """Whether the stand-in is in place."""
    return isinstance(sys.modules.get(_PACKAGE), _StandIn)


class _StandIn(ModuleType):
    """What can be asked of the compiler without it; any other attribute is the real package's, which is loaded for it."""

    def __init__(self) -> None:
        super().__init__(_PACKAGE)
        self.__path__: list[str] = []
        self.disable = _disable
        self.graph_break = _graph_break
        self.config = _Settings()
        self.trace_rules = SimpleNamespace(clear_lru_cache=_clear_nothing)  # asked by a process group that is made

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by those who look through all modules
            raise AttributeError(name)
        return getattr(_load(), name)


class _Settings:
    """Settings that are kept until there is a compiler to have them; one that is read is the compiler's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_load().config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if is_deferred():
            super().__setattr__(name, value)
        else:  # of who has held them since
            setattr(_load().config, name, value)


class _Utils(ModuleType):
    """The one function of the compiler's utilities that torchvision names."""

    def __init__(self) -> None:
        super().__init__(_UTILS)

    @staticmethod
    def is_compile_supported(device_type: str) -> bool:
        """As the function of this name, which is loaded when it is called."""
        return bool(_load().utils.is_compile_supported(device_type))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_load().utils, name)


def _graph_break(msg: str = "") -> None:
    """Break the graph that is being traced: before the compiler is loaded there is none."""


def _clear_nothing() -> None:
    """Clear what is known of traced functions: before the compiler is loaded that is nothing."""


def _disable(
    function: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
) -> Callable[..., Any] | functools.partial[Any]:
    """Mark a function as not to be compiled: it is called as it is, and as the compiler wraps it once there is one."""
    if function is None:
        return functools.partial(_disable, recursive=recursive, **options)
    if not isinstance(function, (FunctionType, MethodType)):
        return _load().disable(function, recursive, **options)
    wrapped: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal wrapped
        if wrapped is None:
            if is_deferred():
                return function(*arguments, **named)
            wrapped = _load().disable(function, recursive, **options)
        return wrapped(*arguments, **named)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # as on what the compiler makes of it
    call._torchdynamo_disable_msg = options.get("reason")  # type: ignore[attr-defined]
    call._torchdynamo_disable_recursive = recursive  # type: ignore[attr-defined]
    call._torchdynamo_orig_callable = function  # type: ignore[attr-defined]
    call._torchdynamo_wrapper_id = id(call)  # type: ignore[attr-defined]
    return call


def _load() -> Any:
    """Return the compiler, with the settings that its stand-in was given."""
    stand_in = sys.modules.get(_PACKAGE)
    if not isinstance(stand_in, _StandIn):
        return import_module(_PACKAGE)
    given = vars(stand_in.config)
    for name in ("disable", "graph_break", "config", "trace_rules"):
        delattr(stand_in, name)  # who holds the stand-in gets the compiler's from now on
    del sys.modules[_PACKAGE], sys.modules[_UTILS]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Parts)]
    compiler = import_module(_PACKAGE)
    for name, value in given.items():
        setattr(compiler.config, name, value)
    return compiler


class _Parts(MetaPathFinder):
    """Finds any module of the compiler, by loading all of it."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """Return how to get a module of the compiler; None for any other module."""
        del path, target
        if not name.startswith(f"{_PACKAGE}."):
            return None
        _load()
        return ModuleSpec(name, _Loaded(import_module(name)))


class _Loaded(Loader):
    """Loads a module that is loaded."""

    def __init__(self, module: ModuleType):
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module."""
        del spec
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing: it did when it was loaded."""
        module.__spec__ = self._spec
