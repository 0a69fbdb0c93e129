"""Compile a kernel ahead of time, and read spills, registers, tensor-core instructions and the common path off its SASS."""

import heapq
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
SASS = re.compile(
    r"^\s*(?:(?P<label>\.L\w+):|/\*[0-9a-f]+\*/\s+(?P<guard>@\S+\s+)?(?P<name>[A-Z][\w.]*)(?P<rest>[^;]*);)", re.M
)
PTX = re.compile(r"^\s*(?:@\S+\s+)?(shfl\.sync|mov\.b|fma\.|add\.|mul\.)(\S*)\s+([^;]*);", re.M)


@dataclass(frozen=True)
class MachineCode:
    """Registers, shared memory, spills and tensor-core instructions of a compiled kernel."""

    registers: int
    shared_bytes: int
    spills: int
    """Instructions that read or write local memory."""
    tensor_instructions: dict[str, int]
    behind_products: int | None
    """Instructions of the shortest way from the products' loop to the end, which most tiles take; None without products."""
    fused_exchanges: int
    """Products added to what another thread sent, which a fused multiply-add rounds otherwise than that thread does."""


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
        behind_products=behind_products(code) if found else None,
        fused_exchanges=fused_exchanges(compiled.asm["ptx"]),
    )


def behind_products(code: str) -> int:
    """Instructions of the shortest way from behind the last product, and the loop that it stands in, to an EXIT.

    What only a warp takes whose threads have come apart (BRA.DIV) is no way.
    """
    instructions: list[re.Match[str]] = []
    labels: dict[str, int] = {}
    for match in SASS.finditer(code[code.index(".text.") :]):
        if match["label"]:
            labels[match["label"]] = len(instructions)
        else:
            instructions.append(match)
    targets = [_target(match, labels) for match in instructions]
    last = max(place for place, match in enumerate(instructions) if TENSOR_CORES.match(match["name"]))
    ends = [place for place, match in enumerate(instructions) if match["name"] == "EXIT" and not match["guard"]]
    end = next((place for place in ends if place > last), last)  # what lies behind was moved away, and leads back
    loops = [place for place, target in enumerate(targets[:end]) if target is not None and target <= last < place]
    queue, found = [(0, min(loops, default=last) + 1)], set()
    while queue:
        steps, place = heapq.heappop(queue)
        if place in found or place >= len(instructions):
            continue
        found.add(place)
        match, target = instructions[place], targets[place]
        if match["name"] == "EXIT" and not match["guard"]:
            return steps + 1
        ways = [place + 1] if match["guard"] or target is None else []
        for way in (*ways, target):
            if way is not None:
                heapq.heappush(queue, (steps + 1, way))
    raise ValueError("no way from the products to an EXIT")


def _target(match: re.Match[str], labels: dict[str, int]) -> int | None:
    """Where a branch goes; None of all that goes on to the next instruction."""
    where = re.search(r"`\((\.L\w+)\)", match["rest"])
    return (
        labels.get(where[1]) if where and match["name"].split(".")[0] == "BRA" and "DIV" not in match["name"] else None
    )


def fused_exchanges(ptx: str) -> int:
    """How many sums of a product and what a shfl.sync returned are fused, or may be: those without a rounding of their own.

    Where two threads exchange a·b and c·d, one would round a·b + (c·d) and the other c·d + (a·b), the brackets first.
    """
    sent: set[str] = set()
    products: set[str] = set()
    number = 0
    for name, modifiers, operands in PTX.findall(ptx):
        registers = re.findall(r"%\w+", operands)
        if name == "mov.b":
            targets = registers[:-1] if operands.startswith("{") else registers[:1]
            for group in (sent, products):
                group.update(targets if group & set(registers[len(targets) :]) else ())
        elif name == "shfl.sync":
            sent.add(registers[0])
        elif name == "mul." and not modifiers.startswith("rn"):
            products.add(registers[0])
        elif name == "fma.":
            number += bool(sent & set(registers[1:]))
        elif name == "add." and not modifiers.startswith("rn"):
            number += bool(sent & set(registers[1:]) and products & set(registers[1:]))
    return number


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout
