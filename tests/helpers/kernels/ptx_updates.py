"""Optimizer's steps in tiles as Triton compiles them for a chip, executed, against torch's own in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from ptx_twin import TwinExecutor
from torch import Tensor
from triton_updates import RULES, optimizer_of, states_of

from rlpheads.kernels.gpu import triton_update
from rlpheads.kernels.rows.partials import ClassRange, Exponentials, LogitGradient
from rlpheads.kernels.rows.updates import AdamRule, SurveyArguments, UpdateArguments
from rlpheads.kernels.tools.ptx.launch import Executor, executed

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ROUNDING = {BF16: 2e-3, FP16: 3e-4, FP32: 2e-6}
"""Of v∘x, as an operand of the product."""

MadeFrom = tuple[Tensor, ClassRange, Tensor, Exponentials, LogitGradient]
"""Arguments of a survey."""


@dataclass(frozen=True)
class Launch:
    """Steps of a head whose exponentials and gradients of logits are random."""

    chip: int
    late: bool
    shape: tuple[int, int, int]
    """Rows, labels and features."""
    rule: str
    dtype: torch.dtype
    pair: bool = False
    left_out: tuple[bool, ...] = (False,)
    """Which of the steps are left out."""
    precision: str = "highest"
    """How float32 is multiplied."""


@contextmanager
def multiplying(precision: str) -> Iterator[None]:
    """How float32 is multiplied inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def assert_steps(launch: Launch, seed: int) -> list[Executor]:
    """Each launch writes what Triton's interpreter writes; returns what executed them."""
    with multiplying(launch.precision):
        return _executed_steps(launch, seed)


def take_steps(launch: Launch) -> None:
    """Steps and surveys of a head, by whatever runs the launches."""
    generator = torch.Generator().manual_seed(0)
    weight_KD, copy_KD = _weights(launch, generator)
    states = states_of(RULES[launch.rule], weight_KD)
    with multiplying(launch.precision):
        for left_out in launch.left_out:
            made_from, _ = problem(launch, weight_KD if copy_KD is None else copy_KD, generator)
            _step(launch, made_from, weight_KD, copy_KD, states, left_out)


def _executed_steps(launch: Launch, seed: int) -> list[Executor]:
    generator, executors = torch.Generator().manual_seed(0), []
    rounding = ROUNDING[BF16 if launch.precision == "high" else launch.dtype]
    rule, (weight_KD, copy_KD) = RULES[launch.rule], _weights(launch, generator)
    twin = torch.nn.Parameter(weight_KD.double())
    optimizer, states = optimizer_of(rule, twin), states_of(rule, weight_KD)
    for left_out in launch.left_out:
        made_from, exact_KD = problem(launch, weight_KD if copy_KD is None else copy_KD, generator)
        if not left_out:
            twin.grad = exact_KD
            optimizer.step()
        with executed(launch.chip, TwinExecutor, late=launch.late, seed=seed) as executor:
            found, surveyed = _step(launch, made_from, weight_KD, copy_KD, states, left_out)
        executors.append(executor)
        names = [each.program.name for each in executor.launches]
        assert names.count("update_tiles_kernel") == 2
        assert names.count("count_step_kernel") == isinstance(rule, AdamRule)
        for _, squared in (found, surveyed):
            exact = float(exact_KD.square().sum())
            assert abs(float(squared) - exact) <= 2 * rounding * exact
        assert float((weight_KD - twin.detach()).norm()) <= rounding * float(twin.detach().norm())
        assert copy_KD is None or torch.equal(copy_KD, weight_KD.to(launch.dtype))
    return executors


def _weights(launch: Launch, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """The weight, and its copy in the operands' dtype if that is another."""
    _, labels, dim = launch.shape
    weight_KD = torch.randn(labels, dim, generator=generator) / dim**0.5
    return weight_KD, None if launch.dtype == FP32 else weight_KD.to(launch.dtype)


def _step(
    launch: Launch, made_from: MadeFrom, weight_KD: Tensor, copy_KD: Tensor | None, states: list[Tensor], left_out: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What a step returns, and what a survey of the same gradient does."""
    head, rule, flag = made_from[1]._replace(weight_KD=weight_KD), RULES[launch.rule], torch.tensor(left_out)
    stepped = SurveyArguments(made_from[0], head, *made_from[2:])
    found = triton_update.update(UpdateArguments.of(stepped, rule, states, flag, copy_KD))
    return found, triton_update.survey(SurveyArguments(*made_from))


def problem(launch: Launch, operand_KD: Tensor, generator: torch.Generator) -> tuple[MadeFrom, Tensor]:
    """What a step is made from, and the gradient in float64."""
    rows, labels, dim = launch.shape
    labels_LB = torch.randint(labels, (1 + launch.pair, rows), generator=generator)
    labels_LB[:, 1:4] = labels_LB[0, 0]
    labels_LB[:, 20:] += labels * torch.randint(-2, 3, (rows,), generator=generator)[20:]  # most lie in other ranges
    features_BD = torch.randn(rows, dim, generator=generator).to(launch.dtype)
    buffer_BK = torch.full((rows, -(-labels // 64) * 64), torch.nan, dtype=launch.dtype)
    exp_BK = buffer_BK[:, :labels].copy_(torch.rand(rows, labels, generator=generator))
    scale_CB = torch.rand(1, rows, generator=generator) / rows
    label_LB = torch.randn(labels_LB.shape, generator=generator)
    logit_BK = exp_BK.double() * scale_CB.double().T
    for label_B, index_B in zip(label_LB, labels_LB, strict=True):
        logit_BK += torch.where(index_B[:, None] == torch.arange(labels), label_B[:, None].double(), 0.0)
    exponentials = Exponentials(buffer_BK, torch.zeros(1, rows), torch.zeros(1, 0))
    head = ClassRange(operand_KD, None, 0, labels)
    made_from = features_BD, head, labels_LB, exponentials, LogitGradient(scale_CB, label_LB)
    return made_from, logit_BK.T @ features_BD.double()


def launches_of_every_build(
    chip: int, late: bool, shape: tuple[int, int, int] = (130, 75, 80), left_out: tuple[bool, ...] = (False,)
) -> list[Launch]:
    """Steps that together launch every kernel of an update that `aot` lists."""
    kinds = [("adamw", dtype, "highest") for dtype in (BF16, FP16, FP32)] + [("adamw", FP32, "high")]
    kinds += [(rule, BF16, "highest") for rule in ("sgd", "momentum", "nesterov")]
    return [Launch(chip, late, shape, rule, dtype, False, left_out, precision) for rule, dtype, precision in kinds]
