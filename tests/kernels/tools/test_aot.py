"""`python -m rlpheads.kernels.tools.aot`: compiled for chips that are not here, judged by their machine code."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with torch's CUDA build only")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rlpheads.kernels.gpu import triton_kernels
from rlpheads.kernels.gpu.triton_tiles import KNOWN_CHIPS, chip_tiles
from rlpheads.kernels.tools import aot
from rlpheads.kernels.tools.aot_kernels import (
    ALL_SPECIALIZATIONS,
    ENTROPY,
    SPECIALIZATIONS,
    UNIFORM,
    Build,
    Variant,
    builds,
    candidate_builds,
    signature,
    specialize,
)
from rlpheads.kernels.tools.aot_sass import behind_products, compile_build, fused_exchanges
from rlpheads.kernels.tools.traffic import (
    Workload,
    cast_bytes,
    compulsory_product_bytes,
    compulsory_tile_bytes,
    modelled_product_bytes,
    modelled_tile_bytes,
)


@pytest.mark.long
def test_the_small_kernels_of_one_chip() -> None:
    for build in builds(80)[-2:]:
        report = aot.check_build(build)
        assert report.faults == []
        assert report.code.registers > 0
        assert report.code.tensor_instructions == {}


@pytest.mark.parametrize("bias", [False, True])
def test_the_pass_over_the_logits_on_one_chip(bias: bool) -> None:
    report = aot.check_build(Variant("bf16", bias=bias).build(90))
    assert report.faults == []
    assert report.code.tensor_instructions["HGMMA"] > 0
    assert 0 < report.code.registers <= 128, "two blocks must fit on a multiprocessor"


@pytest.mark.parametrize("name", ["row_shifts fp32 base pair bias", "align_tiles fp32 base moments"])
def test_the_small_kernels_do_not_spill_in_float32(name: str) -> None:
    (build,) = (build for build in builds(90) if build.name == name)
    assert aot.check_build(build).faults == []


@pytest.mark.long
def test_both_codes_of_a_size_are_judged(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch) -> None:
    """A kernel of one chip, each of its specialisations in a row."""
    small = [build for build in builds(80) if build.name == "merge_tiles bf16"]
    monkeypatch.setattr(aot, "builds", lambda chip, *, quick: small)  # noqa: ARG005
    for switches, expected in (([], SPECIALIZATIONS), (["--all-sizes"], ALL_SPECIALIZATIONS)):
        assert aot.main(["--chips", "80", "--json", str(tmp_path / "found.json"), *switches]) == 0
        assert [entry["multiples"] for entry in json.loads((tmp_path / "found.json").read_text())] == list(expected)
    assert "B, K, D" in capsys.readouterr().out


def divisible(build: Build) -> set[str]:
    """Arguments that are compiled as multiples of 16."""
    names = list(build.kernel.arg_names)
    return {names[path[0]] for path in signature(build).alignments}


def test_every_argument_is_compiled_divisible_and_not() -> None:
    """But for the buffers of exponentials, whose rows are padded to multiples of 64, and for numbers that are no integers."""
    assert set(ALL_SPECIALIZATIONS) >= set(SPECIALIZATIONS)
    assert len(set(ALL_SPECIALIZATIONS)) == 8
    for build in (build for chip in KNOWN_CHIPS for build in builds(chip)):
        types, values, _ = signature(build)
        met = [divisible(specialize(build, multiples)) for multiples in SPECIALIZATIONS]
        arguments = {name for place, name in enumerate(types) if (place,) not in values and types[name] != "fp32"}
        if build.flags.get("TMA"):
            arguments -= {"features", "weight"}
        assert met[0] - {"features", "weight"} == arguments - {"features", "weight"}
        assert met[-1] <= {"exps", "moments", "stride_e", "stride_m"}


def test_the_code_of_a_usual_shape() -> None:
    """B = 128, K = 100,000, D = 768: all multiples of 16."""
    build = Variant("bf16").build(90)
    assert "num_classes" in divisible(specialize(build, "BKD"))
    assert divisible(specialize(build, "D")) >= {"num_features", "stride_x", "stride_w"}
    assert not divisible(specialize(build, "D")) & {"num_classes", "num_rows", "start"}


def test_features_of_other_widths_allow_no_descriptor() -> None:
    build = Variant("bf16").build(90)
    assert build.flags["TMA"]
    for multiples, has_descriptor in (("BKD", True), ("D", True), ("BK", False), ("", False)):
        one = specialize(build, multiples)
        assert one.flags["TMA"] == has_descriptor
        assert signature(one).types["weight"].startswith("tensordesc") == has_descriptor


def test_a_spill_is_a_fault() -> None:
    build = Variant("bf16").build(80)
    report = aot.check_build(replace(build, options={**build.options, "maxnreg": 96}))
    assert report.code.spills > 0
    assert report.faults == [f"{report.code.spills} spills"]


def test_other_tensor_cores_than_the_chips_own_are_a_fault() -> None:
    build = Variant("bf16").build(80)
    report = aot.check_build(replace(build, tensor_cores="HGMMA"))
    assert report.faults == ["no tensor cores (HGMMA)"]


SASS = """
	.section	.text.kernel
.text.kernel:
        /*0000*/                   MOV R1, R2 ;
.L_x_1:
        /*0010*/                   HMMA.16816.F32.BF16 R4, R68.reuse, R2, R4 ;
        /*0020*/              @!P0 BRA `(.L_x_1) ;
        /*0030*/               @P0 BRA `(.L_x_2) ;
        /*0040*/                   FADD R3, R4, R5 ;
        /*0050*/                   BRA.DIV ~URZ, `(.L_x_3) ;
        /*0060*/              @!P1 EXIT ;
        /*0070*/                   EXIT ;
.L_x_2:
        /*0080*/                   FADD R3, R4, R5 ;
.L_x_4:
        /*0090*/                   FADD R3, R4, R5 ;
        /*00a0*/               @P1 BRA `(.L_x_4) ;
        /*00b0*/                   FADD R3, R4, R5 ;
        /*00c0*/                   EXIT ;
.L_x_3:
        /*00d0*/                   EXIT ;
.L_x_5:
        /*00e0*/                   BRA `(.L_x_1) ;
"""


def test_the_shortest_way_behind_the_products() -> None:
    """What only warps take that have come apart is no way, and an EXIT under a predicate no end."""
    assert behind_products(SASS) == 5
    assert behind_products(SASS.replace("@P0 BRA", "BRA")) == 6
    assert (
        behind_products(SASS.replace("@!P0 BRA `(.L_x_1)", "NOP")) == 6
    )  # no loop, and code behind the end that leads back
    with pytest.raises(ValueError, match="no way"):
        behind_products(SASS.replace("EXIT", "NOP"))


@triton.jit
def sum_of_products_kernel(out, a, b, NUMBERS: tl.constexpr):
    places = tl.arange(0, NUMBERS)
    tl.store(out, tl.sum(tl.load(a + places) * tl.load(b + places), 0))


def test_a_kernel_whose_threads_round_one_sum_differently() -> None:
    """Where a thread has one product, the compiler fuses it with the sum's first exchange; not where it has several."""
    for numbers, fused in ((128, 1), (512, 0)):
        types = dict.fromkeys(("out", "a", "b"), "*fp32") | {"NUMBERS": "constexpr"}
        source = ASTSource(fn=sum_of_products_kernel, signature=types, constexprs={(3,): numbers}, attrs={})
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
        assert fused_exchanges(compiled.asm["ptx"]) == fused


def test_sums_that_threads_round_differently_are_found() -> None:
    """a·b + what the partner sent, and its a·b + what was sent here, are two roundings of one sum."""
    ptx = """
	mul.f32 	%r1, %r2, %r3;
	shfl.sync.bfly.b32 	%r4, %r1, 16, 31, -1;
	mov.b32 	%r5, %r4;
	{0}
"""
    for text, number in (
        ("fma.rn.f32 \t%r6, %r2, %r3, %r5;", 1),
        ("add.f32 \t%r6, %r1, %r5;", 1),  # the assembler may fuse it
        ("mov.b64 \t%rd1, {{%r4, %r9}};\n\tmov.b64 \t%rd2, {{%r1, %r8}};\n\tadd.f32x2 \t%rd3, %rd2, %rd1;", 1),
        ("add.rn.f32 \t%r6, %r1, %r5;", 0),
        ("add.f32 \t%r6, %r7, %r5;\n\tfma.rn.f32 \t%r5, %r2, %r3, %r6;", 0),
    ):
        assert fused_exchanges(ptx.format(text)) == number, text


@pytest.mark.long
def test_sums_of_products_over_the_rows_are_rounded_alike() -> None:
    """By every thread that holds them: `class_sums` and `scale_features` add products in a reduction."""
    for chip in KNOWN_CHIPS:
        for build in builds(chip):
            if build.kernel.__name__ in ("class_sums_kernel", "scale_features_kernel"):
                assert compile_build(build).fused_exchanges == 0, (build.name, chip)


@pytest.mark.long
def test_what_depends_on_a_candidates_tiles() -> None:
    """The widest of one chip, and the kernel that puts its exponentials right."""
    chosen = [build for build in candidate_builds(80, quick=True) if "256" in build.name and "merge" not in build.name]
    assert [build.kernel.__name__ for build in chosen] == [
        "class_tiles_kernel",
        "align_tiles_kernel",
        "align_tiles_kernel",
    ]
    assert [fault for build in chosen for fault in aot.check_build(build).faults] == []


@pytest.mark.slow
@pytest.mark.parametrize("chip", KNOWN_CHIPS)
@pytest.mark.parametrize(("switches", "expected"), [([], builds), (["--candidates"], candidate_builds)])
def test_every_kernel(chip: int, switches: list[str], expected: Callable[..., list[Build]], tmp_path: Path) -> None:
    """Known spills: docs/gpu_kernels.md, "Compiling ahead of time"; none where D alone is a multiple of 16."""
    aot.main(["--chips", str(chip), "--json", str(tmp_path / "found.json"), *switches])
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == len(expected(chip)) * len(SPECIALIZATIONS)
    faults = [(entry["multiples"], fault) for entry in found for fault in entry["faults"]]
    assert [fault for multiples, fault in faults if multiples == "D" or not fault.endswith("spills")] == []


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("rows", [64, 1024])
def test_the_model_never_counts_less_than_is_compulsory(rows: int, itemsize: int) -> None:
    tiles = chip_tiles(80, torch.bfloat16, rows)[0]
    load = Workload(rows, 768, 100_000, itemsize, 4, UNIFORM)
    assert modelled_tile_bytes(load, tiles) > compulsory_tile_bytes(load)
    assert modelled_product_bytes(load) > compulsory_product_bytes(load)


def test_narrow_tiles_cost_bytes() -> None:
    """A quarter of the classes in a tile makes four times the statistics, beyond the bound at large batches."""
    tiles = chip_tiles(80, torch.bfloat16, 1024)[0]
    build: Build = replace(Variant("bf16").build(80), tiles=replace(tiles, classes=32))
    assert max(ratio or 0 for ratio in aot.byte_ratios(build)) > aot.MAX_BYTES_RATIO


def test_every_argument_of_every_kernel_has_a_type() -> None:
    for build in (build for chip in KNOWN_CHIPS for build in (*builds(chip), *candidate_builds(chip))):
        types, values, _ = signature(build)
        assert list(types) == list(build.kernel.arg_names)
        fixed = {(place,) for place, kind in enumerate(types.values()) if kind == "constexpr"}
        assert fixed == {path for path in values if len(path) == 1}
    assert triton_kernels.class_tiles_kernel in [build.kernel for build in builds(90)]


def test_the_cast_of_the_weight_is_counted() -> None:
    """float32 to bfloat16, 6 bytes a number: 461 MB and two thirds of the compulsory bytes at B = 128, K = 100,000."""
    load = Workload(128, 768, 100_000, 2, 4, Variant("bf16").outputs)
    assert cast_bytes(load) == cast_bytes(load, passes_a_version=1) == 100_000 * 768 * 6
    assert cast_bytes(load, passes_a_version=4) == 25_000 * 768 * 6
    compulsory = compulsory_tile_bytes(load) + compulsory_product_bytes(load)
    assert (compulsory + cast_bytes(load)) / compulsory == pytest.approx(1.67, abs=0.005)
    assert cast_bytes(replace(load, outputs=ENTROPY)) == cast_bytes(load)
    assert cast_bytes(replace(load, outputs=ENTROPY, rows=1024)) == (200_000 + 256) * 768 * 6
    assert cast_bytes(replace(load, itemsize=4)) == cast_bytes(replace(load, weight_itemsize=2)) == 0
    _, whole, with_cast = (ratio or 0 for ratio in aot.byte_ratios(Variant("bf16").build(90)))
    assert with_cast > 1.6 > 1.1 > whole > 1
