"""Faults in compiled kernels show: a sample of those that `ptx_mutations` can put in."""

import random
from itertools import groupby

import pytest

pytest.importorskip("triton", reason="triton comes with torch's CUDA build only")

from ptx_mutations import SEED, all_mutations, outcomes, sites, work_of
from ptx_scenes import NEVER, SURVIVES

KERNEL = """
	bar.sync 	0;
	@%p1 ld.global.b32 { %r1 }, [ %rd1 + 8 ];
	cp.async.wait_group 	2;
	setp.lt.s32 	%p2, %r1, %r2;
	@%p4 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r12], 32768;
	mbarrier.try_wait.parity.shared::cta.b64 complete, [%r37], %r1157;
	cvt.rn.bf16x2.f32 	%r5, %r6, %r7;
"""


@pytest.mark.long
def test_where_faults_can_be_put() -> None:
    after = [(kind, after) for kind, _, _, after in sites(KERNEL)]
    assert after == [
        ("barrier", ""),
        ("predicate", "@!%p1 ld.global.b32 { %r1 }, [ %rd1 + 8 ];"),
        ("offset", "@%p1 ld.global.b32 { %r1 }, [ %rd1 + 12 ];"),
        ("wait", "cp.async.wait_group \t3;"),
        ("mask", "setp.le.s32 \t%p2, %r1, %r2;"),
        ("expect_tx", "@%p4 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r12], 65536;"),
        ("predicate", "@!%p4 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r12], 32768;"),
        ("wait", "setp.eq.b32 complete, 0, 0;"),
        (
            "phase",
            "xor.b32 %r999999, %r1157, 1; mbarrier.try_wait.parity.shared::cta.b64 complete, [%r37], %r999999;",
        ),
        ("rounding", "cvt.rz.bf16x2.f32 \t%r5, %r6, %r7;"),
    ]


@pytest.mark.slow
def test_faults_show() -> None:
    drawn = sorted(random.Random(SEED + 1).sample(all_mutations(), 12), key=work_of)
    found = [pair for _, some in groupby(drawn, work_of) for pair in outcomes(list(some))]
    survivors = [mutation for mutation, result in found if result in (SURVIVES, NEVER)]
    assert len(found) == 12
    assert len(survivors) <= 1, survivors
