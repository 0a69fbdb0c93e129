"""Runs a block: the threads that stand at the lowest place go first, together, until they branch or must wait.

Threads wait at `bar.sync` until all that live have come, and at `mbarrier.try_wait` until its phase is complete. When all
wait, the asynchronous operations that a waiting thread needs complete; when there are none, it is a deadlock.
"""

import numpy as np

from rlpheads.kernels.tools.ptx import arithmetic, asynchronous_copies, data_movement, tensor_cores, tensor_memory
from rlpheads.kernels.tools.ptx.block import Barrier, Block, complete
from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import Array
from rlpheads.kernels.tools.ptx.program import Instruction, Program
from rlpheads.kernels.tools.ptx.step import Step

FAMILIES = (arithmetic, data_movement, asynchronous_copies, tensor_cores, tensor_memory)
INSTRUCTIONS = {name: execute for family in FAMILIES for name, execute in family.INSTRUCTIONS.items()}
CONTROL = ("bra", "brx", "ret", "bar")
MODIFIERS = frozenset(
    """16x32bx2 2d 32x32b add aligned alloc approx arrive async b16 b32 b64 b8 bf16 bf16x2 bfly bulk ca cg col commit
    commit_group cta_group::1 dealloc eq expect_tx f16 f16x2 f32 f32x2 fence ftz full ge global gt idx init inval kind::f16
    kind::tf32 ld le lo lt ltu leu gtu geu equ m16n8k16 m16n8k8 m8n8 max mbarrier::arrive::one mbarrier::complete_tx::bytes min
    mma mma_async nan ne neu num param parity pred proxy relinquish_alloc_permit rmi rn rna row rpi rz rzi s32 s64 shared
    shared::cluster shared::cta st sync tensor tf32 trans try_wait u16 u32 u64 u8 uni v2 v4 v8 wait::ld wait::st wait_group
    wide x1 x2 x4 x8 x16 x32 x64 x128 and or xor""".split()  # noqa: SIM905 - shorter than a list of strings
)
"""What the families heed; anything else is refused rather than passed over."""


def check_supported(program: Program) -> None:
    """Refuse what no family executes.

    Raises:
        NotImplementedError: an instruction or a modifier that is not implemented.
    """
    for instruction in program.code:
        shapes = {part for part in instruction.modifiers if part.startswith("m64n") and instruction.name == "wgmma"}
        is_known = instruction.name in INSTRUCTIONS or instruction.name in CONTROL
        if not is_known or set(instruction.modifiers) - shapes - MODIFIERS:
            raise NotImplementedError(instruction.text[:160])


class Scheduler:
    """Places of the threads of a block in its code, and who waits."""

    def __init__(self, block: Block) -> None:
        self._block, self._code = block, block.program.code
        self._place = np.zeros(block.num_threads, np.int64)
        self._lives = np.ones(block.num_threads, bool)
        self._at_barrier, self._is_parked = np.zeros((2, block.num_threads), bool)
        self._awaited: list[tuple[Barrier, int]] = []

    def run(self) -> None:
        """Run the block to its end.

        Raises:
            KernelError: it does what it must not; the message ends with the instruction.
        """
        turns = 0
        while self._lives.any():
            turns += 1
            if turns > self._block.launch.most_turns:
                raise KernelError(f"deadlock: no end after {turns} branches and waits")
            ready = self._lives & ~self._at_barrier & ~self._is_parked
            if ready.any():
                self._advance(ready)
            else:
                self._release()
        self._block.drain()

    def _advance(self, ready: Array) -> None:
        place = int(self._place[ready].min())
        group = ready & (self._place == place)
        others = self._place[ready & ~group]
        end = int(others.min()) if len(others) else len(self._code)
        num_warps = int(group.reshape(-1, 32).any(1).sum())
        while place < end:
            instruction = self._code[place]
            self._block.launch.counts.issue(instruction, place, num_warps)
            try:
                stays = self._execute(instruction, place, group)
            except KernelError as error:
                raise KernelError(f"{error}, at {place}: {instruction.text[:160]}") from None
            if not stays:
                return
            place += 1
        self._place[group] = place
        if place >= len(self._code):
            raise KernelError("threads run past the end of the code")

    def _execute(self, instruction: Instruction, place: int, group: Array) -> bool:
        """Execute one instruction; False where the threads of the group no longer go on together to the next."""
        step = Step(self._block, instruction, group)
        if instruction.guard is not None:
            step.active = group & (step.read(instruction.guard, "pred") ^ instruction.unless)
            if not step.active.any():
                return True
        if "aligned" in instruction.modifiers:
            self._check_whole_warps(step.active)
        if instruction.name in CONTROL or instruction.modifiers[:1] == ("try_wait",):
            self._place[group] = place + 1
            return self._control(step, place)
        INSTRUCTIONS[instruction.name](step)
        return True

    def _check_whole_warps(self, active: Array) -> None:
        """`.aligned`: all threads of a warp that have not ended execute the instruction, or none (e.g. 9.7.15.5.14)."""
        active_WT, lives_WT = active.reshape(-1, 32), self._lives.reshape(-1, 32)
        if (lives_WT & ~active_WT)[active_WT.any(1)].any():
            raise KernelError("a part of a warp executes what all of it must")

    def _control(self, step: Step, place: int) -> bool:
        """Control flow (PTX ISA, 9.7.12) and waiting: `bar.sync` (9.7.13), `mbarrier.try_wait` (9.7.13.15)."""
        program = self._block.program
        if step.name == "ret":
            self._lives &= ~step.active
        elif step.name == "bar":
            self._at_barrier |= step.active
        elif step.name == "mbarrier":
            return self._wait(step, place)
        elif step.name == "bra":
            self._place[step.active] = program.labels[str(step.operands[0])]
        else:
            targets = np.array([program.labels[name] for name in program.tables[str(step.operands[1])]])
            chosen = step.read(step.operands[0], "u32")[step.active]
            if (chosen >= len(targets)).any():
                raise KernelError("brx.idx beyond its table")
            self._place[step.active] = targets[chosen]
        return False

    def _wait(self, step: Step, place: int) -> bool:
        target, *waited = step.operands
        where, parity = map(step.one, waited)
        barrier = self._block.barrier_at(where)
        self._block.shared.read(np.broadcast_to(where + np.arange(8), (len(step.threads), 8)), step.threads)
        if barrier.passed(parity):
            barrier.teach(step.active)
            step.write(target, np.array(True))
            return True
        self._place[step.active] = place
        self._is_parked |= step.active
        self._awaited.append((barrier, parity))
        return False

    def _release(self) -> None:
        if not self._is_parked.any():
            self._at_barrier[:] = False
            self._block.shared.barrier()
            self._block.tensor.barrier()
            return
        if not any(barrier.passed(parity) for barrier, parity in self._awaited):
            for barrier, _ in self._awaited:
                complete(barrier.actions)
            if not any(barrier.passed(parity) for barrier, parity in self._awaited):
                barrier, _ = self._awaited[0]
                raise KernelError(f"deadlock: {int(self._is_parked.sum())} threads wait at {barrier}")
        self._is_parked[:] = False
        self._awaited.clear()
