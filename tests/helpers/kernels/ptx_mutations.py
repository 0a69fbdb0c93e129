"""Faults put into compiled kernels, to see whether executing them shows it: `python tests/helpers/kernels/ptx_mutations.py`.

A mutation changes one instruction of one kernel on one chip. It is detected if executing the loss raises a `KernelError`, or
if a value or gradient leaves the bound of the tests, in the late or in the early mode.
"""

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from ptx_cases import LIFTED, SHAPES, LossCase, cases, errors_in_bounds

from rlpheads.kernels.tools.ptx.checked_memory import KernelError

SEED, NUMBER = 16, 100
NEGATED = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}
BY_ONE = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt"}


@dataclass(frozen=True)
class Mutation:
    """One changed line of a kernel."""

    kind: str
    chip: int
    kernel: str
    line: int
    before: str
    after: str
    loss: LossCase
    text: str
    """The kernel without the change."""

    def apply(self, text: str) -> str:
        """Change this kernel, and no other."""
        if text != self.text:
            return text
        lines = text.split("\n")
        lines[self.line] = self.after
        return "\n".join(lines)


def _relax(match: re.Match[str]) -> str:
    return f"{match[1]}{int(match[2], 0) + 1}{match[3]}"


def _scale(match: re.Match[str]) -> str:
    return f"{match[1]}{int(match[2]) * 2}{match[3]}"


def _move(match: re.Match[str]) -> str:
    """By one element, or by a whole vector."""
    size = int(match[2]) // 8 * int(match[1] or 1)
    return (
        f"{match[0][: match.start(3) - match.start()]}{int(match[3]) + size}{match[0][match.end(3) - match.start() :]}"
    )


OPERATORS: list[tuple[str, str, str | Callable[[re.Match[str]], str]]] = [
    ("barrier", r"^bar\.sync.*", ""),
    ("wait", r"^(cp\.async\.wait_group\s+|wgmma\.wait_group\.sync\.aligned )(\w+)(;.*)", _relax),
    ("wait", r"^tcgen05\.wait::.*", ""),
    ("wait", r"^mbarrier\.try_wait\S+ (\w+), .*", r"setp.eq.b32 \1, 0, 0;"),
    ("fence", r"^(fence|wgmma\.fence).*", ""),
    ("expect_tx", r"(.*expect_tx.*, )(\d+)(;.*)", _scale),
    ("phase", r"^(mbarrier\.try_wait.*\], )(%r\d+)(;.*)", r"xor.b32 %r999999, \2, 1; \1%r999999\3"),
    ("predicate", r"^@(%p\d+) (.*)", r"@!\1 \2"),
    ("predicate", r"^@!(%p\d+) (.*)", r"@\1 \2"),
    ("mask", r"^setp\.(lt|le|gt|ge)\.(s32|s64|u32)(.*)", lambda match: f"setp.{BY_ONE[match[1]]}.{match[2]}{match[3]}"),
    ("mask", r"^selp\.(\w+)\s+([^,]+), ([^,]+), ([^,]+), (.*)", r"selp.\1 \2, \4, \3, \5"),
    ("offset", r".*(?:ld|st)\.(?:global|shared(?:::cta)?)(?:\.v(\d))?\.b(\d+).*\[ ?%\w+ ?\+ ?(\d+) ?\].*", _move),
    ("rounding", r"^cvt\.(?:rn|rna)\.(bf16x2|f16x2|bf16|tf32)\.f32(.*)", r"cvt.rz.\1.f32\2"),
]  # fmt: skip


def sites(text: str) -> Iterator[tuple[str, int, str, str]]:
    """Kind, line, and the line before and after, of each place where an operator applies."""
    for number, raw in enumerate(text.split("\n")):
        line = raw.split("//")[0].strip()
        for kind, pattern, change in OPERATORS:
            if match := re.fullmatch(pattern, line):
                after = change(match) if callable(change) else match.expand(change)
                yield kind, number, raw.strip(), after


class _Nothing(dict):  # type: ignore[type-arg]
    """Runs no block of any kernel."""

    def get(self, *_: object) -> int:  # type: ignore[override]
        return 0


def all_mutations() -> list[Mutation]:
    """Of every different kernel that the losses of `ptx_cases` launch on three chips, in a fixed order."""
    found: dict[tuple[int, str], LossCase] = {}
    for chip in (80, 90, 100):
        for loss in [*LIFTED, *cases(SHAPES[0])]:
            errors_in_bounds(
                loss, chip, limits=_Nothing(), change=lambda text, c=chip, x=loss: _keep(found, (c, text), x)
            )
    mutations = []
    for (chip, text), loss in found.items():
        name = re.search(r"\.entry (\w+)", text)[1]  # type: ignore[index]
        mutations += [Mutation(kind, chip, name, line, old, new, loss, text) for kind, line, old, new in sites(text)]
    return mutations


def _keep(found: dict[tuple[int, str], LossCase], key: tuple[int, str], loss: LossCase) -> str:
    found.setdefault(key, loss)
    return key[1]


def outcome(mutation: Mutation) -> str:
    """How it shows, or "survives"."""

    for late in (True, False):
        try:
            found, _ = errors_in_bounds(mutation.loss, mutation.chip, late=late, seed=0, change=mutation.apply)
        except KernelError as error:
            return str(error)
        except Exception as error:  # the executor refuses what no compiler writes
            return f"{type(error).__name__}: {error}"
        worst = max(found, key=lambda name: found[name] if found[name] == found[name] else float("inf"))
        if not found[worst] <= 1:
            return f"{worst} is {found[worst]:.1f} times its bound"
    return "survives"


def main() -> None:
    """Draw, run, print, and write one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--number", type=int, default=NUMBER)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything = all_mutations()
    drawn = random.Random(options.seed).sample(everything, options.number)
    print(
        len(everything), "sites", {kind: sum(m.kind == kind for m in everything) for kind, *_ in OPERATORS}, flush=True
    )
    survivors = 0
    for number, mutation in enumerate(drawn):
        start = time.perf_counter()
        result = outcome(mutation)
        survivors += result == "survives"
        where = f"{mutation.kind} sm_{mutation.chip} {mutation.kernel}:{mutation.line}"
        taken = f"{time.perf_counter() - start:.0f} s"
        print(number, where, "|", mutation.before[:100], "|", result[:140], taken, flush=True)
        if options.json:
            with options.json.open("a") as file:
                json.dump({**vars(mutation), "loss": str(mutation.loss), "text": "", "result": result}, file)
                file.write("\n")
    print(f"{len(drawn) - survivors} of {len(drawn)} detected")


if __name__ == "__main__":
    sys.exit(main())
