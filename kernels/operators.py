"""The package's own operators: opaque to torch.compile and to whatever else watches operators, else plain calls.

Registrations of torch.library.custom_op cost twice as much a call as these, and a dispatch from Python to Python as much again,
which is felt at few labels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from inspect import Parameter as SignatureParameter
from inspect import Signature
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.nn import Parameter

_LIBRARY = torch.library.Library("rlpheads", "FRAGMENT")
_PLAIN = {Tensor, Parameter}
_INERT = {bool, int, float, str, type(None), torch.dtype}
_PROFILER = torch.autograd.profiler

Arguments = TypeVar("Arguments", bound=tuple[Any, ...])
Result = TypeVar("Result")

IMPLEMENTATIONS: dict[str, Any] = {}
"""What each operator calls."""


def register_operator(name: str, schema: str, function: Any, shape: Any) -> Callable[..., Any]:
    """Define an operator, and return what calls it; no derivative of it is recorded.

    Args:
        name: without the namespace `rlpheads`.
        schema: arguments and results in torch's words, "Tensor a, int b) -> Tensor".
        function: computes the results; it is called without the operator where nothing watches.
        shape: makes empty tensors like them, for fake ones.
    """
    operator = _define(name, schema, function, shape)

    def call(*arguments: Any) -> Any:
        if not _is_watched(arguments):
            return function(*arguments)
        with torch.no_grad():
            return operator(*arguments)

    return call


def register_named_operator(
    name: str,
    function: Callable[[Arguments], Result],
    shape: Callable[[Arguments], Result],
    *,
    mutated: Sequence[str] = (),
) -> Callable[[Arguments], Result]:
    """Define an operator whose arguments are the members of a named tuple, and return what calls it with one.

    Members may be named tuples themselves: those that functions hand one another are an operator's arguments, too.

    Args:
        name: as for `register_operator`, like `shape`.
        function: computes the results of a named tuple; the schema is made of its annotations.
        shape: takes the same.
        mutated: the members that it changes, whose versions are raised, so that autograd knows.
    """
    hints = get_type_hints(function)
    result = hints.pop("return")
    (kind,) = hints.values()

    def of_members(compute: Callable[[Arguments], Result]) -> Callable[..., Result]:
        return lambda *members: compute(_nested(kind, iter(members)))

    operator = _define(name, _schema(kind, result, mutated), of_members(function), of_members(shape))
    places = [place for place, (member, _) in enumerate(_members(kind)) if member in mutated]

    def call(given: Arguments) -> Result:
        members = flat(given)
        found: Result = operator(*members) if _is_watched(members) else function(given)
        for place in places:
            torch.autograd.graph.increment_version([] if members[place] is None else members[place])
        return found

    return call


def _define(name: str, schema: str, function: Any, shape: Any) -> Any:
    """Define an operator; see `register_operator`."""
    _LIBRARY.define(f"{name}({schema}")
    _LIBRARY.impl(name, lambda *given: function(*map(_in_memory, given)), "CompositeExplicitAutograd")
    torch.library.register_fake(f"rlpheads::{name}", shape, lib=_LIBRARY)
    IMPLEMENTATIONS[f"rlpheads::{name}"] = function
    return getattr(torch.ops.rlpheads, name).default


@cache
def _members(kind: Any) -> tuple[tuple[str, Any], ...]:
    """Names and types of a named tuple's members, those of nested ones in their place."""
    hints = get_type_hints(kind)
    found: list[tuple[str, Any]] = []
    for name in kind._fields:
        found += _members(hints[name]) if hasattr(hints[name], "_fields") else [(name, hints[name])]
    return tuple(found)


def flat(given: Iterable[Any]) -> list[Any]:
    """The members, those of nested named tuples in their place."""
    members: list[Any] = []
    for member in given:
        is_named = isinstance(member, tuple) and hasattr(
            member, "_fields"
        )  # of a symbolic size dynamo cannot ask the latter
        members += flat(member) if is_named else [member]
    return members


def _nested(kind: Any, members: Iterator[Any]) -> Any:
    """Undo `flat`."""
    hints = get_type_hints(kind)
    kinds = [hints[name] for name in kind._fields]
    return kind._make(_nested(each, members) if hasattr(each, "_fields") else next(members) for each in kinds)


def _schema(kind: Any, result: Any, mutated: Sequence[str]) -> str:
    """Return what `register_operator` takes, of the members of a named tuple."""

    def prototype() -> None:
        """Has the members as its parameters."""

    place = SignatureParameter.POSITIONAL_OR_KEYWORD
    parameters = [SignatureParameter(name, place, annotation=annotation) for name, annotation in _members(kind)]
    prototype.__signature__ = Signature(parameters, return_annotation=result)  # type: ignore[attr-defined]
    return torch.library.infer_schema(prototype, mutates_args=mutated).removeprefix("(")


def _in_memory(argument: Any) -> Any:
    """An argument whose memory holds its numbers; those that have a negative bit, or are zeros without memory, are written."""
    if isinstance(argument, (list, tuple)):
        return [_in_memory(each) for each in argument]
    if not isinstance(argument, Tensor):
        return argument
    if argument._is_zerotensor():
        return argument.new_zeros(argument.shape)
    return argument.resolve_neg()


def _is_watched(arguments: Iterable[Any]) -> bool:
    """Whether a compiler, a mode (FakeTensorMode, …), a transform, a profiler or a subclass of a tensor must see it.

    So must the dispatcher tensors whose memory does not hold their numbers.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or _PROFILER._is_profiler_enabled
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return True
    tensors: list[Any] = []
    for argument in arguments:
        kind = type(argument)
        if kind is list or kind is tuple:
            tensors += argument
        elif kind not in _INERT:
            tensors.append(argument)
    if not set(map(type, tensors)) <= _PLAIN:  # which spares a look at each
        tensors = [each for each in tensors if type(each) not in _INERT and isinstance(each, Tensor)]
        if not set(map(type, tensors)) <= _PLAIN:
            return True
    return any(map(Tensor.is_neg, tensors)) or any(map(Tensor._is_zerotensor, tensors))
