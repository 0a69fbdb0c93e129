"""Losses that together launch every kernel of the list that `aot` compiles, and which of them have run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from kernel_problems import evaluate, relative_error
from ptx_twin import TwinExecutor
from triton_behaviour import climbing_logits, use_default_slabs, use_small_slabs
from triton_cases import GRADIENTS, VALUES, Case, cast, errors, plain

from rlpheads.kernels.tools.aot_kernels import ENTROPY, UNIFORM, VARIANTS, Build, Variant
from rlpheads.kernels.tools.ptx.launch import Compiled, Executor, executed

SEEDS = {(False, False): 2, (True, False): 6, (False, True): 1, (True, True): 3}
"""By (pair, bias)."""
SHAPES = ((126, 80, 253), (66, 52, 203))
"""Rows, features and labels of a loss with tiles of 128 rows; of the second no row starts at a multiple of 16 bytes."""
FEW_ROWS = 61
"""With tiles of 64 rows."""


@dataclass(frozen=True)
class LossCase:
    """A loss, and how float32 is multiplied in it."""

    case: Case
    precision: str = "highest"
    slabs: bool = False
    climbing: float = 0.0
    """Logits that climb by so much every 50 classes, or fall: lifts at every turn."""


LIFTED = [
    LossCase(Case(6, 1, 700, kind, dtype), slabs=slabs, climbing=step)
    for kind, dtype, step, slabs in (
        ("entropy", torch.bfloat16, 20.0, True),
        ("unlikelihood", torch.bfloat16, 20.0, False),
        ("unlikelihood", torch.float16, 6.0, False),
        ("entropy", torch.float32, -20.0, False),
        ("unlikelihood", torch.float32, 20.0, True),
    )
]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def loss_case(variant: Variant, shape: tuple[int, int, int] = SHAPES[0]) -> LossCase:
    """A loss that launches `class_tiles` in this variant."""
    kind = {UNIFORM: "uniform", ENTROPY: "entropy"}.get(variant.outputs, "unlikelihood")
    rows, features, labels = shape
    case = Case(
        FEW_ROWS if variant.rows == 64 else rows,
        features,
        labels,
        kind,
        variant.dtype,
        torch.float32 if variant.dtype == torch.float32 else (torch.float32, variant.dtype)[variant.pair],
        seed=SEEDS[variant.pair, variant.bias],
        memory_budget=0 if variant.recompute else None,
    )
    return LossCase(
        case, "high" if variant.precision == "tf32" and variant.dtype == torch.float32 else "highest", variant.recompute
    )


def cases(shape: tuple[int, int, int] = SHAPES[0]) -> list[LossCase]:
    """One for each variant, and rows of one label beside a weight that is kept in the products' dtype."""
    kept = [
        LossCase(Case(*shape, kind, torch.bfloat16, torch.bfloat16, seed=SEEDS[False, True]))
        for kind in ("unlikelihood", "uniform", "entropy")
    ]
    return [*(loss_case(variant, shape) for variant in VARIANTS), *kept]


@contextmanager
def surroundings(loss: LossCase) -> Iterator[None]:
    """Precision of float32 and size of slabs for a loss."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(loss.precision)
    use_small_slabs() if loss.slabs else use_default_slabs()
    try:
        yield
    finally:
        use_default_slabs()
        torch.set_float32_matmul_precision(before)


def errors_in_bounds(loss: LossCase, chip: int, **settings: Any) -> tuple[dict[str, float], Executor]:
    """Error of every value and gradient over its bound, 2 × that of the plain loss + 1e-6, as compiled for a chip.

    Each launch must also write what Triton's interpreter writes.
    """
    with surroundings(loss), executed(chip, TwinExecutor, **settings) as executor:
        if loss.climbing:
            return climbing_errors(loss), executor
        found = tf32_errors(loss.case) if loss.precision == "high" else errors(loss.case)
    return {name: error / (2 * baseline + 1e-6) for name, (baseline, error) in found.items()}, executor


def climbing_errors(loss: LossCase) -> dict[str, float]:
    """Errors over the tolerances of `triton_behaviour.assert_climbing_logits_lose_nothing`."""
    case = loss.case
    problem = climbing_logits(case.dtype, abs(loss.climbing), falling=loss.climbing < 0)
    truth = evaluate(problem.to(torch.float64), case.kind, "reference")
    found = evaluate(problem, case.kind, "triton", memory_budget=0 if loss.slabs else None)
    errors = {}
    for name, exact in truth.items():
        scale = TOLERANCES[case.dtype] * (1 + float(exact.double().abs().max()))
        errors[name] = float((found[name].double() - exact.double()).abs().max()) / scale
    return errors


def tf32(values: torch.Tensor) -> torch.Tensor:
    """Cut to a 10-bit significand, as matrix products do, which ignore the lower 13 bits; Triton rounds nothing before."""
    return (values.float().view(torch.int32) & -0x2000).view(torch.float32)


def tf32_errors(case: Case) -> dict[str, tuple[float, float]]:
    """As `triton_cases.errors`; the plain loss gets features and weight cut to TF32."""
    problem = cast(case.problem(), torch.float32, torch.float32)
    upstream_B = torch.randn(case.rows, generator=torch.Generator().manual_seed(case.seed)) / case.rows
    truth = evaluate(problem.to(torch.float64), case.kind, "reference", upstream_B=upstream_B.double())
    found = evaluate(problem, case.kind, "triton", upstream_B=upstream_B, memory_budget=case.memory_budget)
    rounded = replace(problem, features_BD=tf32(problem.features_BD), weight_KD=tf32(problem.weight_KD))
    baseline = plain(rounded, case.kind, upstream_B)
    pairs = {
        name: (relative_error(baseline[name], truth[name]), relative_error(found[name], truth[name]))
        for name in GRADIENTS
        if name in truth
    }
    for name in VALUES:
        scale = 1 + truth[name].abs().max()
        pairs[name] = tuple(float((v[name].double() - truth[name]).abs().max() / scale) for v in (baseline, found))
    return pairs


def builds_run(compiled: list[Compiled], builds: list[Build]) -> list[Build]:
    """Those of a list of builds that a list of compiled kernels covers: equal compile-time values and pointer types."""
    ran = [(found.program.name, found.constants, found.types) for found in compiled]
    return [build for build in builds if any(_covers(build, *one) for one in ran)]


def _covers(build: Build, name: str, constants: dict[str, Any], types: dict[str, Any]) -> bool:
    flags = {key: value for key, value in build.flags.items() if key in build.kernel.arg_names}
    same_flags = all(key in constants and constants[key] == value for key, value in flags.items())
    unused = () if flags.get("MOMENT") else ("moments",)
    same_types = all(
        types[key] == "constexpr" or types[key].replace(" ", "") == kind
        for key, kind in build.pointers.items()
        if isinstance(kind, str) and key in types and key not in unused
    )
    return build.kernel.__name__ == name and same_flags and same_types
