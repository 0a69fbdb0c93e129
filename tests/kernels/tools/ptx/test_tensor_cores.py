"""mma.sync and wgmma against plain matrix products, with operands laid out as the ISA's figures have them."""

import numpy as np
import pytest
import torch
from ptx_matrices import DTYPES, LOADS, matrix
from ptx_programs import run

from rlpheads.kernels.tools.ptx.asynchronous_copies import TensorMap
from rlpheads.kernels.tools.ptx.checked_memory import KernelError


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_mma_sync(kind: str) -> None:
    """Lane l holds in group g = l/4, place t = l mod 4: A[g (+8), 2t (+8)], B[2t (+8), g], C[g (+8), 2t]; tf32: t (+4)."""
    depth, per = (8, 1) if kind == "tf32" else (16, 2)
    a, b, c = matrix(1, 16, depth, kind), matrix(2, depth, 8, kind), torch.randn(16, 8)
    inputs, output = torch.zeros(32, 12, dtype=torch.int32), torch.zeros(32, 4)
    for lane in range(32):
        g, t = lane // 4, lane % 4
        registers = [a[g + row, per * t + column :][:per] for column in (0, depth // 2) for row in (0, 8)]
        registers += [b[per * t + row :, g][:per] for row in (0, depth // 2)]
        inputs[lane, :6] = torch.cat([part.contiguous().view(torch.int32) for part in registers])
        inputs[lane, 8:] = torch.cat([c[g, 2 * t :][:2], c[g + 8, 2 * t :][:2]]).view(torch.int32)
    shape = f"m16n8k{depth}.row.col.f32.{kind}.{kind}.f32"
    body = f"""
	mad.wide.s32 %rd0, %r0, 48, %rd0;
	ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd0];
	ld.global.v2.b32 {{%r5, %r6}}, [%rd0 + 16];
	ld.global.v4.b32 {{%r7, %r8, %r9, %r10}}, [%rd0 + 32];
	mma.sync.aligned.{shape} {{ %r11, %r12, %r13, %r14 }}, {{ %r1, %r2, %r3, %r4 }}, {{ %r5, %r6 }}, {{ %r7, %r8, %r9, %r10 }};
	mad.wide.s32 %rd1, %r0, 16, %rd1;
	st.global.v4.b32 [%rd1], {{%r11, %r12, %r13, %r14}};"""
    run(body, inputs, output)
    expected = (a.double() @ b.double() + c).float()
    for lane in range(32):
        g, t = lane // 4, lane % 4
        assert torch.equal(output[lane], torch.cat([expected[g, 2 * t :][:2], expected[g + 8, 2 * t :][:2]]))


COLUMNS = 16
DESCRIPTOR = 1 << 62 | 64 << 32  # 128-byte swizzle, 1024 bytes from 8 rows to the next


def wgmma_body(kind: str) -> str:
    """A·Bᵀ of 128 × 128 bytes by 16 × 128 bytes, in four steps of 32 bytes, two warpgroups; the first takes 0 for D."""
    registers = ", ".join(f"%r{number}" for number in range(20, 28))
    lines = [LOADS.format(expected=128 * (128 + COLUMNS)), "\tshr.u32 %r4, %r0, 7;", "\tmul.wide.u32 %rd6, %r4, 512;"]
    lines += [f"\tmov.b32 %r{number}, 0f7F800000;" for number in range(20, 28)]
    lines += ["\tsetp.ne.b32 %p2, %r1, %r1;", "\tsetp.eq.b32 %p3, %r1, %r1;", "\twgmma.fence.sync.aligned;"]
    depth, transposes = (8, "") if kind == "tf32" else (16, ", 0, 0")
    for step in range(4):
        lines.append(f"\tadd.s64 %rd7, %rd6, {DESCRIPTOR + 2 * step};")
        lines.append(f"\tmov.b64 %rd8, {DESCRIPTOR + 1024 + 2 * step};")
        shape = f"m64n{COLUMNS}k{depth}.f32.{kind}.{kind}"
        lines.append(
            f"\twgmma.mma_async.sync.aligned.{shape} {{{registers}}}, %rd7, %rd8, %p{2 + (step > 0)}, 1, 1{transposes};"
        )
    lines += ["\twgmma.commit_group.sync.aligned;", "\twgmma.wait_group.sync.aligned 0;"]
    lines += ["\tmad.wide.s32 %rd2, %r0, 32, %rd2;"]
    lines += [f"\tst.global.b32 [%rd2 + {4 * number}], %r{20 + number};" for number in range(8)]
    return "\n".join(lines)


def run_wgmma(body: str, kind: str, *, late: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What 256 threads hold, put together, and what they should."""
    width = 128 // DTYPES[kind].itemsize
    a, b, output = matrix(3, 128, width, kind), matrix(4, COLUMNS, width, kind), torch.zeros(256, 8)
    maps = {
        8 + place: TensorMap(x.data_ptr(), (len(x), width), width, x.element_size(), (len(x), width), 3)
        for place, x in enumerate((a, b))
    }
    run(body, a, b, output, threads=256, shared_bytes=66000, late=late, maps=maps)
    return gathered(output), (a.double() @ b.double().T).float()


def gathered(output: torch.Tensor) -> torch.Tensor:
    """The matrix of which each thread holds 8 numbers."""
    found = torch.zeros(128, COLUMNS)
    for thread in range(256):
        row = 64 * (thread // 128) + 16 * (thread % 128 // 32) + thread % 32 // 4
        for number in range(8):
            found[row + 8 * (number % 4 // 2), 8 * (number // 4) + thread % 4 * 2 + number % 2] = output[thread, number]
    return found


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_wgmma_of_two_warpgroups(kind: str, late: bool) -> None:
    found, expected = run_wgmma(wgmma_body(kind), kind, late=late)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


def test_wgmma_of_b_stored_across() -> None:
    """B with the numbers of one K side by side: 64 rows of 16 numbers, in boxes of 128 bytes."""
    body = wgmma_body("bf16").replace(", %rd8, ", ", %rd9, ").replace(", 1, 1, 0, 0;", ", 1, 1, 0, 1;")
    for step in range(4):  # 16 rows of 128 bytes a step, 8 rows 1024 bytes apart
        body = body.replace(f"%rd8, {DESCRIPTOR + 1024 + 2 * step};", f"%rd9, {DESCRIPTOR + 1024 + 128 * step};")
    a, b, output = matrix(3, 128, 64, "bf16"), matrix(4, 64, 64, "bf16"), torch.zeros(256, 8)
    maps = {
        8: TensorMap(a.data_ptr(), (128, 64), 64, 2, (128, 64), 3),
        9: TensorMap(b.data_ptr(), (64, 64), 64, 2, (64, 64), 3),
    }
    run(body.replace("1], 18432", "1], 24576"), a, b, output, threads=256, shared_bytes=66000, maps=maps)
    expected = (a.double() @ b[:, :16].double()).float()
    torch.testing.assert_close(gathered(output), expected, rtol=1e-6, atol=1e-5)


def test_wgmma_with_a_in_registers() -> None:
    """Each thread's A is the fragment of mma.sync; the identity as B returns it."""
    body = wgmma_body("tf32").replace("{%r20", "{%r20").replace("%rd7, %rd8", "{%r30, %r31, %r32, %r33}, %rd8")
    setting = "".join(f"\tcvt.rn.f32.u32 %r{30 + number}, %r0;\n" for number in range(4))
    found, _ = run_wgmma(body.replace("\twgmma.fence", setting + "\twgmma.fence"), "tf32", late=True)
    b = matrix(4, COLUMNS, 32, "tf32").double()
    row, column = np.arange(128)[:, None], np.arange(8)[None]
    thread = torch.tensor(32 * (row // 16) + row % 8 * 4 + column % 4).double()
    expected = sum(thread @ b[:, 8 * step :][:, :8].T for step in range(4))
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-4)


UNFENCED = "\tbar.sync 0;\n\t@%p1 st.shared::cta.b32 [%r2], %r2;\n\tbar.sync 0;\n\twgmma.fence.sync.aligned;"


@pytest.mark.parametrize(
    ("line", "other", "message"),
    [
        ("\twgmma.wait_group.sync.aligned 0;", "", "read before it is set|not waited for"),
        ("\twgmma.wait_group.sync.aligned 0;", "\twgmma.wait_group.sync.aligned 1;", "read before it is set"),
        ("\twgmma.commit_group.sync.aligned;", "", "read before it is set"),
        ("\twgmma.fence.sync.aligned;", "", "since the last wgmma.fence"),
        ("\twgmma.fence.sync.aligned;", UNFENCED, "without a fence.proxy.async"),
        ("complete, [%r1], %r2", "complete, [%r1], 1", "not waited for"),
    ],
)  # fmt: skip
def test_what_wgmma_needs(line: str, other: str, message: str) -> None:
    body = wgmma_body("bf16")
    assert line in body
    with pytest.raises(KernelError, match=message):
        run_wgmma(body.replace(line, other), "bf16", late=True)
