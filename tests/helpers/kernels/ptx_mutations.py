"""Faults put into compiled kernels, to see whether executing them shows it: `python tests/helpers/kernels/ptx_mutations.py`.

A mutation changes one instruction of one kernel on one chip. It is detected if one of the kernel's launches raises a
`KernelError`, or does not write what Triton's interpreter writes, in the late or in the early mode. It is not run in launches
that never come to the instruction, nor in the early mode where the kernel has nothing asynchronous: there it would survive.
"""

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from ptx_scenes import NEVER, SURVIVES, Scene, variations
from ptx_twin import by_name
from ptx_works import works

from rlpheads.kernels.tools.ptx.launch import Executor, executed

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
    group: int
    """Place among `works` of the first that launch the kernel."""
    text: str = field(repr=False)
    """The kernel without the change."""

    def changed(self) -> str:
        """The kernel with the change."""
        lines = self.text.split("\n")
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


@dataclass
class Lister(Executor):
    """Compiles what is launched, and runs nothing."""

    def run(self, kernel: Any, *arguments: Any, grid: object, **options: Any) -> None:
        del grid
        self.compile(kernel, arguments, options)


class EnoughError(Exception):
    """A loss is given up, as what it was run for has been seen."""


@dataclass
class Recorder(Executor):
    """Lets the interpreter do what is launched, and keeps the first launches of some kernels."""

    wanted: frozenset[str] = frozenset()
    """Their texts."""
    most: int = 2
    """Launches of each that are kept."""
    scenes: dict[str, list[Scene]] = field(default_factory=dict)

    def run(self, kernel: Any, *arguments: Any, grid: tuple[int, ...], **options: Any) -> None:
        compiled, _ = self.compile(kernel, arguments, options)
        scene = Scene.of(kernel, compiled, by_name(kernel, arguments, options), grid)
        scene.skip()
        kept = self.scenes.setdefault(compiled.ptx, []) if compiled.ptx in self.wanted else None
        if kept is not None and len(kept) < self.most:
            kept.append(scene)
        if all(len(self.scenes.get(text, ())) == self.most for text in self.wanted):
            raise EnoughError


def scenes_of(chip: int, group: int, place: int, texts: frozenset[str]) -> dict[str, list[Scene]]:
    """Launches of kernels in one work, right without a change: the first two where it goes by slabs, else the first."""
    work = works(chip)[group][place]
    most = 1 + ("slabs=True" in work.name)
    with executed(chip, Recorder, wanted=texts, most=most) as recorder, suppress(EnoughError):
        work.launch()
    for scenes in recorder.scenes.values():
        for scene in scenes:
            wrong = scene.settle()
            assert wrong is None, f"sm_{chip} {work.name}: {wrong}"
    return recorder.scenes


def all_mutations() -> list[Mutation]:
    """Of every different kernel that `works` launches on three chips, in a fixed order."""
    mutations = []
    for chip in (80, 90, 100):
        found: dict[str, int] = {}
        for number, group in enumerate(works(chip)):
            for work in group:
                with executed(chip, Lister) as lister:
                    work.launch()
                for compiled in lister.compiled.values():
                    found.setdefault(compiled.ptx, number)
        for text, number in found.items():
            name = re.search(r"\.entry (\w+)", text)[1]  # type: ignore[index]
            mutations += [
                Mutation(kind, chip, name, line, old, new, number, text) for kind, line, old, new in sites(text)
            ]
    return mutations


def outcomes(mutations: Sequence[Mutation]) -> Iterator[tuple[Mutation, str]]:
    """How those of one chip and group show, or "survives", or "never executed"; each as soon as it is known.

    What shows in no launch of the works is tried in launches that are made for it (`ptx_scenes.variations`).
    """
    chip, group = mutations[0].chip, mutations[0].group
    left = dict.fromkeys(mutations, NEVER)
    met: dict[Mutation, list[Scene]] = {mutation: [] for mutation in mutations}
    for place in range(len(works(chip)[group])):
        scenes = scenes_of(chip, group, place, frozenset(mutation.text for mutation in left)) if left else {}
        for mutation in list(left):
            for scene in scenes.get(mutation.text, ()):
                wrong = scene.outcome_of(mutation.changed())
                met[mutation].append(scene)
                if wrong not in (None, NEVER):
                    yield mutation, wrong
                    del left[mutation]
                    break
                left[mutation] = SURVIVES if wrong is None else left[mutation]
    for mutation, result in left.items():
        for scene in variations(met[mutation], mutation.changed()):
            wrong = scene.outcome_of(mutation.changed())
            if wrong != NEVER:
                result = wrong or SURVIVES
            if result not in (SURVIVES, NEVER):
                break
        yield mutation, result


def main() -> None:
    """Draw, run, print, and append one line of JSON each; those that the file already holds are passed over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--number", type=int, default=NUMBER)
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first of the drawn that is run")
    parser.add_argument("--to", dest="last", type=int, default=None, help="the first that is not run any more")
    parser.add_argument("--chips", type=int, nargs="+", default=[80, 90, 100], help="run those of these chips alone")
    parser.add_argument("--json", type=Path, default=Path("ptx_mutations.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything = all_mutations()
    print(len(everything), "sites", Counter(mutation.kind for mutation in everything), flush=True)
    drawn = list(enumerate(random.Random(options.seed).sample(everything, options.number)))[
        options.first : options.last
    ]
    done = [json.loads(line) for line in options.json.read_text().splitlines()] if options.json.exists() else []
    left = {number for number, _ in drawn} - {record["number"] for record in done}
    numbers = {mutation: number for number, mutation in drawn if number in left and mutation.chip in options.chips}
    start = time.process_time()
    for _, some in groupby(sorted(numbers, key=work_of), work_of):
        for mutation, result in outcomes(list(some)):
            record = vars(mutation) | {"number": numbers[mutation], "text": "", "result": result}
            record["seconds"] = round(time.process_time() - start, 1)
            start = time.process_time()
            done.append(record)
            with options.json.open("a") as file:
                file.write(json.dumps(record) + "\n")
            where = f"{mutation.kind} sm_{mutation.chip} {mutation.kernel}:{mutation.line}"
            print(record["number"], where, "|", mutation.before[:90], "|", result[:120], record["seconds"], flush=True)
    for kind in (SURVIVES, NEVER):
        print(kind, [record["number"] for record in done if record["result"] == kind])
    print(f"{sum(record['result'] not in (SURVIVES, NEVER) for record in done)} of {len(done)} detected")


def work_of(mutation: Mutation) -> tuple[int, int]:
    """Chip and group, by which mutations share their launches."""
    return mutation.chip, mutation.group


if __name__ == "__main__":
    sys.exit(main())
