"""Moves, loads and stores, and exchange in a warp, against plain formulas; what lies outside is refused."""

import numpy as np
import pytest
import torch
from ptx_programs import elementwise, run

from rlpheads.kernels.tools.ptx.checked_memory import KernelError

U16, U32, U64 = np.uint16, np.uint32, np.uint64
WORDS = np.random.default_rng(0).integers(0, 2**32, 64, U32)
LONG = np.random.default_rng(1).integers(0, 2**64, 64, U64)


def test_mov_takes_apart_and_puts_together() -> None:
    statement = "mov.b64 {{%r20, %r21}}, {1}; mov.b64 {0}, {{%r21, %r20}}"
    assert (elementwise(statement, LONG, result=U64) == (LONG << U64(32) | LONG >> U64(32))).all()
    statement = "mov.b32 {{%rs3, %rs4}}, {1}; mov.b32 {0}, {{%rs4, %rs3}}"
    assert (elementwise(statement, WORDS, result=U32) == (WORDS << 16 | WORDS >> 16)).all()
    statement = "mov.b32 {{_, %rs4}}, {1}; mov.b16 {0}, %rs4"
    assert (elementwise(statement, WORDS, result=U16) == WORDS >> 16).all()
    assert (elementwise("mov.b32 {0}, 0f3F800000", WORDS, result=np.float32) == 1).all()


def test_an_unset_part_is_kept_apart() -> None:
    """Compilers put a register that was never set beside one that was; only the one may be taken out again."""
    statement = "mov.b64 %rd80, {{{1}, %r399}}; mov.b64 {{{0}, _}}, %rd80"
    assert (elementwise(statement, WORDS, result=U32) == WORDS).all()
    for use in ("mov.b64 {{_, {0}}}, %rd80; add.s32 {0}, {0}, 1", "cvt.u32.u64 {0}, %rd80"):
        with pytest.raises(KernelError, match="before it is set"):
            elementwise(f"mov.b64 %rd80, {{{{{{1}}, %r399}}}}; {use}", WORDS, result=U32)


def test_a_narrow_load_is_extended() -> None:
    """ld.shared.b8 into a register of 16 bits."""
    statement = "shl.b32 %r20, %r0, 2; st.shared::cta.b32 [%r20], {1}; ld.shared.b8 %rs4, [%r20+3]; mov.b16 {0}, %rs4"
    assert (elementwise(statement, WORDS, result=U16, shared_bytes=4096) == WORDS >> 24).all()


def test_vectors_through_shared_and_global_memory() -> None:
    source, target = torch.arange(32 * 8, dtype=torch.int32), torch.zeros(32 * 8, dtype=torch.int32)
    body = """
	mad.wide.s32 %rd0, %r0, 32, %rd0;
	mad.wide.s32 %rd1, %r0, 32, %rd1;
	ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd0 + 16];
	shl.b32 %r5, %r0, 4;
	st.shared::cta.v4.b32 [%r5 + 16], {%r1, %r2, %r3, %r4};
	ld.shared.v2.b64 {%rd2, %rd3}, [%r5+16];
	mov.b64 {%r6, %r7}, %rd3;
	st.global.v2.b32 [%rd1 + 8], {%r6, %r7};
	st.global.b64 [%rd1 + 24], %rd2;"""
    launch = run(body, source, target, shared_bytes=1024)
    expected = torch.zeros(32, 8, dtype=torch.int32)
    rows = source.view(32, 8)
    expected[:, 2:4], expected[:, 6:8] = rows[:, 6:8], rows[:, 4:6]
    assert torch.equal(target.view(32, 8), expected)
    memory = launch.memory
    assert (memory.read.total(), memory.written.total()) == (32 * 16, 32 * 16)
    assert memory.size(source.data_ptr()) == 32 * 32
    assert launch.counts.stores == {8: 64}
    assert launch.counts.bank_conflicts == 0


@pytest.mark.parametrize(("stride", "conflicts"), [(4, 0), (8, 1), (128, 31), (132, 0)])
def test_bank_conflicts(stride: int, conflicts: int) -> None:
    launch = run(f"\tmul.lo.s32 %r1, %r0, {stride};\n\tst.shared::cta.b32 [%r1], %r0;", shared_bytes=32 * 136)
    assert launch.counts.bank_conflicts == conflicts
    assert launch.counts.shared_bytes == 128


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ld.global.b32 %r1, [%rd0 + 128];", "out of bounds"),
        ("ld.global.b32 %r1, [%rd0 + -4];", "out of bounds"),
        ("st.global.b32 [%rd0 + 2], %r0;", "no multiple of 4"),
        ("mov.b32 %r1, 3; ld.shared.b8 %rs1, [%r1 + 1024];", "lies outside the 1024"),
        ("mov.b32 %r1, 4; ld.shared.b32 %r2, [%r1];", "reads shared memory that was never written"),
        ("mov.b32 %r1, 2; st.shared::cta.b32 [%r1], %r0;", "no multiple of 4"),
        ("setp.lt.s32 %p1, %r0, 3; @%p1 mov.b32 %r1, 0; add.s32 %r2, %r1, 1;", "%r1 is read before it is set"),
    ],
)
def test_what_is_outside_or_unset_is_refused(body: str, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        run("\t" + body, torch.zeros(32, dtype=torch.int32), shared_bytes=1024)


@pytest.mark.slow
def test_a_64_bit_offset_into_memory_that_is_mostly_untouched() -> None:
    """4.4 GB that are never touched but for two numbers; the same offset cut to 32 bits falls outside."""
    large = torch.empty(2**31 + 1000, dtype=torch.int16)
    body = """
	setp.eq.b32 %p1, %r0, 0;
	mov.b64 %rd1, 4294968192;
	add.s64 %rd2, %rd0, %rd1;
	mov.b16 %rs1, 77;
	@%p1 st.global.b16 [%rd2], %rs1;"""
    run(body, large)
    assert large[2**31 + 448] == 77


def test_shuffles() -> None:
    lane = np.arange(64) % 32
    assert (elementwise("shfl.sync.bfly.b32 {0}, {1}, 8, 31, -1", WORDS, result=U32) == WORDS[np.arange(64) ^ 8]).all()
    expected = WORDS[np.arange(64) - lane + 5]
    assert (elementwise("shfl.sync.idx.b32 {0}, {1}, 5, 31, -1", WORDS, result=U32) == expected).all()
    values = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    found = elementwise("redux.sync.max.f32 {0}, {1}, -1", values, result=np.float32)
    assert (found == np.repeat(values.reshape(2, 32).max(1), 32)).all()
    found = elementwise("redux.sync.add.s32 {0}, {1}, -1", WORDS, result=U32)
    assert (found == np.repeat(WORDS.reshape(2, 32).sum(1, dtype=U32), 32)).all()


def test_elect_chooses_one_lane_of_a_warp() -> None:
    statement = "elect.sync %r20|%p1, -1; selp.b32 {0}, 1, 0, %p1"
    assert elementwise(statement, WORDS, result=U32).reshape(2, 32).tolist() == [[1] + [0] * 31] * 2


def test_matrices_of_8_by_8() -> None:
    """ldmatrix: lane l gets elements 2(l mod 4), +1 of row l/4; stmatrix puts them back where the addresses say."""
    source, target = torch.arange(256, dtype=torch.int16), torch.zeros(256, dtype=torch.int16)
    body = """
	mad.wide.s32 %rd2, %r0, 16, %rd0;
	ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd2];
	shl.b32 %r5, %r0, 4;
	st.shared::cta.v4.b32 [%r5], {%r1, %r2, %r3, %r4};
	bar.sync 0;
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r5];
	mad.wide.s32 %rd1, %r0, 16, %rd1;
	st.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};"""
    run(body, source, target, shared_bytes=512)
    matrices = source.view(4, 8, 8)
    for lane in range(32):
        for number in range(4):
            pair = matrices[number, lane // 4, lane % 4 * 2 :][:2]
            assert torch.equal(target.view(32, 4, 2)[lane, number], pair)
    run(body.replace("x4.shared", "x4.trans.shared"), source, target, shared_bytes=512)
    for lane in range(32):
        for number in range(4):
            pair = matrices[number, lane % 4 * 2 :, lane // 4][:2]
            assert torch.equal(target.view(32, 4, 2)[lane, number], pair)
    body = """
	and.b32 %r6, %r0, 7;
	shl.b32 %r6, %r6, 4;
	stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r6], {%r0};
	bar.sync 0;
	shl.b32 %r5, %r0, 2;
	ld.shared.b32 %r7, [%r5];
	mad.wide.s32 %rd0, %r0, 4, %rd0;
	st.global.b32 [%rd0], %r7;"""
    lanes = torch.zeros(32, dtype=torch.int32)
    run(body, lanes, shared_bytes=128)
    assert lanes.tolist() == list(range(32))


@pytest.mark.parametrize(
    "statement", ["add.sat.s32 %r1, %r0, 1;", "lg2.approx.f32 %r1, %r0;", "ld.global.nc.b32 %r1, [%rd0];"]
)
def test_what_is_not_implemented_is_refused(statement: str) -> None:
    with pytest.raises(NotImplementedError):
        run("\t" + statement, torch.zeros(32))
