"""Launches in which a fault in a compiled kernel may show: as a loss makes them, and made for one fault.

A comparison with a bound that is off by one shows only where a thread stands exactly at the bound. Where none does, a size
among the arguments is lowered so that one does; the launch then means nothing, but what it must write is known all the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from ptx_made_scenes import made_arguments, moved
from ptx_twin import Storages, complaint, differs, expected
from torch import Tensor

from rlpheads.kernels.tools.ptx import scheduler
from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.launch import ASYNCHRONOUS, Compiled, lay_out, run_blocks
from rlpheads.kernels.tools.ptx.program import Program, parse
from rlpheads.kernels.tools.ptx.step import Step

FEW = 0.002
"""Share of the numbers of a tensor in which the compiled kernel may be further off than `differs` allows."""


@dataclass
class Scene:
    """A launch: its arguments, what they held before, and what they must hold after it."""

    kernel: Any
    compiled: Compiled
    named: dict[str, Any]
    """Arguments by their names."""
    grid: tuple[int, ...]
    storages: Storages
    before: list[Tensor]
    wanted: list[np.ndarray]
    places: set[int] = field(default_factory=set)
    """Of the instructions that the unchanged kernel comes to."""

    @classmethod
    def of(cls, kernel: Any, compiled: Compiled, named: dict[str, Any], grid: tuple[int, ...]) -> "Scene":
        """A launch, whose memory is left as it is."""
        storages = Storages(named)
        before = [flat.clone() for flat in storages.flat]
        return cls(kernel, compiled, named, grid, storages, before, expected(kernel, named, grid))

    def skip(self) -> None:
        """Leave memory as the launch would."""
        for flat, exact in zip(self.storages.flat, self.wanted, strict=True):
            flat.copy_(torch.from_numpy(exact))

    def settle(self) -> str | None:
        """Run the unchanged kernel; what is wrong with it. Where few numbers are off, theirs are those that are wanted.

        Moments e^t·t of t near 0 are: t carries the rounding of logits that are large.
        """
        wrong = self.outcome(self.compiled.ptx, late=True)
        if wrong is not None:
            for flat, exact in zip(self.storages.flat, self.wanted, strict=True):
                off = differs(flat, torch.from_numpy(exact))
                if int(off.sum()) <= FEW * len(flat):
                    exact[off.numpy()] = flat[off].to(torch.from_numpy(exact).dtype).numpy()
            wrong = complaint(self.storages, self.wanted)
        return wrong

    def rewind(self) -> None:
        """Let memory be as before the launch."""
        for flat, before in zip(self.storages.flat, self.before, strict=True):
            flat.copy_(before)

    def outcome(self, text: str, *, late: bool, most_turns: int = 100_000) -> str | None:
        """Run another text in place of the kernel; what is wrong with it."""
        self.rewind()
        try:
            compiled = replace(self.compiled, ptx=text)
            width, height, depth = (*self.grid, 1, 1)[:3]
            values = [self.named.get(name) for name in self.kernel.arg_names]
            launch = replace(lay_out(compiled, values, (width, height, depth), late), most_turns=most_turns)
            run_blocks(launch, seed=0)
        except KernelError as error:
            return str(error)
        except Exception as error:  # the executor refuses what no compiler writes
            return f"{type(error).__name__}: {error}"
        self.places |= launch.counts.places if text == self.compiled.ptx else set()
        return complaint(self.storages, self.wanted)

    def outcome_of(self, text: str) -> str | None:
        """What is wrong with a changed kernel; None where nothing is, and "never executed" where it is not reached."""
        if first_change(self.compiled.program, parse(text)) not in self.places:
            return NEVER
        is_asynchronous = any(one.name in ASYNCHRONOUS for one in self.compiled.program.code)
        outcomes = (self.outcome(text, late=late, most_turns=5_000) for late in (True, False)[: 1 + is_asynchronous])
        return next(filter(None, outcomes), None)


SURVIVES, NEVER = "survives", "never executed"


def first_change(before: Program, after: Program) -> int:
    """Place of the first instruction that is not what it was."""
    pairs = zip(before.code, after.code, strict=False)
    return next((place for place, pair in enumerate(pairs) if pair[0].text != pair[1].text), len(after.code))


def variations(scenes: Sequence[Scene], text: str) -> Iterator[Scene]:
    """Launches in which the change of a kernel to this text may show, though it does not in these; each right unchanged."""
    made = list(scenes)
    for scene in scenes[-1:]:  # that of the largest work
        for named in made_arguments(scene.kernel.__name__, scene.named, (*scene.grid, 1)[1]):
            if other := _right(replace(scene, named=named, places=set())):
                yield other
                made.append(other)
    for scene in made:
        place = first_change(scene.compiled.program, parse(text))
        if place in scene.places and scene.compiled.program.code[place].name == "setp":
            yield from moved_bounds(scene, place)


def moved_bounds(scene: Scene, place: int, most: int = 3) -> Iterator[Scene]:
    """The launch with a size lowered, or all labels moved, so that the two sides of a comparison are equal in some thread."""
    found = 0
    gaps = sorted(map(int, _gaps(scene, place)), key=abs)
    for gap in [gap for gap in gaps if gap < 0][:6] + [gap for gap in gaps if gap > 0][:3]:
        for named in moved(scene.named, gap):
            other = replace(scene, named=named, places=set())
            if 0 not in _gaps(other, place):
                continue
            made = _right(other)
            if made is not None:
                yield made
                found += 1
            if found == most:
                return


def _right(scene: Scene) -> Scene | None:
    """The scene with what must come of its arguments; None where the unchanged kernel may not run so."""
    scene.rewind()
    try:
        made = Scene.of(scene.kernel, scene.compiled, scene.named, scene.grid)
    except Exception:  # the interpreter's own, of an address beyond its tensors
        return None
    return None if made.settle() else made


def _gaps(scene: Scene, place: int) -> np.ndarray:
    """Left less right side of a comparison, in every thread that comes to it; none where the kernel may not run so."""
    gaps = [np.zeros(0, np.int64)]
    compare = scheduler.INSTRUCTIONS["setp"]

    def watch(step: Step) -> None:
        if step.instruction.text == wanted.text:
            sides = [step.read(side)[step.active].astype(np.int64) for side in step.operands[1:3]]
            gaps.append(sides[0] - sides[1])
        compare(step)

    wanted = scene.compiled.program.code[place]
    with patch.dict(scheduler.INSTRUCTIONS, setp=watch):
        scene.outcome(scene.compiled.ptx, late=True)
    return np.unique(np.concatenate(gaps))
