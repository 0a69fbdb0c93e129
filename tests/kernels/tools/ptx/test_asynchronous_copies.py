"""cp.async, tensor copies and mbarriers: their results, and each thing that can be forgotten."""

import pytest
import torch
from ptx_programs import run

from rlpheads.kernels.tools.ptx.asynchronous_copies import TensorMap
from rlpheads.kernels.tools.ptx.checked_memory import KernelError

CP_ASYNC = """
	mad.wide.s32 %rd0, %r0, 16, %rd0;
	mad.wide.s32 %rd1, %r0, 16, %rd1;
	shl.b32 %r1, %r0, 4;
	setp.lt.s32 %p1, %r0, 30;
	selp.b32 %r2, 16, 4, %p1;
	cp.async.cg.shared.global [ %r1 + 0 ], [ %rd0 + 0 ], 0x10, %r2;
	cp.async.commit_group;
	cp.async.ca.shared.global [ %r1 + 512 ], [ %rd0 + 0 ], 0x8, 8;
	cp.async.commit_group;
	cp.async.wait_group 1;
	bar.sync 0;
	xor.b32 %r3, %r1, 16;
	ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3];
	cp.async.wait_group 0;
	ld.shared.b32 %r5, [%r1 + 516];
	st.global.v4.b32 [%rd1], {%r4, %r5, %r6, %r7};"""


@pytest.mark.parametrize("late", [True, False])
def test_cp_async_fills_with_zeros(late: bool) -> None:
    source, target = torch.arange(1, 129, dtype=torch.int32), torch.zeros(128, dtype=torch.int32)
    run(CP_ASYNC, source, target, shared_bytes=1024, late=late)
    copied = source.view(32, 4).clone()
    copied[30:, 1:] = 0
    expected = copied[torch.arange(32) ^ 1]
    expected[:, 1] = source.view(32, 4)[:, 1]
    assert torch.equal(target.view(32, 4), expected)


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize(
    ("line", "other", "message"),
    [
        ("cp.async.wait_group 1;", "cp.async.wait_group 2;", "not waited for"),
        ("bar.sync 0;", "", "race: reads"),
        ("cp.async.wait_group 0;", "", "not waited for"),
        ("selp.b32 %r2, 16, 4, %p1;", "mov.b32 %r2, 17;", "more than its size"),
    ],
)
def test_what_cp_async_needs(line: str, other: str, message: str, late: bool) -> None:
    with pytest.raises(KernelError, match=message):
        run(CP_ASYNC.replace(line, other), torch.zeros(128), torch.zeros(128), shared_bytes=1024, late=late)


TENSOR_COPY = """
	setp.eq.b32 %p1, %r0, 0;
	mov.b32 %r1, 4096;
	mov.b32 %r2, 0;
	mov.b32 %r3, 5;
	mov.b32 %r4, -2;
	mov.b64 %rd2, m9;
	cvta.param.u64 %rd3, %rd2;
	@%p1 mbarrier.init.shared::cta.b64 [%r1], 1;
	bar.sync 0;
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 1024;
	@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r2], [%rd3, {%r4, %r3}], [%r1];
{
	.reg .pred complete;
	waitLoop:
	mbarrier.try_wait.parity.shared::cta.b64 complete, [%r1], %r2;
	@!complete bra.uni waitLoop;
}
	bar.sync 0;
	@%p1 mbarrier.inval.shared::cta.b64 [%r1];
	shl.b32 %r5, %r0, 2;
	ld.shared.b32 %r6, [%r5];
	mad.wide.s32 %rd1, %r0, 4, %rd1;
	st.global.b32 [%rd1], %r6;"""


def tensor_copy(body: str = TENSOR_COPY, *, swizzle: int = 0, late: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """A box of 8 rows of 128 bytes at row 5, column −2 of 10 × 40; and what was copied."""
    source, target = torch.arange(400, dtype=torch.int32).view(10, 40), torch.zeros(256, dtype=torch.int32)
    maps = {9: TensorMap(source.data_ptr(), (10, 40), 40, 4, (8, 32), swizzle)}
    run(body, source, target, threads=256, shared_bytes=8192, late=late, maps=maps)
    box = torch.zeros(8, 32, dtype=torch.int32)
    box[:5, 2:] = source[5:10, :30]
    return box, target.view(8, 32)


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("swizzle", [0, 1, 2, 3])
def test_a_tensor_copy(swizzle: int, late: bool) -> None:
    """16-byte pieces of row r stand at place p xor (r mod 2, 4 or 8) over the rows of 128 bytes."""
    box, found = tensor_copy(swizzle=swizzle, late=late)
    rows, places = torch.arange(8)[:, None], torch.arange(8)[None]
    expected = box.view(8, 8, 4)[rows, places ^ (rows % 2**swizzle)]
    assert torch.equal(found.view(8, 8, 4), expected)


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize(
    ("line", "other", "message"),
    [
        ("_, [%r1], 1024", "_, [%r1], 2048", "deadlock"),
        ("_, [%r1], 1024", "_, [%r1], 512", "deadlock"),
        ("complete, [%r1], %r2", "complete, [%r1], 1", "invalidates an mbarrier|deadlock"),
        ("\t@%p1 mbarrier.init", "\t@!%p1 mbarrier.init", "threads execute what one must"),
        ("\tbar.sync 0;\n\t@%p1 mbarrier.arrive", "\t@%p1 mbarrier.arrive", "race"),
        ("mbarrier.init.shared::cta.b64 [%r1]", "mbarrier.init.shared::cta.b64 [%r1+8]", "no mbarrier"),
        ("mov.b32 %r2, 0;", "mov.b32 %r2, 0; add.s32 %r2, %r2, 64;", "no multiple of 128"),
        ("mov.b32 %r2, 0;", "mov.b32 %r2, 0; @%p1 st.shared::cta.b32 [%r2], %r2;", "fence.proxy.async"),
    ],
)
def test_what_a_tensor_copy_needs(line: str, other: str, message: str, late: bool) -> None:
    assert line in TENSOR_COPY
    with pytest.raises(KernelError, match=message):
        tensor_copy(TENSOR_COPY.replace(line, other), late=late)


def test_a_copy_that_nobody_waits_for() -> None:
    body = TENSOR_COPY[: TENSOR_COPY.index("{\n")] + TENSOR_COPY[TENSOR_COPY.index("}\n\tbar") + 2 :]
    with pytest.raises(KernelError, match="on which an operation will complete|not waited for"):
        tensor_copy(body)
