"""Runs Triton kernels on CPU tensors as compiled for a chip: `with executed(90): random_label_loss(…, impl="triton")`."""

import importlib
import pkgutil
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature
from triton.tools.tensor_descriptor import TensorDescriptor

from rlpheads.kernels import gpu
from rlpheads.kernels.gpu import triton_loss
from rlpheads.kernels.tools.ptx.asynchronous_copies import TensorMap
from rlpheads.kernels.tools.ptx.block import Block, BlockIndex, BlockKind, KernelLaunch
from rlpheads.kernels.tools.ptx.global_memory import GlobalMemory
from rlpheads.kernels.tools.ptx.program import Program, parse
from rlpheads.kernels.tools.ptx.scheduler import Scheduler, check_supported

FIRST_HANDLE = 0x7E57_0000_0000
ASYNCHRONOUS = ("cp", "mbarrier", "wgmma", "tcgen05")


@dataclass(frozen=True)
class Compiled:
    """A kernel for a chip, as one set of arguments specialises it."""

    ptx: str
    shared_bytes: int
    types: dict[str, Any]
    """As Triton writes them: *bf16, i32, constexpr, …"""
    constants: dict[str, Any]
    boxes: list[dict[str, Any]]
    """Of tensor maps: block_size, elem_size and swizzle."""

    @cached_property
    def program(self) -> Program:
        """Read when it is first run."""
        return parse(self.ptx)


@dataclass
class Executor:
    """Stands where the GPU would: compiles what is launched, and executes it."""

    chip: int
    late: bool = True
    seed: int | None = None
    """Shuffles the order of the blocks."""
    kinds: Mapping[str, Callable[[dict[str, Any], tuple[int, int, int]], list[BlockKind]]] = field(default_factory=dict)
    """Of a kernel the kinds of its blocks, by arguments and grid: of each the first block is run, in a launch of its own. Of
    kernels that are not here all blocks are run."""
    launches: list[KernelLaunch] = field(default_factory=list)
    """What was executed."""
    compiled: dict[Any, Compiled] = field(default_factory=dict)
    _binders: dict[Any, Any] = field(default_factory=dict)

    def run(self, kernel: JITFunction, *arguments: Any, grid: tuple[int, ...], **options: Any) -> None:
        """Take the place of JITFunction.run."""
        compiled, values = self.compile(kernel, arguments, options)
        width, height, depth = (*grid, 1, 1)[:3]
        whole = width, height, depth
        find_kinds = self.kinds.get(compiled.program.name)
        named = dict(zip(kernel.arg_names, values, strict=True))
        for kind in [None] if find_kinds is None else find_kinds(named, whole):
            self.launches.append(replace(lay_out(compiled, values, whole, self.late), kind=kind))
            run_blocks(self.launches[-1], self.seed)

    def compile(
        self, kernel: JITFunction, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[Compiled, list[Any]]:
        """Specialise by the arguments as Triton does at a launch: those divisible by 16, those that are 1."""
        target = GPUTarget("cuda", self.chip, 32)
        if kernel not in self._binders:
            backend = make_backend(target)
            self._binders[kernel] = backend, create_function_from_signature(kernel.signature, kernel.params, backend)
        backend, bind = self._binders[kernel]
        options = options | {"debug": False, "instrumentation_mode": ""}
        bound, specialization, chosen = bind(*arguments, **options)
        key = kernel, str(specialization), str(chosen)
        if key not in self.compiled:
            parsed, *described = kernel._pack_args(backend, options, bound, specialization, chosen)
            self.compiled[key] = _compile_source(ASTSource(kernel, *described), target, parsed.__dict__)
        return self.compiled[key], list(bound.values())


def _compile_source(source: ASTSource, target: GPUTarget, options: dict[str, Any]) -> Compiled:
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.add_stages_inspection_hook = _without_assembler
        binary = triton.compile(source, target=target, options=options)
    constants = {source.fn.arg_names[path[0]]: value for path, value in source.constants.items() if len(path) == 1}
    boxes = binary.metadata.tensordesc_meta or []
    return Compiled(binary.asm["ptx"], binary.metadata.shared, source.signature, constants, boxes)


def _without_assembler(*backend_and_stages: Any) -> tuple[str, str]:
    """Triton's hook on its stages: ptxas would take a quarter of the time; returns a key of its own for the cache."""
    if backend_and_stages:
        backend_and_stages[1]["cubin"] = lambda *_: b""
    return "as far as PTX", ""


def lay_out(compiled: Compiled, arguments: list[Any], grid: tuple[int, int, int], late: bool) -> KernelLaunch:
    """Lay out the parameters: tuples one by one, compile-time values left out, a tensor map before shape and strides."""
    tensors: list[torch.Tensor] = []
    maps: dict[int, TensorMap] = {}
    numbers: list[int] = []

    def lay(kind: Any, value: Any) -> None:
        if kind == "constexpr":
            return
        if isinstance(kind, tuple):
            for part, item in zip(kind, value, strict=True):
                lay(part, item)
        elif isinstance(value, TensorDescriptor):
            box, handle = compiled.boxes[len(maps)], FIRST_HANDLE + 128 * len(maps)
            size, base = tuple(box["block_size"]), value.base
            shape, stride = tuple(value.shape), value.strides[0]
            maps[handle] = TensorMap(base.data_ptr(), shape, stride, box["elem_size"], size, box["swizzle"])
            tensors.append(base)
            numbers.extend((handle, *value.shape, *value.strides))
        elif isinstance(value, torch.Tensor):
            tensors.append(value)
            numbers.append(value.data_ptr())
        elif kind == "fp32":
            numbers.append(int(np.float32(value).view(np.uint32)))
        else:
            numbers.append(int(value))

    lay(tuple(compiled.types.values()), arguments)
    names = list(compiled.program.parameters)
    values = dict(zip(names, [*numbers, 0, 0], strict=True))  # two of scratch memory, which no kernel uses
    return KernelLaunch(compiled.program, values, maps, GlobalMemory(tensors), compiled.shared_bytes, grid, late)


TOGETHER = 32
"""Blocks that run at the same time, where nothing in the code is asynchronous: numpy's time is by the instruction."""


def run_blocks(launch: KernelLaunch, seed: int | None = None) -> None:
    """Run the blocks, one after another or some together; of a kind one, which stands for all of it.

    Raises:
        KernelError: a block does what it must not.
    """
    width, height, depth = launch.grid
    blocks: list[BlockIndex] = [(x, y, z) for z in range(depth) for y in range(height) for x in range(width)]
    if seed is not None:
        random.Random(seed).shuffle(blocks)
    launch.counts.grid = len(blocks)
    if launch.kind is not None:
        launch.counts.grid, blocks = len(launch.kind.blocks), launch.kind.blocks[:1]
    check_supported(launch.program)
    is_asynchronous = any(instruction.name in ASYNCHRONOUS for instruction in launch.program.code)
    number = 1 if is_asynchronous else TOGETHER
    with np.errstate(all="ignore"):
        for first in range(0, len(blocks), number):
            some = blocks[first : first + number]
            launch.counts.blocks += len(some)
            Scheduler(Block(launch, *some)).run()


@contextmanager
def executed(chip: int, kind: type[Executor] = Executor, **settings: Any) -> Iterator[Executor]:
    """Let every Triton kernel that is launched here run on the CPU as compiled for a chip; takes `Executor`'s settings."""
    for module in pkgutil.iter_modules(gpu.__path__):  # a kernel is compiled or interpreted as its module was imported
        importlib.import_module(f"{gpu.__name__}.{module.name}")
    executor = kind(chip, **settings)

    def run(kernel: JITFunction, *arguments: Any, warmup: bool, **options: Any) -> None:
        assert not warmup
        executor.run(kernel, *arguments, **options)

    with (
        patch.object(JITFunction, "run", run),
        patch("torch.cuda.get_device_capability", lambda *_: divmod(chip, 10)),
        patch("torch.cuda.get_device_name", lambda *_: f"sm_{chip} executed on a CPU"),
        patch.object(triton_loss, "INTERPRETS", True),  # the loss then takes CPU tensors
    ):
        yield executor
