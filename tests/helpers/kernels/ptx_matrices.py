"""Matrices of the tensor cores' dtypes, and the copies that bring two of them into shared memory."""

import torch

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32}


def matrix(seed: int, rows: int, columns: int, kind: str) -> torch.Tensor:
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(DTYPES[kind])
    return (values.view(torch.int32) & -0x2000).view(torch.float32) if kind == "tf32" else values


LOADS = """
	setp.eq.b32 %p1, %r0, 0;
	mov.b32 %r1, 65536;
	mov.b32 %r2, 0;
	mov.b32 %r3, 16384;
	mov.b64 %rd4, m8;
	mov.b64 %rd5, m9;
	@%p1 mbarrier.init.shared::cta.b64 [%r1], 1;
	@%p1 mbarrier.init.shared::cta.b64 [%r1+8], 1;
	bar.sync 0;
	@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], {expected};
	@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r2], [%rd4, {{%r2, %r2}}], [%r1];
	@%p1 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r3], [%rd5, {{%r2, %r2}}], [%r1];
{{
	.reg .pred complete;
	waitLoop:
	mbarrier.try_wait.parity.shared::cta.b64 complete, [%r1], %r2;
	@!complete bra.uni waitLoop;
}}
"""
"""A to 0 and B to 16384, in boxes of 128 bytes a row, with the 128-byte swizzle."""
