"""Whole losses, forward and backward, on the PTX that Triton compiles for three chips, against float64.

The bound is that of the interpreter's tests. `make test-ptx` runs all; by default a few of each chip.
"""

import time

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with torch's CUDA build only")

import triton_behaviour as behaviour
import triton_labels
from ptx_cases import SHAPES, LossCase, builds_run, cases, errors_in_bounds
from triton_cases import Case

from rlpheads.kernels.gpu import triton_launch
from rlpheads.kernels.gpu.triton_tiles import KNOWN_CHIPS
from rlpheads.kernels.tools.aot_kernels import builds
from rlpheads.kernels.tools.ptx.launch import executed

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NEVER_LAUNCHED = {"merge_tiles bf16 moments, logits"}
"""No loss asks for both; either has run."""
chips = pytest.mark.parametrize("chip", KNOWN_CHIPS)
QUICK = [
    (80, True, Case(7, 192, 300, "unlikelihood", spread=3.0, seed=3)),
    (80, False, Case(5, 30, 150, "uniform", FP32, FP32, spread=0.1, seed=1)),
    (90, True, Case(7, 200, 150, "uniform", FP16, FP32, spread=0.1, seed=3)),
    (90, False, Case(5, 52, 203, "entropy", BF16, BF16, seed=2)),
    (90, True, Case(5, 72, 150, "unlikelihood", FP32, FP32, seed=2)),
    (100, True, Case(7, 200, 150, "uniform", FP16, FP32, spread=0.1, seed=3)),
    (100, False, Case(5, 52, 203, "unlikelihood", BF16, BF16, seed=2)),
    (100, True, Case(5, 72, 150, "unlikelihood", FP32, FP32, seed=2)),
]


@pytest.mark.long
@pytest.mark.parametrize(("chip", "late", "case"), QUICK, ids=str)
def test_a_loss_on_each_chip(chip: int, late: bool, case: Case) -> None:
    found, executor = errors_in_bounds(LossCase(case), chip, late=late, seed=1)
    assert max(found.values()) <= 1, found
    counts = {launch.program.name: launch.counts for launch in executor.launches}
    assert counts["class_tiles_kernel"].instructions["tensor"] > 0


@pytest.mark.slow
@chips
@pytest.mark.parametrize("mode", ["late", "early", "unaligned"])
def test_every_kernel_that_is_listed(chip: int, mode: str) -> None:
    """All variants, with ragged rows, features and labels; and nothing on the list is left out.

    Without rows at multiples of 16 bytes there are no tensor copies, and no copies of 16 bytes.
    """
    compiled, worst, start = [], 0.0, time.perf_counter()
    for number, loss in enumerate(cases(SHAPES[mode == "unaligned"])):
        late = mode == "late" or (mode == "unaligned" and number % 2 == 0)
        found, executor = errors_in_bounds(loss, chip, late=late, seed=number)
        compiled += executor.compiled.values()
        worst = max(worst, *found.values())
        print(f"sm_{chip} {mode} {max(found.values()):.3f} {max(found, key=found.__getitem__)} {loss}", flush=True)
    with executed(chip, late=mode == "late", seed=1) as executor:
        triton_labels.assert_every_kind_of_source()
    compiled += executor.compiled.values()
    listed = builds(chip)
    missing = {build.name for build in listed} - {build.name for build in builds_run(compiled, listed)}
    print(f"sm_{chip} {mode}: {len(listed) - len(missing)} of {len(listed)} kernels, worst {worst:.3f}")
    print(f"{time.perf_counter() - start:.0f} s; not run: {sorted(missing)}", flush=True)
    assert worst <= 1
    assert missing <= NEVER_LAUNCHED or mode == "unaligned"


@pytest.mark.slow
@chips
def test_exponentials_beyond_two_to_the_31(chip: int) -> None:
    """Rows 16.7 million numbers apart, of which the last begin beyond 2^31: the same as side by side."""
    x_BD, w_KD = torch.randn(140, 64, dtype=BF16), torch.randn(139, 64, dtype=BF16)
    operands = triton_launch.Operands(x_BD, w_KD, None, torch.randint(139, (1, 140)), 0)
    found = []
    with executed(chip, seed=3):
        reference = triton_launch.row_shifts(operands, False)
        tiles = triton_launch.tiles_for(operands, has_base=False)
        for stride in (192, 16_700_000):
            exp_RK = torch.empty(140 * stride, dtype=BF16).as_strided((140, 139), (stride, 1))
            triton_launch.class_tiles(operands, reference, triton_launch.SlabBuffers(exp_RK), tiles)
            found.append(exp_RK.clone())
    assert torch.equal(*found)


@pytest.mark.slow
@chips
@pytest.mark.parametrize(
    "promise",
    [
        lambda: behaviour.assert_slabs_change_little("entropy", 3, 5 * 4 * 300),
        lambda: behaviour.assert_two_runs_give_the_same_bits("uniform"),
        lambda: behaviour.assert_climbing_logits_lose_nothing(BF16, "entropy", 20.0, falling=False, slabs=True),
        lambda: behaviour.assert_climbing_logits_lose_nothing(FP16, "unlikelihood", 6.0, falling=False, slabs=False),
        lambda: behaviour.assert_climbing_logits_lose_nothing(FP32, "entropy", 20.0, falling=True, slabs=False),
        lambda: behaviour.assert_class_ranges_combine("uniform", (0, 13, 14, 37, 50)),
        behaviour.assert_ties_go_to_the_lowest_label,
        behaviour.assert_a_row_of_nan_leaves_the_others_alone,
        behaviour.assert_inputs_of_all_kinds,
        behaviour.assert_backward_twice_and_many_heads,
    ],
    ids=str,
)  # fmt: skip
def test_promises(chip: int, promise) -> None:
    with executed(chip, seed=2):
        promise()
