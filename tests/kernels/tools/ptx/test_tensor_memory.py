"""tcgen05 against plain matrix products, and what it needs."""

import pytest
import torch
from ptx_matrices import DTYPES, LOADS, matrix
from ptx_programs import run

from rlpheads.kernels.tools.ptx.asynchronous_copies import TensorMap
from rlpheads.kernels.tools.ptx.checked_memory import KernelError

COLUMNS = 32
DESCRIPTOR = 2 << 61 | 1 << 46 | 64 << 32
KINDS = {"bf16": ("f16", 1), "f16": ("f16", 0), "tf32": ("tf32", 2)}
WAIT = """{
	.reg .pred complete;
	waitLoop:
	mbarrier.try_wait.parity.shared::cta.b64 complete, [%r1+8], %r2;
	@!complete bra.uni waitLoop;
}"""

STORE = "tcgen05.st.sync.aligned.32x32b.x32.b32 "


def listed(first: int, number: int) -> str:
    return "{" + ", ".join(f"%r{first + place}" for place in range(number)) + "}"


def body(kind: str, rows: int) -> str:
    """D = 1 + A·Bᵀ, 128 bytes deep; the accumulator is written and read by the threads, A and B come by tensor copies."""
    name, code = KINDS[kind]
    instruction = 1 << 4 | code << 7 | code << 10 | COLUMNS // 8 << 17 | rows // 16 << 24
    shape, offset = ("32x32b.x32", "") if rows == 128 else ("16x32bx2.x16", ", 16")
    number = 32 if rows == 128 else 16
    lines = [
        "\tsetp.lt.u32 %p4, %r0, 32;",
        "\tmov.b32 %r5, 60000;",
        "\t@%p4 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r5], 64;",
        "\tbar.sync 0;",
        "\tld.shared.b32 %r6, [%r5];",
        LOADS.format(expected=128 * (rows + COLUMNS)),
        "\tshr.u32 %r7, %r0, 5;",
        "\tshl.b32 %r7, %r7, 21;",
        "\tadd.s32 %r8, %r6, %r7;",
        *(f"\tmov.b32 %r{100 + place}, 0f3F800000;" for place in range(number)),
        f"\ttcgen05.st.sync.aligned.{shape}.b32 [%r8 + 0]{offset}, {listed(100, number)};",
        "\ttcgen05.wait::st.sync.aligned;",
        "\tbar.sync 0;",
        "\tsetp.eq.b32 %p3, %r1, %r1;",
        f"\tmov.b32 %r9, {instruction};",
    ]
    for step in range(4):
        lines.append(f"\tmov.b64 %rd7, {DESCRIPTOR + 2 * step};")
        lines.append(f"\tmov.b64 %rd8, {DESCRIPTOR + 1024 + 2 * step};")
        lines.append(f"\t@%p1 tcgen05.mma.cta_group::1.kind::{name} [ %r6 + 0 ], %rd7, %rd8, %r9, %p3;")
    lines += [
        "\tadd.s32 %r10, %r1, 8;",
        "\t@%p1 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%r10];",
        WAIT,
        f"\ttcgen05.ld.sync.aligned.{shape}.b32 {listed(200, number)}, [%r8 + 0]{offset};",
        "\ttcgen05.wait::ld.sync.aligned;",
        f"\tmad.wide.s32 %rd2, %r0, {4 * number}, %rd2;",
        *(f"\tst.global.b32 [%rd2 + {4 * place}], %r{200 + place};" for place in range(number)),
        "\tbar.sync 0;",
        "\t@%p4 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;",
        "\t@%p4 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r6, 64;",
    ]
    return "\n".join(lines)


def run_tcgen05(text: str, kind: str, rows: int, *, late: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = 128 // DTYPES[kind].itemsize
    a, b = matrix(5, rows, width, kind), matrix(6, COLUMNS, width, kind)
    output = torch.zeros(128, 32 if rows == 128 else 16)
    maps = {
        8 + place: TensorMap(x.data_ptr(), (len(x), width), width, x.element_size(), (len(x), width), 3)
        for place, x in enumerate((a, b))
    }
    run(text, a, b, output, threads=128, shared_bytes=66000, late=late, maps=maps)
    if rows == 64:  # a warp holds 16 rows: its lower lanes columns 0 to 15, its upper lanes 16 to 31
        output = output.view(4, 2, 16, 16).transpose(1, 2).reshape(64, 32)
    return output, (1 + a.double() @ b.double().T).float()


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize(("kind", "rows"), [("bf16", 128), ("bf16", 64), ("f16", 128), ("tf32", 64)])
def test_a_product_in_tensor_memory(kind: str, rows: int, late: bool) -> None:
    found, expected = run_tcgen05(body(kind, rows), kind, rows, late=late)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("rows", [128, 64])
def test_a_in_tensor_memory(rows: int) -> None:
    """A is what the threads stored, ones in every column: row sums of B."""
    text = body("tf32", rows)
    for step in range(4):
        text = text.replace(f"%rd7, {DESCRIPTOR + 2 * step};", f"%rd7, {step};")
    text = text.replace("[ %r6 + 0 ], %rd7,", "[ %r6 + 32 ], [ %r6 + 0 ],").replace("[%r8 + 0]", "[%r8 + 32]")
    text = text.replace("[%r8 + 32]", "[%r8 + 0]", 1)
    store = text[text.index("\ttcgen05.st") : text.index("\ttcgen05.wait::st")]
    text = text.replace(store, store + store.replace("[%r8 + 0]", "[%r8 + 32]"))
    found, _ = run_tcgen05(text, "tf32", rows, late=True)
    expected = 1 + matrix(6, COLUMNS, 32, "tf32").double().sum(1)
    torch.testing.assert_close(found.double(), expected.expand(rows, -1), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("line", "other", "message"),
    [
        ("\ttcgen05.wait::ld.sync.aligned;", "", "read before it is set"),
        ("\ttcgen05.wait::st.sync.aligned;", "", "not waited for"),
        (WAIT, "", "not waited for"),
        ("\ttcgen05.wait::st.sync.aligned;\n\tbar.sync 0;", "\ttcgen05.wait::st.sync.aligned;", "race"),
        ("\t@%p4 tcgen05.dealloc", "\t@%p2 tcgen05.dealloc", "%p2 is read before it is set"),
        ("\t@%p4 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r6, 64;", "", "keeps tensor memory"),
        (STORE + "[%r8 + 0]", STORE + "[%r8 + 40]", "not allocated"),
        (STORE + "[%r8 + 0]", STORE + "[%r6 + 0]", "not its own"),
        ("complete, [%r1], %r2", "complete, [%r1], 1", "not waited for"),
        ("[%r10];", "[%r1];", "deadlock|not waited for"),
        ("setp.lt.u32 %p4, %r0, 32", "setp.le.u32 %p4, %r0, 32", "a part of a warp"),
    ],
)  # fmt: skip
def test_what_tcgen05_needs(line: str, other: str, message: str) -> None:
    text = body("bf16", 128)
    assert line in text
    with pytest.raises(KernelError, match=message):
        run_tcgen05(text.replace(line, other, 1), "bf16", 128, late=True)
