"""Ahead-of-time builds of every kernel of `impl="triton"`: flags, argument types and tiles, as it is launched on each chip."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from typing import Any, NamedTuple

import torch

from rlpheads.kernels.gpu import (
    triton_gradient_kernels,
    triton_gradient_launch,
    triton_kernels,
    triton_launch,
    triton_row_kernels,
    triton_terms,
    triton_update_kernels,
    triton_update_launch,
)
from rlpheads.kernels.gpu.slab_plan import PassOutputs
from rlpheads.kernels.gpu.triton_labels import SOURCES_PER_LAUNCH
from rlpheads.kernels.gpu.triton_tiles import OVERSHOOT, TileConfig, chip_tiles, without_descriptors

TYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
OWN_TENSOR_CORES = {80: "HMMA", 90: "HGMMA", 100: "UTC"}
"""Instructions of each chip's own generation. A tile of 16 rows is too small for those of sm_90 and later."""
SIZES = ("num_", "start", "stride_", "rows_apart", "classes_apart")
"""How the names of arguments begin that are integers."""
GIVEN_WITH = {
    "bias": "HAS_BIAS",
    "factor": "HAS_FACTOR",
    "first_weight": "PAIR",
    "moment_factor": "MOMENT",
    "weight": "STEP",
    "left_out": "STEP",
    "first": "HAS_FIRST",
    "second": "ADAM",
    "rates": "ADAM",
    "copy": "COPY",
}
"""Arguments that are None without a flag."""
SPECIALIZATIONS = ("BKD", "D", "")
"""Which of rows B, labels K and features D are multiples of 16. Triton compiles a kernel for each case that it meets at run
time; in these three every argument is met both divisible and not."""
ALL_SPECIALIZATIONS = tuple("".join(sizes) for sizes in chain(*(combinations("BKD", n) for n in (3, 2, 1, 0))))
SIZE_OF_ARGUMENT = {
    **dict.fromkeys(("num_rows", "num_kept_rows", "num_places", "rows_apart", "indices", "labels"), "B"),
    **dict.fromkeys(
        ("num_classes", "num_labels", "num_tiles", "start", "classes_apart", "rows", "strides", "widths", "bias"), "K"
    ),
    **dict.fromkeys(
        (
            "num_features",
            "stride_x",
            "stride_w",
            "stride_g",
            "features",
            "weight",
            "gradient",
            "scaled",
            "first",
            "second",
        ),
        "D",
    ),
    "copy": "D",
    **dict.fromkeys(("stride_e", "stride_m", "exps", "moments"), ""),
}
"""The size that must be a multiple of 16 for an argument, or a pointer's address, to be one; none where it always is, as the
buffers of exponentials are padded. All other arguments point to statistics of rows, and go with B. N, the length of a label
table, goes with K."""


@dataclass(frozen=True)
class Build:
    """One kernel to compile for one chip."""

    name: str
    kernel: Any
    chip: int
    flags: dict[str, Any]
    """Values of the kernel's compile-time arguments."""
    pointers: Mapping[str, str | tuple[str, ...]]
    """Types of its other arguments, where these are no float32 pointers or integers; "constexpr" in a tuple is a None."""
    options: dict[str, int]
    tensor_cores: str = ""
    """How the tensor-core instructions begin that it must use; empty where it multiplies no matrices."""
    tiles: TileConfig | None = None
    """Of the pass over the logits, whose bytes are modelled."""
    tiles_of_launch: TileConfig | None = None
    """Of every launch of `class_tiles`."""
    itemsize: int = 2
    multiples: str = "D"
    """Which of the sizes B, K and D are multiples of 16."""
    outputs: PassOutputs = field(default_factory=lambda: PassOutputs(products=True, moments=False, sum_logits=False))


@dataclass(frozen=True)
class Variant:
    """One specialisation of the pass over the logits."""

    name: str
    dtype: torch.dtype = torch.bfloat16
    outputs: PassOutputs = PassOutputs(products=True, moments=False, sum_logits=False)  # noqa: RUF009 - a tuple
    pair: bool = False
    bias: bool = False
    rows: int = 1024
    recompute: bool = False
    """Backward: the exponentials alone."""
    precision: str = "tf32"

    def tiles(self, chip: int) -> tuple[TileConfig, ...]:
        """Tiles that a chip can have for it; the first are taken where none were measured."""
        base = self.outputs.has_base or self.outputs.moments
        return chip_tiles(chip, self.dtype, self.rows, pair=self.pair, base=base, bias=self.bias)

    def build(self, chip: int, number: int = 0) -> Build:
        """`class_tiles` for a chip, with the first tiles or others that it can have."""
        tiles = self.tiles(chip)[number]
        moments = self.outputs.moments and not self.recompute
        flags = {
            **_flags(self.dtype, PAIR=self.pair, HAS_BIAS=self.bias, HAS_BASE=self.outputs.has_base, MOMENT=moments),
            "ROWS": tiles.rows,
            "CLASSES": tiles.classes,
            "FEATURES": tiles.features,
            "TMA": tiles.tma,
            "STATISTICS": not self.recompute,
            "KEEP": True,
            "KEEP_MOMENT": moments,
            "PRECISION": self.precision,
            "SUM_LOGITS": self.outputs.sum_logits and not self.recompute,
        }
        dtype = TYPE_NAMES[self.dtype]
        pointers = dict.fromkeys(("features", "weight", "exps", "moments"), f"*{dtype}")
        if tiles.tma:
            pointers["features"] = f"tensordesc<{dtype}[{tiles.rows},{tiles.features}]>"
            pointers["weight"] = f"tensordesc<{dtype}[{tiles.classes},{tiles.features}]>"
        return Build(
            f"class_tiles {self.name}{f', {tiles}' if number else ''}",
            triton_kernels.class_tiles_kernel,
            chip,
            flags,
            pointers,
            triton_launch.compile_options(tiles),
            tensor_cores=OWN_TENSOR_CORES[chip],
            tiles=None if self.recompute else tiles,
            tiles_of_launch=tiles,
            itemsize=self.dtype.itemsize,
            outputs=self.outputs,
        )


UNIFORM = PassOutputs(products=True, moments=False, sum_logits=True)
ENTROPY = PassOutputs(products=True, moments=True, sum_logits=False)
VARIANTS = (
    Variant("bf16"),
    Variant("bf16, 64 rows", rows=64),
    Variant("bf16 pair", pair=True),
    Variant("bf16 bias", bias=True),
    Variant("bf16 uniform", outputs=UNIFORM),
    Variant("bf16 uniform bias", outputs=UNIFORM, bias=True),
    Variant("bf16 uniform pair bias", outputs=UNIFORM, pair=True, bias=True),
    Variant("bf16 uniform pair bias, 64 rows", outputs=UNIFORM, pair=True, bias=True, rows=64),
    Variant("bf16 entropy", outputs=ENTROPY),
    Variant("bf16 entropy bias", outputs=ENTROPY, bias=True),
    Variant("bf16 entropy pair bias", outputs=ENTROPY, pair=True, bias=True),
    Variant("bf16 recompute", recompute=True),
    Variant("bf16 recompute, base", outputs=UNIFORM, pair=True, bias=True, recompute=True),
    Variant("fp16", dtype=torch.float16),
    Variant("tf32", dtype=torch.float32),
    Variant("tf32 entropy pair bias", dtype=torch.float32, outputs=ENTROPY, pair=True, bias=True),
    Variant("fp32", dtype=torch.float32, precision="tf32x3"),
    Variant("fp32 entropy pair bias", dtype=torch.float32, outputs=ENTROPY, pair=True, bias=True, precision="tf32x3"),
)


def builds(chip: int, *, quick: bool = False) -> list[Build]:
    """All kernels for a chip, with the tiles that are taken where none were measured; with `quick` the first of each kind."""
    passes = [variant.build(chip) for variant in (VARIANTS[:1] if quick else VARIANTS)]
    gathers = _gather_builds(chip)
    updates = _update_builds(chip)
    return [
        *passes,
        *(gathers[:1] if quick else gathers),
        *(updates[:2] if quick else updates),
        *_row_builds(chip, quick=quick),
    ]


def specialize(build: Build, multiples: str) -> Build:
    """The same for sizes of which these are multiples of 16; others of D allow no tensor descriptor (TMA)."""
    if "D" in multiples or build.tiles_of_launch is None:
        return replace(build, multiples=multiples)
    tiles, dtype = without_descriptors(build.tiles_of_launch), build.pointers["exps"]
    pointers = {**build.pointers, "features": dtype, "weight": dtype}
    flags = {**build.flags, "TMA": False, "ROWS": tiles.rows}
    options = triton_launch.compile_options(tiles)
    return replace(build, multiples=multiples, flags=flags, pointers=pointers, options=options)


def candidate_builds(chip: int, *, quick: bool = False) -> list[Build]:
    """The kernels that depend on tiles, with every other candidate of `tune`; with `quick` those of one variant."""
    variants = VARIANTS[:1] if quick else VARIANTS
    passes = [variant.build(chip, number) for variant in variants for number in range(1, len(variant.tiles(chip)))]
    widths = {
        (variant.dtype, tiles.classes)
        for variant in variants
        for tiles in variant.tiles(chip)
        if tiles.classes != variant.tiles(chip)[0].classes
    }
    kinds = [_merge_kernel(classes) for classes in sorted({classes for _, classes in widths})]
    kinds += [_align_kernel(dtype, classes) for dtype, classes in sorted(widths, key=str)]
    noted = [kind._replace(note=f"{next(iter(kind.shape.values()))} classes") for kind in kinds]
    return [*passes, *(_row_build(chip, kind, is_on) for kind in noted for is_on in (False, True))]


def _flags(dtype: torch.dtype, **flags: Any) -> dict[str, Any]:
    return {"LIMIT": OVERSHOOT[dtype], "PRECISION": "tf32", "EMULATED": False, **flags}


def _gather_builds(chip: int) -> list[Build]:
    """The gather of as many heads as a launch takes: of tables alone, and with a plain tensor of labels between."""
    num = SOURCES_PER_LAUNCH
    numbers = {"strides": ("i32",) * num, "widths": ("i32",) * num}
    tables = {"rows": ("*i64",) * num, "indices": ("*i64",) * num, **numbers}
    mixed = {"rows": ("*i32", "*i64") * (num // 2), "indices": ("*i32", "constexpr") * (num // 2), **numbers}
    tile = dict(triton_launch.GATHER_TILE)
    options, flags = {"num_warps": tile.pop("num_warps")}, {"SOURCES": num, **tile}
    kernel = triton_row_kernels.gather_labels_kernel
    return [
        Build(f"gather_labels {name}", kernel, chip, flags, pointers, options)
        for name, pointers in (("by table", tables), ("by table or tensor", mixed))
    ]


class _RowKernel(NamedTuple):
    """A kernel beside the pass over the logits, which is compiled with all of its switches off and with all on."""

    kernel: Any
    name_with_switches: str
    """Suffix of its name with all on."""
    switches: tuple[str, ...]
    shape: dict[str, int]
    tensor_cores: str = ""
    gradient: tuple[str, str] = ("*fp32", "*fp32")
    """Type of the gradient that it writes, off and on."""
    dtype: torch.dtype = torch.bfloat16
    """Of the operands, and so of the exponentials."""
    note: str = ""
    flags: Mapping[str, Any] = {}
    """Compile-time arguments beside the switches."""


def _merge_kernel(num_classes: int) -> _RowKernel:
    shape = {"TILE_CLASSES": num_classes, **triton_launch.MERGE_TILE}
    switches = ("MOMENT", "SUM_LOGITS", "HAS_BASE")
    return _RowKernel(triton_row_kernels.merge_tiles_kernel, "moments, logits, base", switches, shape)


def _align_kernel(dtype: torch.dtype, num_classes: int) -> _RowKernel:
    shape = {"CLASSES": num_classes, **triton_launch.ALIGN_TILE}
    return _RowKernel(triton_row_kernels.align_tiles_kernel, "base moments", ("HAS_BASE", "MOMENT"), shape, dtype=dtype)


def _row_builds(chip: int, *, quick: bool = False) -> list[Build]:
    half, wide = (chip_tiles(chip, dtype, 1024)[0].classes for dtype in (torch.bfloat16, torch.float32))
    kernels, tiles = triton_gradient_kernels, triton_gradient_launch
    shifts = _RowKernel(
        *(triton_row_kernels.row_shifts_kernel, "base pair bias", ("HAS_BASE", "PAIR", "HAS_BIAS")),
        *(triton_launch.SHIFT_TILE, "HMMA"),
    )
    scale = _RowKernel(
        kernels.scale_features_kernel, "base", ("HAS_BASE",), tiles.SCALE_TILE, flags={"HAS_FACTOR": False}
    )
    of_features = _RowKernel(kernels.feature_gradients_kernel, "pair", ("PAIR",), tiles.FEATURE_TILE)
    terms = _RowKernel(triton_terms.row_terms_kernel, "pair", ("PAIR",), tiles.TERMS_TILE)
    few_labels = {"ROWS": tiles.WRITTEN_ENTRIES // 64, "CLASSES": 64, "num_warps": 4}
    written = _RowKernel(triton_terms.written_rows_kernel, "pair", ("PAIR",), few_labels)
    narrow, for_both = ("*fp32", "*bf16"), {"FOR_CLASSES": True, "FOR_FEATURES": True}
    kinds = [
        shifts,
        shifts._replace(dtype=torch.float32),
        _RowKernel(triton_row_kernels.exact_shifts_kernel, "", (), triton_launch.EXACT_TILE),
        _merge_kernel(half),
        _RowKernel(triton_row_kernels.merge_ranges_kernel, "pair", ("PAIR",), tiles.TERMS_TILE),
        _align_kernel(torch.bfloat16, half),
        _align_kernel(torch.float32, wide),
        *(
            of_rows._replace(note=kind, flags={"KIND": triton_terms.KINDS.index(kind), **for_both})
            for of_rows in (terms, written)
            for kind in ("unlikelihood", "uniform", "entropy")
        ),
        *(
            of_features._replace(
                note=note,
                flags={
                    "MOMENT": note == "moments",
                    "UNIFORM": note == "uniform",
                    "OPERAND": tiles.OPERANDS[torch.bfloat16],
                },
            )
            for note in ("", "uniform", "moments")
        ),
        _RowKernel(kernels.weigh_features_kernel, "", (), tiles.FEATURE_TILE),
        scale,
        scale._replace(dtype=torch.float16, note="factor", switches=(), flags={"HAS_FACTOR": True, "HAS_BASE": False}),
        _RowKernel(kernels.class_sums_kernel, "base", ("HAS_BASE",), tiles.SUM_TILE, gradient=narrow),
        _RowKernel(kernels.add_label_rows_kernel, "narrow", ("SUMS_GIVEN",), tiles.LABEL_TILE, gradient=narrow),
    ]
    return [
        _row_build(chip, kind, is_on)
        for kind in kinds
        for is_on in ((False, True) if kind.switches and not quick else (False,))
    ]


def _row_build(chip: int, kind: _RowKernel, is_on: bool) -> Build:
    flags = _flags(kind.dtype, FIRST=not is_on, **dict.fromkeys(kind.switches, is_on), **kind.flags, **kind.shape)
    flags["PRECISION"] = triton_launch.matmul_precision(kind.dtype)
    flags["OPERAND"] = triton_gradient_launch.OPERANDS[kind.dtype]
    options = {"num_warps": flags.pop("num_warps")}
    dtype = TYPE_NAMES[kind.dtype]
    pointers: dict[str, str | tuple[str, ...]] = {
        **dict.fromkeys(("features", "weight", "exps", "moments", "scaled", "out"), f"*{dtype}"),
        "gradient": kind.gradient[is_on],
        "order": "*i64",
        "hit": "*u1",  # as torch.bool arrives
        "values": ("*fp32",) * 6,
    }
    named = (kind.kernel.__name__.removesuffix("_kernel"), dtype, kind.note, kind.name_with_switches if is_on else "")
    return Build(" ".join(filter(None, named)), kind.kernel, chip, flags, pointers, options, kind.tensor_cores)


def _update_builds(chip: int) -> list[Build]:
    """Adam's count, and steps in tiles: Adam's for every type of operands, the others', and none."""
    steps = {
        "adam": {"STEP": True, "ADAM": True, "HAS_FIRST": True},
        "sgd": {"STEP": True},
        "momentum": {"STEP": True, "MOMENTUM": True, "HAS_FIRST": True},
        "nesterov": {"STEP": True, "MOMENTUM": True, "HAS_FIRST": True, "NESTEROV": True},
        "survey": {},
    }
    half, single, wide = torch.bfloat16, torch.float16, torch.float32
    kinds = [("adam", half, "tf32"), ("adam", single, "tf32"), ("adam", wide, "tf32"), ("adam", wide, "tf32x3")]
    kinds += [(name, half, "tf32") for name in steps if name != "adam"]
    count = Build(
        *("count_step", triton_update_kernels.count_step_kernel, chip, {}),
        *({"lr": "fp32", "first_share": "fp32", "second_share": "fp32", "left_out": "*u1"}, {"num_warps": 1}),
    )
    return [count, *(_update_build(chip, *kind, steps[kind[0]]) for kind in kinds)]


def _update_build(chip: int, name: str, dtype: torch.dtype, precision: str, flags: dict[str, bool]) -> Build:
    tile = triton_update_launch.update_tile(dtype)
    options = {option: tile.pop(option) for option in ("num_warps", "num_stages")}
    kernel, operand = triton_update_kernels.update_tiles_kernel, TYPE_NAMES[dtype]
    pointers = {
        **dict.fromkeys(("exps", "scaled", "features", "copy"), f"*{operand}"),
        **{argument: "fp32" for argument in kernel.arg_names if argument.startswith("number_")},
        "order": "*i64",
        "left_out": "*u1",
    }
    copies, has_factor = dtype != torch.float32 and "STEP" in flags, dtype == torch.float16
    switches = dict.fromkeys(("STEP", "ADAM", "HAS_FIRST", "MOMENTUM", "NESTEROV"), False)
    return Build(
        f"update_tiles {operand if precision == 'tf32x3' or dtype != torch.float32 else 'tf32'} {name}",
        *(kernel, chip),
        _flags(dtype, **switches | flags, COPY=copies, HAS_FACTOR=has_factor, **tile) | {"PRECISION": precision},
        *(pointers, options),
        tensor_cores=OWN_TENSOR_CORES[chip],
    )


class Signature(NamedTuple):
    """Signature of a kernel for Triton's compiler; an argument within a tuple is addressed by both positions."""

    types: dict[str, str | tuple[str, ...]]
    values: dict[tuple[int, ...], Any]
    """Compile-time values."""
    alignments: dict[tuple[int, ...], list[list[Any]]]


def signature(build: Build) -> Signature:
    """Types, compile-time values and alignments of a kernel's arguments."""
    found = Signature({}, {}, {})
    for place, name in enumerate(build.kernel.arg_names):
        if name in build.flags or not build.flags.get(GIVEN_WITH.get(name, ""), True):
            found.types[name], found.values[(place,)] = "constexpr", build.flags.get(name)
            continue
        kind = "i32" if name.startswith(SIZES) else build.pointers.get(name, "*i64" if name == "labels" else "*fp32")
        found.types[name] = kind
        kinds = {(place,): kind} if isinstance(kind, str) else {(place, n): part for n, part in enumerate(kind)}
        found.values.update({path: None for path, part in kinds.items() if part == "constexpr"})
        if SIZE_OF_ARGUMENT.get(name, "B") in build.multiples:
            aligned = [path for path, part in kinds.items() if part.startswith(("*", "i32"))]
            found.alignments.update({path: [["tt.divisibility", 16]] for path in aligned})
    return found
