"""PTX text into instructions (PTX ISA, 4 "Syntax", 5 "State Spaces, Types, and Variables", 6 "Instruction Operands")."""

import re
from dataclasses import dataclass
from typing import NamedTuple


class Register(NamedTuple):
    """A register, special register, parameter or shared variable by its name; `_` is a sink (6.2)."""

    name: str


class Literal(NamedTuple):
    """A constant: an integer, or 0f and the bits of a float32 (4.5)."""

    bits: int


class Group(NamedTuple):
    """A vector {a, b, …} or a pair d|p (6.4.3)."""

    parts: tuple["Operand", ...]


class Address(NamedTuple):
    """[base + offset], or [base, {coordinates}] of a tensor (6.4.1)."""

    base: "Operand"
    offset: int
    coordinates: tuple["Operand", ...] = ()


Operand = Register | Literal | Group | Address


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
    scopes = 0

    def rename(scope: re.Match[str]) -> str:
        nonlocal scopes
        scopes += 1
        inner = scope[1]
        for name in {first or second for first, second in _LOCAL.findall(inner)}:
            inner = re.sub(rf"(?<![%$\w]){name}\b", f"{name}.{scopes}x", inner)
        return inner

    return _SCOPE.sub(rename, body)


def _read(statement: str, program: Program) -> None:
    while label := _LABEL.match(statement):
        statement = statement[label.end() :]
        if statement.startswith(".branchtargets"):
            program.tables[label[1]] = [part.strip() for part in statement.removeprefix(".branchtargets").split(",")]
            return
        program.labels[label[1]] = len(program.code)
    if declared := _REGISTERS.match(statement):
        program.widths[declared[3]] = int(declared[2] or 1)
    elif statement and not statement.startswith("."):
        program.code.append(instruction(statement))


def instruction(statement: str) -> Instruction:
    """One statement without its semicolon."""
    guard = _GUARD.match(statement)
    opcode, _, rest = statement[guard.end() if guard else 0 :].partition(" ")
    name, *modifiers = re.split(r"\.", opcode)
    operands = tuple(map(_operand, _split(rest)))
    return Instruction(name, tuple(modifiers), operands, statement, guard and guard[2], bool(guard and guard[1]))


def _split(text: str) -> list[str]:
    """Parts between the commas that no bracket encloses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _operand(text: str) -> Operand:
    if text[0] == "{" or "|" in text:
        return Group(tuple(map(_operand, _split(text[1:-1]) if text[0] == "{" else text.split("|"))))
    if text[0] == "[":
        where, *rest = _split(text[1:-1])
        base, _, offset = where.partition("+")
        coordinates = _split(rest[0][1:-1]) if rest else ()
        return Address(_operand(base.strip()), int(offset or "0", 0), tuple(map(_operand, coordinates)))
    if text.startswith("0f"):
        return Literal(int(text[2:], 16))
    return Literal(int(text, 0)) if re.match(r"-?\d", text) else Register(text)
