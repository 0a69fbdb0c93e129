"""What is asked of the compiled kernels where each launch is judged by itself: losses whose rows differ in all that matters.

So are steps of optimizers in tiles.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from kernel_problems import Problem, evaluate
from ptx_cases import LossCase, cases, surroundings
from ptx_updates import Launch, launches_of_every_build, take_steps
from triton_cases import cast
from triton_labels import sources

from rlpheads.kernels.gpu import triton_launch
from rlpheads.kernels.gpu.slab_plan import PassOutputs
from rlpheads.kernels.gpu.triton_gradient_launch import merge_ranges
from rlpheads.kernels.gpu.triton_labels import gather_by_triton
from rlpheads.kernels.gpu.triton_tiles import chip_tiles
from rlpheads.kernels.label_source import gather_labels
from rlpheads.kernels.rows.partials import NO_CLASS_SHIFT

WORK_SHAPES = ((126, 272, 140), (140, 272, 300))
"""Rows, features and labels: two tiles, the second ragged; then six, with more labels than the shift is guessed from.

Loops over features take at least five turns, so that buffers of several stages are used again.
"""
STEPS = (((322, 75, 80), False), ((350, 140, 144), False), ((350, 140, 144), True))
"""Rows, labels and features of steps, whose loops are over rows, and whether they are left out."""


@dataclass(frozen=True)
class Work:
    """One way to launch kernels, of a loss or of one launcher alone."""

    name: str
    launch: Callable[[], object]


def varied(problem: Problem, seed: int) -> Problem:
    """Rows flat, ordinary and steep; of three in four the label's logit leads all others, of one it trails.

    Of every fifth the last class leads by so much that exponentials relative to the first classes would overflow.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(problem.labels_B)
    scale_B1 = 10 ** (torch.rand(rows, 1, generator=generator, dtype=torch.float64) * 3 - 2)
    push_B1 = torch.tensor([5.0, 5.0, 5.0, -5.0], dtype=torch.float64)[torch.arange(rows) % 4, None]
    own_BD, last_D = problem.weight_KD[problem.labels_B], problem.weight_KD[-1]
    features_BD = (problem.features_BD + push_B1 * own_BD) * scale_B1
    features_BD[::5] += 80 * last_D / last_D.square().sum()
    return Problem(
        features_BD,
        problem.weight_KD,
        problem.labels_B,
        None if problem.bias_K is None else problem.bias_K / 20,  # else no row is flat
        problem.pair,
    )


def loss_work(loss: LossCase) -> Work:
    """Forward and backward of a loss."""
    case = loss.case

    def launch() -> None:
        problem = varied(cast(case.problem(), torch.float64, torch.float64), case.seed)
        with surroundings(loss):
            evaluate(
                cast(problem, case.dtype, case.weight_dtype), case.kind, "triton", memory_budget=case.memory_budget
            )

    return Work(str(loss), launch)


def merge_work(chip: int) -> Work:
    """Merge tiles with moments and sums of logits, which no loss asks for together."""
    rows, _, labels = WORK_SHAPES[1]
    tiles = chip_tiles(chip, torch.bfloat16, 1024)[0]

    def launch() -> None:
        generator = torch.Generator().manual_seed(0)
        operands = triton_launch.Operands(
            torch.zeros(rows, 8, dtype=torch.bfloat16),
            torch.zeros(labels, 8, dtype=torch.bfloat16),
            None,
            torch.randint(labels, (1, rows), generator=generator),
            0,
        )
        label_stats_FR = torch.randn(3, rows, generator=generator) * 50
        outputs = PassOutputs(products=True, moments=True, sum_logits=True)
        statistics = triton_launch.allocate_statistics(operands, tiles, outputs, label_stats_FR)
        reference = triton_launch.ExpReference(torch.randn(rows, generator=generator), torch.ones(rows))
        state = triton_launch.SlabState(torch.zeros(6, rows), torch.zeros(rows), torch.zeros(rows))
        for is_first in (True, False):
            statistics.max_CR.copy_(torch.randn(statistics.max_CR.shape, generator=generator) * 50)
            for values_CR in statistics[1:4]:
                values_CR.copy_(torch.rand(values_CR.shape, generator=generator))
            triton_launch.merge_tiles(operands, reference, statistics, state, tiles, is_first)

    return Work("merge_tiles, moments, logits and bases", launch)


def ranges_work(labels_a_row: int) -> Work:
    """Merge the partials of three ranges, one of which holds each label, and of whose second some rows have no class."""
    rows = WORK_SHAPES[1][0]

    def launch() -> None:
        generator = torch.Generator().manual_seed(labels_a_row)
        parts_NFR = torch.randn(3, 6 + labels_a_row, rows + 9, generator=generator)
        parts_NFR[:, :1] *= 20
        parts_NFR[:, 1] = parts_NFR[:, 1].exp()
        parts_NFR[1, 0, ::5] = NO_CLASS_SHIFT
        parts_NFR[1, 1:4, ::5] = 0.0
        parts_NFR[1, -2:, ::5] = -torch.inf
        outside_NLR = torch.arange(3)[:, None, None] != torch.randint(3, (labels_a_row, rows + 9), generator=generator)
        parts_NFR[:, 4:-2][outside_NLR] = -torch.inf
        merge_ranges(parts_NFR, slice(9, 9 + rows), torch.randn(2, rows, generator=generator), labels_a_row)

    return Work(f"merge_ranges, {labels_a_row} labels a row", launch)


def update_works(chip: int) -> list[list[Work]]:
    """Steps of optimizers in tiles, by rule and dtype."""

    def work(launch: Launch) -> Work:
        return Work(f"steps {launch}", lambda: take_steps(launch))

    every = [launches_of_every_build(chip, True, shape, (left_out,)) for shape, left_out in STEPS]
    return [list(map(work, same)) for same in zip(*every, strict=True)]


def works(chip: int) -> list[list[Work]]:
    """Groups of works that launch the same kernels; together every kernel that `aot` lists."""
    groups = [[loss_work(loss) for loss in group] for group in zip(*map(cases, WORK_SHAPES), strict=True)]
    labels = Work("gather_labels", lambda: gather_labels(sources("cpu") * 2, gather_by_triton))
    ranges = [[ranges_work(labels_a_row)] for labels_a_row in (1, 2)]
    return [*groups, [merge_work(chip)], *ranges, [labels], *update_works(chip)]
