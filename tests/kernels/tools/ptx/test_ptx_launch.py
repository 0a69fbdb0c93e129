"""Whole losses, forward and backward, on the PTX that Triton compiles for three chips, against float64.

The bound is that of the interpreter's tests. `make test-ptx` runs all; by default a few of each chip.
"""

import time

import pytest
import torch

pytest.importorskip("triton", reason="triton comes with torch's CUDA build only")

import triton_behaviour as behaviour
import triton_labels
from many_heads import ManyHeads, assert_heads_as_in_float64
from ptx_cases import SHAPES, LossCase, builds_run, cases, errors_in_bounds
from ptx_twin import TwinExecutor
from ptx_updates import assert_steps, launches_of_every_build
from ptx_works import merge_work, ranges_work
from range_ranks import RankCase, assert_ranks_agree_with_whole_heads
from simulated_ranks import HeadProblem
from triton_cases import Case

from rlpheads.kernels.gpu import triton_gradient_launch, triton_launch
from rlpheads.kernels.gpu.slab_plan import pad_classes
from rlpheads.kernels.gpu.triton_gradient_launch import SortedLabels
from rlpheads.kernels.gpu.triton_tiles import KNOWN_CHIPS
from rlpheads.kernels.tools.aot_kernels import builds
from rlpheads.kernels.tools.ptx.launch import executed
from rlpheads.memorization.heads.head_losses import HeadTerms

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
chips = pytest.mark.parametrize("chip", KNOWN_CHIPS)
QUICK = [
    (80, True, Case(7, 72, 150, "unlikelihood", spread=3.0, seed=3)),
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


@pytest.mark.long
@chips
def test_tiles_without_labels_on_each_chip(chip: int) -> None:
    case = Case(64, 72, 150, "unlikelihood", seed=2, labels_from=140)
    found, _ = errors_in_bounds(LossCase(case), chip, late=True, seed=1)
    assert max(found.values()) <= 1, found


@pytest.mark.long
@pytest.mark.parametrize(
    ("chip", "case"),
    [
        (80, ManyHeads((72, 72), 7, 150, "uniform", seed=3)),
        (90, ManyHeads((72, 0, 72, 0), 7, 150, "entropy", seed=1)),
        (100, ManyHeads((72, 72), 7, 150, "unlikelihood", seed=2)),
    ],
    ids=str,
)
def test_heads_in_the_same_launches(chip: int, case: ManyHeads) -> None:
    """Heads are a dimension of each grid: ragged rows and classes of one lie beside the next one's."""
    with executed(chip, TwinExecutor, late=True, seed=1) as executor:
        assert_heads_as_in_float64(case)
    assert max(launch.grid[1] for launch in executor.launches) == len(case.widths)


@pytest.mark.long
@pytest.mark.parametrize(
    ("chip", "terms", "mixed"),
    [
        (80, HeadTerms("uniform", (0, 1), impl="reference"), False),
        (90, HeadTerms("entropy", (0, 1), joint=True, impl="reference"), True),
        (100, HeadTerms("unlikelihood", (1,), impl="reference"), False),
    ],
    ids=str,
)
def test_heads_sharded_over_ranks(chip: int, terms: HeadTerms, mixed: bool) -> None:
    """Two ranks with a range of the classes each, of two heads in the same launches."""
    problem = HeadProblem(150, 4, (24, 24), num_draws=1, mixed=mixed, dtype=torch.float32)
    with executed(chip, TwinExecutor, late=True, seed=1) as executor:
        assert_ranks_agree_with_whole_heads(RankCase(2, problem, terms))
    counts = {launch.program.name for launch in executor.launches}
    assert {"merge_ranges_kernel", "row_terms_kernel", "feature_gradients_kernel"} <= counts


@pytest.mark.long
@chips
@pytest.mark.parametrize("labels_a_row", [1, 2])
def test_ranges_are_merged(chip: int, labels_a_row: int) -> None:
    """To what the interpreter finds, launch by launch."""
    with executed(chip, TwinExecutor, seed=1) as executor:
        ranges_work(labels_a_row).launch()
    assert [launch.program.name for launch in executor.launches] == ["merge_ranges_kernel"]


@pytest.mark.long
@pytest.mark.parametrize(("chip", "kind"), [(80, "uniform"), (90, "entropy"), (100, "unlikelihood")])
def test_heads_of_few_labels(chip: int, kind: str) -> None:
    with executed(chip, TwinExecutor, seed=1) as executor:
        for labels, seed in ((10, 3), (40, 2)):
            assert_heads_as_in_float64(ManyHeads((24, 16, 0), 7, labels, kind, seed=seed), "batched")
    assert {launch.program.name for launch in executor.launches} == {"written_rows_kernel"}


@pytest.mark.slow
@chips
@pytest.mark.parametrize("rows", [64, 128])
@pytest.mark.parametrize("kind", ["uniform", "entropy"])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_tiles_without_labels_of_every_kind(chip: int, rows: int, kind: str, dtype: torch.dtype) -> None:
    """With pairs, biases and bases, all that a tile can write; the last rows of a buffer are a tile of their own."""
    case = Case(rows, 72, 300, kind, dtype, dtype, spread=0.1, seed=3, labels_from=280)
    found, _ = errors_in_bounds(LossCase(case), chip, late=False, seed=2)
    assert max(found.values()) <= 1, found


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
    with executed(chip, TwinExecutor, late=mode == "late", seed=1) as executor:
        triton_labels.assert_every_kind_of_source()
        merge_work(chip).launch()
        for labels_a_row in (1, 2):
            ranges_work(labels_a_row).launch()
        for kind in ("unlikelihood", "uniform", "entropy"):
            for seed in (2, 3):
                assert_heads_as_in_float64(ManyHeads((24, 16), 7, 40, kind, seed=seed), "batched")
    compiled += executor.compiled.values()
    for launch in launches_of_every_build(chip, late=mode == "late"):
        compiled += [each for one in assert_steps(launch, seed=2) for each in one.compiled.values()]
    listed = builds(chip)
    missing = {build.name for build in listed} - {build.name for build in builds_run(compiled, listed)}
    print(f"sm_{chip} {mode}: {len(listed) - len(missing)} of {len(listed)} kernels, worst {worst:.3f}")
    print(f"{time.perf_counter() - start:.0f} s; not run: {sorted(missing)}", flush=True)
    assert worst <= 1
    assert not missing or mode == "unaligned"


@pytest.mark.slow
@chips
@pytest.mark.parametrize("far", ["features", "weight", "exponentials", "gradient"])
def test_rows_beyond_two_to_the_31(chip: int, far: str) -> None:
    """Rows 16.8 million numbers apart, of which the last begin beyond 2^31: the same as side by side.

    The memory between them is never touched, and so costs none.
    """
    generator = torch.Generator().manual_seed(0)
    labels_LB = torch.randint(130, 139, (1, 140), generator=generator)
    features_BD, weight_KD = (torch.randn(n, 64, generator=generator).to(BF16) for n in (140, 139))
    found = []
    for distance in (192, 2**24):
        strides = dict.fromkeys(("features", "weight", "exponentials", "gradient"), 192) | {far: distance}
        x_BD = apart(140, 64, strides["features"], BF16).copy_(features_BD)
        w_KD = apart(139, 64, strides["weight"], BF16).copy_(weight_KD)
        exp_RK, gradient_KD = apart(140, 139, strides["exponentials"], BF16), apart(139, 64, strides["gradient"], FP32)
        operands = triton_launch.Operands(x_BD, w_KD, None, labels_LB, 0)
        with executed(chip, seed=3):
            reference = triton_launch.row_shifts(operands, torch.empty(3, 140), False)
            tiles = triton_launch.tiles_for(operands, has_base=False)
            triton_launch.class_tiles(operands, reference, triton_launch.SlabBuffers(exp_RK), tiles)
            ordered = SortedLabels.of(operands)
            triton_gradient_launch.add_label_rows(gradient_KD, None, operands, ordered, torch.ones(1, 140))
        found.append((exp_RK.clone(), gradient_KD.clone()))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def apart(rows: int, columns: int, stride: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros, the rows so many numbers from each other."""
    return torch.empty(rows * stride, dtype=dtype).as_strided((rows, columns), (stride, 1)).zero_()


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


@pytest.mark.long
@chips
def test_exponentials_are_stored_by_16_bytes_at_every_width(chip: int) -> None:
    """Of a tile that holds neither label nor edge, and of one that holds both; nothing else is stored by 16 bytes."""
    rows, labels = 128, 203
    exp_RK = torch.zeros(rows, pad_classes(labels), dtype=BF16)[:, :labels]
    labels_LB = torch.full((1, rows), 202)
    operands = triton_launch.Operands(
        torch.zeros(rows, 72, dtype=BF16), torch.zeros(labels, 72, dtype=BF16), None, labels_LB, 0
    )
    with executed(chip) as executor:
        reference = triton_launch.ExpReference(torch.zeros(rows), torch.empty(0))
        tiles = triton_launch.tiles_for(operands, has_base=False)
        triton_launch.class_tiles(operands, reference, triton_launch.SlabBuffers(exp_RK), tiles)
    (launch,) = executor.launches
    assert launch.memory.written[exp_RK.data_ptr()] == rows * pad_classes(labels) * 2
    assert launch.counts.stores == {16: rows * pad_classes(labels) // 8}
    assert torch.equal(exp_RK.float(), (torch.arange(labels) != 202).float().expand(rows, -1))
