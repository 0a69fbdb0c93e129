"""Compile a kernel ahead of time, and read spills, registers and tensor-core instructions off its SASS."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rlpheads.kernels.tools.aot_kernels import Build, signature

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSOR_CORES = re.compile(r"\b(HMMA|HGMMA|UTC\w*MMA)\b")
LOCAL_MEMORY = re.compile(r"\b(LDL|STL)\b")
REGISTERS = re.compile(r"\bREG:(\d+)")


@dataclass(frozen=True)
class MachineCode:
    """Registers, shared memory, spills and tensor-core instructions of a compiled kernel."""

    registers: int
    shared_bytes: int
    spills: int
    """Instructions that read or write local memory."""
    tensor_instructions: dict[str, int]


def compile_build(build: Build) -> MachineCode:
    """Compile ahead of time and disassemble.

    Raises:
        FileNotFoundError: Triton's wheel has no disassembler.
    """
    types, values, alignments = signature(build)
    source = ASTSource(fn=build.kernel, signature=types, constexprs=values, attrs=alignments)
    compiled = triton.compile(source, target=GPUTarget("cuda", build.chip, 32), options=build.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        code = _run("nvdisasm", file.name)
        usage = _run("cuobjdump", "-res-usage", file.name)
    found = TENSOR_CORES.findall(code)
    return MachineCode(
        registers=int(REGISTERS.findall(usage)[-1]),
        shared_bytes=compiled.metadata.shared,
        spills=len(LOCAL_MEMORY.findall(code)),
        tensor_instructions={name: found.count(name) for name in sorted(set(found))},
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout
