"""The package's own operators: opaque to torch.compile and to whatever else watches operators, else plain calls.

Registrations of torch.library.custom_op cost twice as much a call as these, and a dispatch from Python to Python as much again,
which is felt at few labels.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_LIBRARY = torch.library.Library("rlpheads", "FRAGMENT")
_PLAIN = {Tensor, Parameter, type(None)}
_PROFILER = torch.autograd.profiler

IMPLEMENTATIONS: dict[str, Any] = {}
"""What each operator calls."""


def register_operator(name: str, schema: str, function: Any, shape: Any) -> Callable[..., Any]:
    """Define an operator, and return what calls it.

    Args:
        name: without the namespace `rlpheads`.
        schema: arguments and results in torch's words, "Tensor a, int b) -> Tensor".
        function: computes the results; it is called without the operator where nothing watches.
        shape: makes empty tensors like them, for fake ones.
    """
    _LIBRARY.define(f"{name}({schema}")
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rlpheads::{name}", shape, lib=_LIBRARY)
    IMPLEMENTATIONS[f"rlpheads::{name}"] = function
    operator = getattr(torch.ops.rlpheads, name).default

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or _is_watched(arguments):
            return operator(*arguments)
        return function(*arguments)

    return call


def _is_watched(arguments: Iterable[Any]) -> bool:
    """Whether a mode (FakeTensorMode, …), a function transform, a profiler or a subclass of a tensor must see the operator."""
    if (
        torch._C._len_torch_dispatch_stack()
        or _PROFILER._is_profiler_enabled
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return True
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            if not _PLAIN.issuperset(map(type, argument)) and any(_is_subclass(each) for each in argument):
                return True
        elif _is_subclass(argument):
            return True
    return False


def _is_subclass(argument: Any) -> bool:
    return isinstance(argument, Tensor) and type(argument) not in _PLAIN
