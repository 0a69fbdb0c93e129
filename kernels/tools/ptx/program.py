"""PTX text into instructions (PTX ISA, 4 "Syntax", 5 "State Spaces, Types, and Variables", 6 "Instruction Operands")."""

import re
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True)
class Address:
    """[base + offset], or [base, {coordinates}] of a tensor (6.4.1)."""

    base: "Operand"
    offset: int
    coordinates: "tuple[Operand, ...]"


Operand = str | int | tuple["Operand", ...] | Address
"""A register, parameter or shared variable by its name, `_` a sink (6.2); a constant, 0f… as its bits (4.5); a vector
{a, b, …} or a pair d|p (6.4.3); an address."""


@dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction: name.modifiers operands, under a predicate where it has one (9.3)."""

    name: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    text: str
    guard: str | None = None
    unless: bool = False
    """Execute where the guard is false."""


@dataclass(frozen=True)
class Program:
    """A kernel: sizes of its parameters in bytes, threads of a block, and its code."""

    name: str
    parameters: dict[str, int]
    num_threads: int
    code: list[Instruction]
    labels: dict[str, int]
    tables: dict[str, list[str]]
    """Targets of `brx.idx`."""
    widths: dict[str, int]
    """Bits of each register by its name without the number; 1 of predicates."""


_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)\s*\.reqntid\s+(\d+)[^{]*\{", re.S)
_PARAMETER = re.compile(r"\.param\s+(?:\.align \d+\s+)?\.[a-z](\d+)\s[^,]*?(\w+)(?:\[(\d+)\])?\s*(?:,|$)")
_NOISE = re.compile(r"//[^\n]*|^\s*\.(?:loc|file)\b[^\n]*", re.M)
_SCOPE = re.compile(r"^\{\s*\n(.*?)^\}", re.S | re.M)
_LOCAL = re.compile(r"^\s*(\w+):|\.reg\s+\.\w+\s+(\w+);", re.M)
_REGISTERS = re.compile(r"\.reg\s+\.([a-z]+)(\d*)\s+(%?[\w.]+)")
_LABEL = re.compile(r"([$\w.]+):(?!:)\s*")
_GUARD = re.compile(r"@(!?)([%\w.]+)\s+")
_OPERAND = re.compile(r"\[[^\]]*\]|\{[^}]*\}|[^\s,]+")
_ADDRESS = re.compile(r"\[\s*([^\s+,]+)\s*(?:\+\s*(\S+?))?\s*(?:,\s*(\{.*\})\s*)?\]")


def parse(text: str) -> Program:
    """Read the first kernel of a PTX file.

    Raises:
        ValueError: there is no kernel, or it does not say how many threads a block has.
    """
    text = _NOISE.sub("", text)
    entry = _ENTRY.search(text)
    if entry is None:
        raise ValueError("no .entry with .reqntid in this PTX")
    parameters = {name: int(bits) // 8 * int(times or 1) for bits, name, times in _PARAMETER.findall(entry[2])}
    program = Program(entry[1], parameters, int(entry[3]), [], {}, {}, {})
    body = _scoped(text[entry.end() :])
    end = re.search(r"^\}", body, re.M)
    for statement in body[: end.start() if end else None].split(";"):
        _read(" ".join(statement.split()), program)
    return program


def _scoped(body: str) -> str:
    """Give names declared in an inner { } (4.6 "Scoping") a suffix of their own, and drop its braces."""
    numbers = count(1)

    def rename(scope: re.Match[str]) -> str:
        inner, number = scope[1], next(numbers)
        for name in {first or second for first, second in _LOCAL.findall(inner)}:
            inner = re.sub(rf"(?<![%$\w]){name}\b", f"{name}.{number}x", inner)
        return inner

    return _SCOPE.sub(rename, body)


def _read(statement: str, program: Program) -> None:
    while label := _LABEL.match(statement):
        statement = statement[label.end() :]
        if statement.startswith(".branchtargets"):
            program.tables[label[1]] = _OPERAND.findall(statement.removeprefix(".branchtargets"))
            return
        program.labels[label[1]] = len(program.code)
    if declared := _REGISTERS.match(statement):
        program.widths[declared[3]] = int(declared[2] or 1)
    elif statement and not statement.startswith("."):
        program.code.append(_instruction(statement))


def _instruction(statement: str) -> Instruction:
    guard = _GUARD.match(statement)
    opcode, _, rest = statement[guard.end() if guard else 0 :].partition(" ")
    name, *modifiers = opcode.split(".")
    operands = tuple(map(_operand, _OPERAND.findall(rest)))
    return Instruction(name, tuple(modifiers), operands, statement, guard and guard[2], bool(guard and guard[1]))


def _operand(text: str) -> Operand:
    if text[0] == "{" or "|" in text:
        return tuple(map(_operand, _OPERAND.findall(text.strip("{}").replace("|", ","))))
    if address := _ADDRESS.fullmatch(text):
        return Address(_operand(address[1]), int(address[2] or "0", 0), parts(_operand(address[3] or "{}")))
    if text.startswith("0f"):
        return int(text[2:], 16)
    return int(text, 0) if re.match(r"-?\d", text) else text


def parts(operand: Operand) -> tuple[Operand, ...]:
    """The registers of a vector; one alone is a vector of one."""
    return operand if isinstance(operand, tuple) else (operand,)
