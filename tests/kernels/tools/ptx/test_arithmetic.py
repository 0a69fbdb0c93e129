"""Arithmetic and conversions against plain formulas, on ordinary and on extreme numbers."""

import numpy as np
import pytest
import torch
from ptx_operands import LONG, OTHER_LONG, A, B, C, X, Y, Z, floats
from ptx_programs import elementwise

F32, U32, S32, S64, U64, U16 = np.float32, np.uint32, np.int32, np.int64, np.uint64, np.uint16


def flushed(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < 2.0**-126, np.copysign(F32(0), values), values)


def exact_fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(F32)


with np.errstate(all="ignore"):
    FLOAT_CASES = [
        ("add.f32 {0}, {1}, {2}", (A, B), A + B),
        ("sub.f32 {0}, {1}, {2}", (A, B), A - B),
        ("mul.f32 {0}, {1}, {2}", (A, B), A * B),
        ("div.full.f32 {0}, {1}, {2}", (A, B), A / B),
        ("fma.rn.f32 {0}, {1}, {2}, {3}", (A, B, C), exact_fma(A, B, C)),
        ("fma.rn.ftz.f32 {0}, {1}, {2}, {3}", (A, B, C), flushed(exact_fma(flushed(A), flushed(B), flushed(C)))),
        ("max.f32 {0}, {1}, {2}", (A, B), np.where(np.isnan(A), B, np.where(np.isnan(B), A, np.maximum(A, B)))),
        ("min.f32 {0}, {1}, {2}", (A, B), np.where(np.isnan(A), B, np.where(np.isnan(B), A, np.minimum(A, B)))),
        ("max.f32 {0}, {1}, {2}, {3}", (A, B, C), np.fmax(np.fmax(A, B), C)),
        ("min.f32 {0}, {1}, {2}, {3}", (A, B, C), np.fmin(np.fmin(A, B), C)),
        ("neg.f32 {0}, {1}", (A,), -A),
        ("abs.f32 {0}, {1}", (A,), abs(A)),
        ("ex2.approx.ftz.f32 {0}, {1}", (A,), flushed(np.exp2(flushed(A).astype(np.float64)).astype(F32))),
        ("sqrt.approx.ftz.f32 {0}, {1}", (A,), np.sqrt(flushed(A))),
        ("cvt.rpi.ftz.f32.f32 {0}, {1}", (A,), np.ceil(flushed(A))),
        ("cvt.rmi.f32.f32 {0}, {1}", (A,), np.floor(A)),
        ("add.f32 {0}, {1}, 0f3FC00000", (A,), A + F32(1.5)),
    ]


@pytest.mark.parametrize(("statement", "inputs", "expected"), FLOAT_CASES, ids=[case[0] for case in FLOAT_CASES])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_float(statement: str, inputs: tuple[np.ndarray, ...], expected: np.ndarray) -> None:
    found = elementwise(statement, *inputs, result=F32)
    assert np.allclose(found, expected.astype(F32), rtol=3e-7, atol=0, equal_nan=True)
    assert (np.signbit(found) == np.signbit(expected.astype(F32)))[~np.isnan(found)].all()


def big(values: np.ndarray) -> list[int]:
    return [int(value) for value in values]


SMALL = (abs(Y.astype(S64)) % 1000 + 1).astype(S32)
QUOTIENTS = [abs(x) // y * (-1 if x < 0 else 1) for x, y in zip(big(X), big(SMALL), strict=True)]
INTEGER_CASES = [
    ("add.s32 {0}, {1}, {2}", (X, Y), S32, [x + y for x, y in zip(big(X), big(Y), strict=True)]),
    ("add.s32 {0}, {1}, -7", (X,), S32, [x - 7 for x in big(X)]),
    (
        "sub.s64 {0}, {1}, {2}",
        (LONG, OTHER_LONG),
        S64,
        [x - y for x, y in zip(big(LONG), big(OTHER_LONG), strict=True)],
    ),
    ("mul.lo.s32 {0}, {1}, {2}", (X, Y), S32, [x * y for x, y in zip(big(X), big(Y), strict=True)]),
    ("mul.wide.s32 {0}, {1}, {2}", (X, Y), S64, [x * y for x, y in zip(big(X), big(Y), strict=True)]),
    ("mul.wide.u32 {0}, {1}, 12", (X.view(U32),), U64, [x * 12 for x in big(X.view(U32))]),
    (
        "mad.wide.s32 {0}, {1}, {2}, {3}",
        (X, Y, LONG),
        S64,
        [x * y + z for x, y, z in zip(big(X), big(Y), big(LONG), strict=True)],
    ),
    (
        "mad.lo.s32 {0}, {1}, {2}, {3}",
        (X, Y, Z),
        S32,
        [x * y + z for x, y, z in zip(big(X), big(Y), big(Z), strict=True)],
    ),
    (
        "div.s32 {0}, {1}, {2}",
        (X, SMALL),
        S32,
        [int(np.sign(x)) * (abs(x) // y) for x, y in zip(big(X), big(SMALL), strict=True)],
    ),
    (
        "rem.s32 {0}, {1}, {2}",
        (X, SMALL),
        S32,
        [int(np.sign(x)) * (abs(x) % y) for x, y in zip(big(X), big(SMALL), strict=True)],
    ),
    ("max.s32 {0}, {1}, {2}", (X, Y), S32, [max(x, y) for x, y in zip(big(X), big(Y), strict=True)]),
    ("max.s64 {0}, {1}, 0", (LONG,), S64, [max(x, 0) for x in big(LONG)]),
    ("min.s32 {0}, {1}, {2}", (X, Y), S32, [min(x, y) for x, y in zip(big(X), big(Y), strict=True)]),
    ("neg.s32 {0}, {1}", (X,), S32, [-x for x in big(X)]),
    ("cvt.s64.s32 {0}, {1}", (X,), S64, big(X)),
    ("cvt.u64.u32 {0}, {1}", (X,), U64, big(X.view(U32))),
    ("cvt.u32.u64 {0}, {1}", (LONG,), U32, big(LONG)),
    ("cvt.u16.u32 {0}, {1}", (X,), U16, big(X)),
    ("cvt.u32.u16 {0}, {1}", (X.astype(U16),), U32, big(X.astype(U16))),
]


@pytest.mark.parametrize(
    ("statement", "inputs", "kind", "expected"), INTEGER_CASES, ids=[case[0] for case in INTEGER_CASES]
)
def test_integer(statement: str, inputs: tuple[np.ndarray, ...], kind: type, expected: list[int]) -> None:
    """Python's unbounded integers, cut to the width."""
    modulus = 2 ** (8 * np.dtype(kind).itemsize)
    found = elementwise(statement, *inputs, result=kind)
    assert [value % modulus for value in big(found)] == [value % modulus for value in expected]


def torch_bits(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(U16)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_to_two_halves(name: str, dtype: torch.dtype) -> None:
    """As torch rounds; the first operand is the upper half. A tie between two bf16 is among the numbers."""
    a, b = A.copy(), B.copy()
    a[20:24] = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x477FF000], U32).view(F32)
    with np.errstate(over="ignore"):
        found = elementwise(f"cvt.rn.{name}x2.f32 {{0}}, {{1}}, {{2}}", a, b, result=U32)
        expected = torch_bits(a, dtype).astype(U32) << 16 | torch_bits(b, dtype)
    usual = ~np.isnan(a) & ~np.isnan(b)
    assert (found[usual] == expected[usual]).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bf16_and_back() -> None:
    bits = elementwise("cvt.rn.bf16.f32 {0}, {1}", A, result=U16)
    usual = ~np.isnan(A)
    assert (bits == torch_bits(A, torch.bfloat16))[usual].all()
    assert (bits[~usual] == 0x7FFF).all()
    assert (elementwise("cvt.f32.bf16 {0}, {1}", bits, result=F32).view(U32) == bits.astype(U32) << 16).all()
    halves = A.astype(np.float16)
    assert np.array_equal(elementwise("cvt.f32.f16 {0}, {1}", halves, result=F32), halves.astype(F32), equal_nan=True)
    wide = (bits.astype(U32) << 16).view(F32)
    found = elementwise("add.rn.f32.bf16 {0}, {1}, {2}", bits, B, result=F32)
    assert np.array_equal(found, wide + B, equal_nan=True)
    found = elementwise("add.rn.f32.f16 {0}, {1}, {2}", halves, B, result=F32)
    assert np.array_equal(found, halves.astype(F32) + B, equal_nan=True)


def test_tf32_rounds_ties_away_from_zero() -> None:
    bits = np.array([0x3F801000, 0x3F800FFF, 0xBF801000, 0x7F800000, 0x3F803000], U32)
    found = elementwise("cvt.rna.tf32.f32 {0}, {1}", np.resize(bits, 32), result=U32)
    assert [hex(value) for value in found[:5]] == ["0x3f802000", "0x3f800000", "0xbf802000", "0x7f800000", "0x3f804000"]


def test_floats_are_cut_to_integers() -> None:
    values = np.array([0.0, 0.9, -0.9, 1.0, 2.5, -3.99, 123_456.7, 2.0**30], F32)
    found = elementwise("cvt.rzi.s32.f32 {0}, {1}", np.resize(values, 32), result=S32)
    assert found[:8].tolist() == [0, 0, 0, 1, 2, -3, 123_456, 2**30]


def test_integers_to_float() -> None:
    assert (elementwise("cvt.rn.f32.u32 {0}, {1}", X, result=F32) == X.view(U32).astype(F32)).all()
    assert (elementwise("cvt.rn.f32.s32 {0}, {1}", X, result=F32) == X.astype(F32)).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_two_floats_side_by_side() -> None:
    pairs = [np.stack([floats(seed), floats(seed + 9)], 1).reshape(-1).view(U64) for seed in (1, 2, 3)]
    a, b, c = (pair.view(F32).reshape(-1, 2) for pair in pairs)
    for statement, expected in (
        ("add.f32x2 {0}, {1}, {2}", a + b),
        ("sub.f32x2 {0}, {1}, {2}", a - b),
        ("mul.f32x2 {0}, {1}, {2}", a * b),
        ("fma.rn.f32x2 {0}, {1}, {2}, {3}", exact_fma(a, b, c)),
    ):
        inputs = pairs if "fma" in statement else pairs[:2]
        found = elementwise(statement, *inputs, result=U64).view(F32).reshape(-1, 2)
        assert np.allclose(found, expected, rtol=2e-7, atol=0, equal_nan=True), statement
