"""Each launch of a compiled kernel against Triton's interpreter, which runs the same source on the same arguments.

The interpreter knows nothing of threads, shared memory or PTX. It gets 16-bit tensors widened to float32, so that what the
kernel must round is known exactly, and in a process of its own, as Triton decides at its import whether it interprets.
"""

import importlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton_interpreter import _begin

from rlpheads.kernels.tools.ptx.launch import Executor

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Noise allowed beside the rounding: of each number, and of the root mean square of its tensor."""
NEAR_ZERO = 2.0**-23
"""Noise of what is the difference of two numbers near 1, such as the shift of a flat row: its first logit and a logarithm."""
INTERPRETED = {"EMULATED": True, "LABELS": 256}
"""Compile-time values for the interpreter, whose time is by the operation: how many labels a loop takes changes nothing."""
OPERANDS = {"update_tiles_kernel": ("exps", "scaled"), "": ("features", "weight")}
"""What a kernel multiplies as matrices; "": any other kernel."""
DIGITS = {torch.bfloat16: 8, torch.float16: 11}
SMALLEST = {torch.bfloat16: -134, torch.float16: -25}
"""Binary exponent of half the smallest subnormal."""


@dataclass(frozen=True)
class View:
    """A tensor, or a tensor descriptor, among storages that others share."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    box: tuple[int, ...] = ()


class Storages:
    """Memory behind the arguments of a launch, each once."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._places: dict[int, int] = {}
        self.flat: list[Tensor] = []
        self.arguments = {name: self._describe(argument) for name, argument in arguments.items()}

    def _describe(self, argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(map(self._describe, argument))
        if hasattr(argument, "block_shape"):
            base = self._describe(argument.base)
            return View(base.storage, base.offset, base.shape, base.stride, tuple(argument.block_shape))
        if not isinstance(argument, Tensor):
            return argument
        storage = argument.untyped_storage()
        place = self._places.setdefault(storage.data_ptr() if storage.size() else -len(self.flat), len(self.flat))
        if place == len(self.flat):
            self.flat.append(torch.empty(0, dtype=argument.dtype).set_(storage))  # type: ignore[call-overload]
        return View(place, argument.storage_offset(), tuple(argument.shape), tuple(argument.stride()))

    def widened(self) -> list[np.ndarray]:
        """Copies, of 16-bit floats in float32."""
        return [(flat.float() if flat.dtype in DIGITS else flat.clone()).numpy() for flat in self.flat]


def interpret(
    module: str, name: str, arguments: dict[str, Any], flat: list[np.ndarray], grid: tuple[int, ...]
) -> list[np.ndarray]:
    """In the interpreter's process: run one launch and return what the storages then hold."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    storages = [torch.from_numpy(array) for array in flat]

    def build(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(map(build, argument))
        if not isinstance(argument, View):
            return argument
        tensor = storages[argument.storage].as_strided(argument.shape, argument.stride, argument.offset)
        return TensorDescriptor.from_tensor(tensor, list(argument.box)) if argument.box else tensor

    kernel = getattr(importlib.import_module(module), name)
    kernel[grid](**{key: build(argument) for key, argument in arguments.items()})
    return flat


@cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), _begin)


def expected(kernel: Any, arguments: dict[str, Any], grid: tuple[int, ...]) -> list[np.ndarray]:
    """What each storage of a launch must hold after it, unrounded."""
    storages = Storages(arguments)
    flat = storages.widened()
    whole = {}
    for name in OPERANDS.get(kernel.__name__, OPERANDS[""]) if arguments.get("PRECISION") == "tf32" else ():
        place = storages.arguments[name].storage
        if storages.flat[place].dtype == torch.float32:
            whole[place] = flat[place]
            flat[place] = (flat[place].view(np.int32) & -0x2000).view(np.float32)  # products ignore the lower 13 bits
    arguments = storages.arguments | {name: value for name, value in INTERPRETED.items() if name in kernel.arg_names}
    job = _process().submit(interpret, kernel.__module__, kernel.__name__, arguments, flat, grid)
    try:
        found: list[np.ndarray] = job.result()
    except BrokenProcessPool:  # the interpreter checks no address
        _process.cache_clear()
        raise
    return [whole.get(place, array) for place, array in enumerate(found)]


def complaint(storages: Storages, wanted: list[np.ndarray]) -> str | None:
    """The first storage that does not hold what it must, or None."""
    for place, (flat, exact) in enumerate(zip(storages.flat, wanted, strict=True)):
        wrong = differs(flat, torch.from_numpy(exact))
        if wrong.any():
            name = next(key for key, view in storages.arguments.items() if place in _storages_of(view))
            where = int(wrong.nonzero()[0])
            return f"{name}: {int(wrong.sum())} of {len(flat)} wrong, {flat[where]} for {exact[where]} at {where}"
    return None


def differs(found: Tensor, exact: Tensor) -> Tensor:
    """Which numbers are further off than half a unit in the last place and noise."""
    if not found.is_floating_point():
        return found != exact
    value, truth = found.double(), exact.double()
    size = truth.abs()
    rms = size[truth.isfinite()].square().mean().sqrt().nan_to_num(0.0)
    allowed = RELATIVE * size + ABSOLUTE * rms + NEAR_ZERO
    if found.dtype in DIGITS:
        _, exponent = torch.frexp(truth)
        half = torch.exp2((exponent - DIGITS[found.dtype] - 1).double().clamp(min=SMALLEST[found.dtype]))
        allowed = half * 1.001 + 5e-5 * size + ABSOLUTE * rms
        truth = torch.where(size > torch.finfo(found.dtype).max, exact.to(found.dtype).double(), truth)
    same = (value == truth) | (value.isnan() & truth.isnan())
    return ~same & ~((value - truth).abs() <= allowed)


def _storages_of(argument: Any) -> set[int]:
    if isinstance(argument, tuple):
        return set().union(*map(_storages_of, argument))
    return {argument.storage} if isinstance(argument, View) else set()


@dataclass
class TwinExecutor(Executor):
    """Compares every launch with the interpreter's."""

    def run(self, kernel: Any, *arguments: Any, grid: tuple[int, ...], **options: Any) -> None:
        named = by_name(kernel, arguments, options)
        wanted = expected(kernel, named, grid)
        super().run(kernel, *arguments, grid=grid, **options)
        wrong = complaint(Storages(named), wanted)
        assert wrong is None, f"{kernel.__name__}: {wrong}"


def by_name(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a launch, options of the compiler left out."""
    named = dict(zip(kernel.arg_names, arguments, strict=False))
    return named | {name: value for name, value in options.items() if name in kernel.arg_names}
