"""Each fault that the executor reports, planted in the PTX that Triton compiles for `class_tiles`."""

import re
from contextlib import suppress
from functools import cache

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with torch's CUDA build only")

from ptx_cases import LossCase
from ptx_mutations import EnoughError, Lister, Recorder
from ptx_scenes import Scene
from ptx_works import loss_work
from triton_cases import Case

from rlpheads.kernels.tools.ptx.launch import executed

ALIGNED, UNALIGNED = 144, 100
"""Features. Rows of the second begin at no multiple of 16 bytes: no tensor copies, and operands that threads write."""


@cache
def scene(chip: int, features: int) -> Scene:
    """The launch of `class_tiles` by a loss of 40 rows and 140 labels: two tiles, both ragged."""
    work = loss_work(LossCase(Case(40, features, 140, "unlikelihood", torch.bfloat16, torch.bfloat16, seed=2)))
    with executed(chip, Lister) as lister:
        work.launch()
    (text,) = (compiled.ptx for compiled in lister.compiled.values() if ".entry class_tiles_kernel" in compiled.ptx)
    with executed(chip, Recorder, wanted=frozenset([text]), most=1) as recorder, suppress(EnoughError):
        work.launch()
    (found,) = recorder.scenes[text]
    return found


def replaced(pattern: str, by: str, text: str) -> str:
    """Every line that matches, changed."""
    changed, number = re.subn(rf"^\s*(?:{pattern})$", by, text, flags=re.M)
    assert number, f"nothing like {pattern}"
    return changed


TRY_WAIT = r"(mbarrier\.try_wait\S+ complete, \[%r\d+\], )(%r\d+);"
FAULTS = [
    (80, ALIGNED, "a wait for copies left out", r"cp\.async\.wait_group\s+\w+;", "", "not waited for"),
    (
        80,
        ALIGNED,
        "a wait for fewer copies",
        r"cp\.async\.wait_group\s+\w+;",
        "cp.async.wait_group 3;",
        "not waited for",
    ),
    (80, ALIGNED, "barriers left out", r"bar\.sync.*", "", "race"),
    (90, ALIGNED, "barriers left out", r"bar\.sync.*", "", "race|no mbarrier"),
    (100, ALIGNED, "barriers left out", r"bar\.sync.*", "", "race|no mbarrier"),
    (90, UNALIGNED, "fences left out", r"fence\.proxy\.async.*", "", "without a fence.proxy.async"),
    (100, UNALIGNED, "fences left out", r"fence\.proxy\.async.*", "", "without a fence.proxy.async"),
    (90, ALIGNED, "a fence of registers left out", r"wgmma\.fence.*", "", "since the last wgmma.fence"),
    (90, ALIGNED, "a wait for products left out", r"wgmma\.wait_group.*", "", "read before it is set|not waited for"),
    (90, ALIGNED, "too many bytes expected", r"(.*expect_tx.*), (\d+);", r"\1, 1\2;", "deadlock"),
    (90, ALIGNED, "too few bytes expected", r"(.*expect_tx.*), \d+;", r"\1, 16384;", "deadlock"),
    (100, ALIGNED, "too many bytes expected", r"(.*expect_tx.*), (\d+);", r"\1, 1\2;", "deadlock"),
    (90, ALIGNED, "another phase", TRY_WAIT, r"xor.b32 %r99999, \2, 1; \1%r99999;", "not waited for|deadlock"),
    (100, ALIGNED, "another phase", TRY_WAIT, r"xor.b32 %r99999, \2, 1; \1%r99999;", "not waited for|deadlock"),
    (
        90,
        ALIGNED,
        "threads write where a copy lands",
        f"({TRY_WAIT})",
        r"st.shared.b32 [1024], 0; \1",
        "not waited for",
    ),
    (90, ALIGNED, "a copy that is not waited for", TRY_WAIT, "setp.eq.b32 complete, 0, 0;", "not waited for"),
    (100, ALIGNED, "a load that is not waited for", r"tcgen05\.wait::ld.*", "", "read before it is set"),
    (
        80,
        ALIGNED,
        "a register never set",
        r"mov\.u32\s+%r\d+, %tid\.x;",
        "",
        "register %r\\d+ is read before it is set",
    ),
    (
        90,
        ALIGNED,
        "a register never set",
        r"mov\.u32\s+%r\d+, %tid\.x;",
        "",
        "register %r\\d+ is read before it is set",
    ),
    (80, ALIGNED, "shared memory never written", r"cp\.async\.c.*", "", "reads shared memory that was never written"),
    (80, ALIGNED, "masks of stores left out", r"@%p\d+ (st\.global.*)", r"\1", "out of bounds"),
    (90, ALIGNED, "masks of stores left out", r"@%p\d+ (st\.global.*)", r"\1", "out of bounds"),
    (80, UNALIGNED, "masks of loads left out", r"@%p\d+ (ld\.global.*)", r"\1", "out of bounds"),
]


@pytest.mark.long
@pytest.mark.parametrize(("chip", "features", "name", "pattern", "by", "message"), FAULTS, ids=str)
def test_a_fault_is_reported(chip: int, features: int, name: str, pattern: str, by: str, message: str) -> None:
    there = scene(chip, features)
    wrong = there.outcome(replaced(pattern, by, there.compiled.ptx), late=True, most_turns=2000)
    assert wrong is not None, name
    assert re.search(message, wrong), wrong


@pytest.mark.long
@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize(("chip", "features"), sorted({(chip, features) for chip, features, *_ in FAULTS}))
def test_no_fault_is_reported_where_there_is_none(chip: int, features: int, late: bool) -> None:
    there = scene(chip, features)
    assert there.outcome(there.compiled.ptx, late=late) is None
