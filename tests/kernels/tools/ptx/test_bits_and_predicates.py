"""Comparison, selection, logic and shifts against plain formulas."""

import numpy as np
import pytest
import torch
from ptx_operands import LONG, OTHER_LONG, A, B, X, Y
from ptx_programs import elementwise, run

F32, U32, S32, S64, U64, U16, S16 = np.float32, np.uint32, np.int32, np.int64, np.uint64, np.uint16, np.int16
BROKEN = np.isnan(A) | np.isnan(B)
COMPARISONS = [
    ("lt.f32", (A, B), (A < B)),
    ("le.f32", (A, B), (A <= B)),
    ("gt.f32", (A, B), (A > B)),
    ("ge.f32", (A, B), (A >= B)),
    ("eq.f32", (A, B), (A == B)),
    ("ne.f32", (A, B), (A != B) & ~BROKEN),
    ("neu.f32", (A, B), (A != B) | BROKEN),
    ("ltu.f32", (A, B), (A < B) | BROKEN),
    ("num.f32", (A, B), ~BROKEN),
    ("nan.f32", (A, B), BROKEN),
    ("lt.s32", (X, Y), X < Y),
    ("gt.u32", (X, Y), X.view(U32) > Y.view(U32)),
    ("ge.s32", (X, Y), X >= Y),
    ("eq.b32", (X, X), X == X),
    ("ne.b32", (X, Y), X != Y),
    ("eq.b64", (LONG, LONG[::-1]), LONG[::-1] == LONG),
    ("lt.s64", (LONG, OTHER_LONG), LONG < OTHER_LONG),
    ("ge.s64", (LONG, OTHER_LONG), LONG >= OTHER_LONG),
    ("ne.b16", (X.astype(S16), Y.astype(S16)), X.astype(S16) != Y.astype(S16)),
]


@pytest.mark.parametrize(("order", "inputs", "expected"), COMPARISONS, ids=[case[0] for case in COMPARISONS])
def test_setp_and_selp(order: str, inputs: tuple[np.ndarray, ...], expected: np.ndarray) -> None:
    statement = f"setp.{order} %p1, {{1}}, {{2}}; selp.b32 {{0}}, 17, -3, %p1"
    found = elementwise(statement, *inputs, result=S32)
    assert (found == np.where(expected, 17, -3)).all()


def test_selp_of_every_width() -> None:
    first = np.arange(64) % 3 == 0
    for kind, values in (("f32", A), ("b64", LONG), ("b16", X.astype(S16))):
        other = values[::-1].copy()
        statement = f"setp.ne.b32 %p1, {{3}}, 0; selp.{kind} {{0}}, {{1}}, {{2}}, %p1"
        found = elementwise(statement, values, other, first.astype(S32), result=values.dtype.type)
        assert np.array_equal(found, np.where(first, values, other), equal_nan=kind == "f32")


def test_logic_of_predicates() -> None:
    table = np.arange(4, dtype=S32)
    for name, expected in (("and", [0, 0, 0, 1]), ("or", [0, 1, 1, 1]), ("xor", [0, 1, 1, 0])):
        statement = "and.b32 %r11, {1}, 1; and.b32 %r12, {1}, 2; setp.ne.b32 %p1, %r11, 0; setp.ne.b32 %p2, %r12, 0; "
        statement += f"{name}.pred %p3, %p1, %p2; selp.b32 {{0}}, 1, 0, %p3"
        found = elementwise(statement, np.resize(table, 32), result=S32)
        assert found[:4].tolist() == expected
    found = elementwise(
        "setp.lt.and.s32 %p1, {1}, {2}, %p2; selp.b32 {0}, 1, 0, %p1".replace("%p2", "1"), X, Y, result=S32
    )
    assert (found == (X < Y)).all()


LOGIC = [
    ("and.b32 {0}, {1}, {2}", (X, Y), X & Y),
    ("or.b32 {0}, {1}, {2}", (X, Y), X | Y),
    ("xor.b32 {0}, {1}, 255", (X,), X ^ 255),
    ("not.b32 {0}, {1}", (X,), ~X),
    ("and.b16 {0}, {1}, {2}", (X.astype(S16), Y.astype(S16)), (X & Y).astype(S16)),
    ("or.b64 {0}, {1}, {2}", (LONG, OTHER_LONG), LONG | OTHER_LONG),
    ("shl.b32 {0}, {1}, 5", (X,), X << 5),
    ("shl.b64 {0}, {1}, 33", (LONG,), LONG << 33),
    ("shl.b16 {0}, {1}, 8", (X.astype(S16),), (X << 8).astype(S16)),
    ("shr.u32 {0}, {1}, 5", (X,), (X.view(U32) >> 5).view(S32)),
    ("shr.s32 {0}, {1}, 31", (X,), X >> 31),
    ("shr.u64 {0}, {1}, 60", (LONG,), (LONG.view(U64) >> np.uint64(60)).view(S64)),
    ("shl.b32 {0}, {1}, 32", (X,), X * 0),
    ("shr.u32 {0}, {1}, 40", (X,), X * 0),
    ("shr.s32 {0}, {1}, 40", (X,), X >> 31),
    ("bfe.u32 {0}, {1}, 4, 15", (X,), (X.view(U32) >> 4 & 0x7FFF).view(S32)),
    ("bfe.s32 {0}, {1}, 3, 1", (X,), -(X >> 3 & 1)),
    ("bfe.s32 {0}, {1}, 0, 32", (X,), X),
]


@pytest.mark.parametrize(("statement", "inputs", "expected"), LOGIC, ids=[case[0] for case in LOGIC])
def test_bits(statement: str, inputs: tuple[np.ndarray, ...], expected: np.ndarray) -> None:
    assert (elementwise(statement, *inputs, result=expected.dtype.type) == expected).all()


def test_a_predicate_guards_and_branches_part() -> None:
    """Threads go different ways and meet again."""
    out = torch.zeros(64, dtype=torch.int32)
    body = """
	mad.wide.s32 %rd0, %r0, 4, %rd0;
	mov.b32 %r1, 0;
	and.b32 %r2, %r0, 3;
	setp.eq.b32 %p1, %r2, 0;
	@%p1 mov.b32 %r1, 100;
	@!%p1 bra $L__skip;
	add.s32 %r1, %r1, %r0;
$L__skip:
	setp.lt.s32 %p2, %r2, 3;
	add.s32 %r1, %r1, 1000;
	add.s32 %r2, %r2, 1;
	@%p2 bra $L__skip;
	st.global.b32 [%rd0], %r1;"""
    run(body, out, threads=64)
    thread = np.arange(64)
    expected = np.where(thread % 4 == 0, 100 + thread, 0) + 1000 * (4 - thread % 4)
    assert out.tolist() == expected.tolist()


def test_brx_takes_each_thread_to_its_target() -> None:
    out = torch.zeros(32, dtype=torch.int32)
    body = """
	mad.wide.s32 %rd0, %r0, 4, %rd0;
	and.b32 %r1, %r0, 1;
	$L_brx_0: .branchtargets
		$L__one,
		$L__two;
	brx.idx %r1, $L_brx_0;
$L__one:
	st.global.b32 [%rd0], 5;
	ret;
$L__two:
	st.global.b32 [%rd0], 6;"""
    run(body, out)
    assert out.tolist() == [5, 6] * 16
