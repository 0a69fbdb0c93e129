"""What the interpreter's process is asked to do: each function runs there, and its assertions are raised here.

Triton decides at its import whether it interprets, so that `triton_interpreter` gives these a process of their own.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from kernel_problems import KINDS, Problem, evaluate, make_problem, margin_problem, relative_error
from torch import Tensor

from rlpheads.kernels.rows import reference

GRADIENTS = ("weight_gradient", "bias_gradient", "joint_gradient", "regularizer_gradient")
VALUES = ("cross_entropy_B", "regularizer_B", "bits_B", "margin_B", "lse_B")


@dataclass(frozen=True)
class Case:
    """A problem by its numbers, since tensors would have to be sent."""

    rows: int
    features: int
    labels: int
    kind: str = "unlikelihood"
    dtype: torch.dtype = torch.bfloat16
    weight_dtype: torch.dtype = torch.float32
    spread: float = 1.0
    margin: float | None = None
    seed: int = 0
    """1, 3, 5: bias; 0, 3: pair."""
    memory_budget: int | None = None
    labels_from: int = 0
    """All labels are classes from this one on, so that tiles before it hold none."""

    def problem(self) -> Problem:
        """In float64."""
        if self.margin is not None:
            return margin_problem(self.margin, seed=self.seed, num_rows=self.rows, num_labels=self.labels)
        sizes = (self.rows, self.labels)
        drawn = make_problem(self.seed, *sizes, num_features=self.features, spread=self.spread)
        return with_labels_from(drawn, self.labels_from)


def with_labels_from(problem: Problem, first: int) -> Problem:
    """The same problem with labels from this one on."""

    def moved(labels_B: Tensor) -> Tensor:
        return first + labels_B % (len(problem.weight_KD) - first)

    pair = None if problem.pair is None else (moved(problem.pair[0]), problem.pair[1])
    return replace(problem, labels_B=moved(problem.labels_B), pair=pair)


def cast(problem: Problem, dtype: torch.dtype, weight_dtype: torch.dtype) -> Problem:
    """Features in one dtype, weight and bias in another."""
    return replace(problem.to(weight_dtype), features_BD=problem.features_BD.to(dtype))


def on_device(problem: Problem, device: str) -> Problem:
    """The same problem there."""
    pair = None if problem.pair is None else (problem.pair[0].to(device), problem.pair[1].to(device))
    return Problem(
        problem.features_BD.to(device),
        problem.weight_KD.to(device),
        problem.labels_B.to(device),
        None if problem.bias_K is None else problem.bias_K.to(device),
        pair,
    )


def plain(problem: Problem, kind: str, upstream_B: Tensor) -> dict[str, Tensor]:
    """The loss as mixed precision computes it: logits rounded to the operands' dtype, the softmax in float32."""
    x_BD = problem.features_BD.detach().requires_grad_()
    parameters = [problem.weight_KD.detach().requires_grad_()]
    if problem.bias_K is not None:
        parameters.append(problem.bias_K.detach().requires_grad_())
    labels = problem.row_labels(torch.float32)
    operands = [parameter.to(x_BD.dtype) for parameter in parameters]
    head_BK = F.linear(x_BD.detach(), *operands).float()
    features_BK = F.linear(x_BD, *(operand.detach() for operand in operands)).float()
    fixed_BK = head_BK.detach()
    log_p_B = F.logsigmoid(reference.log_odds(fixed_BK, labels.index_LB)[0])
    results = {
        "cross_entropy_B": reference.cross_entropy(head_BK, labels),
        "regularizer_B": reference.REFERENCE_REGULARIZERS[kind](features_BK, labels),
        "joint_B": reference.cross_entropy(features_BK, labels),
        "bits_B": (torch.tensor(float(fixed_BK.shape[1])).log() + log_p_B) / torch.tensor(2.0).log(),
        "margin_B": reference.margin(fixed_BK, labels.index_LB[0]),
        "lse_B": fixed_BK.logsumexp(1),
    }
    of_head = torch.autograd.grad(results["cross_entropy_B"], parameters, upstream_B, retain_graph=True)
    results |= dict(zip(GRADIENTS[:2], of_head, strict=False))
    for name in ("joint", "regularizer"):
        (results[f"{name}_gradient"],) = torch.autograd.grad(results[f"{name}_B"], x_BD, upstream_B, retain_graph=True)
    return {name: value.detach() for name, value in results.items()}


def errors(case: Case, device: str = "cpu") -> dict[str, tuple[float, float]]:
    """(error of the plain low-precision loss, of the kernels), against float64, of every value and gradient."""
    problem = on_device(cast(case.problem(), case.dtype, case.weight_dtype), device)
    multiplied = replace(problem.to(case.dtype), bias_K=problem.bias_K)  # the weight as either rounds it
    exact = multiplied.to(torch.float64)
    generator = torch.Generator().manual_seed(case.seed)
    upstream_B = (torch.randn(case.rows, generator=generator) / case.rows).to(device)
    truth = evaluate(exact, case.kind, "reference", upstream_B=upstream_B.double())
    found = evaluate(problem, case.kind, "triton", upstream_B=upstream_B, memory_budget=case.memory_budget)
    baseline = plain(problem, case.kind, upstream_B)
    result = {
        name: (relative_error(baseline[name], truth[name]), relative_error(found[name], truth[name]))
        for name in GRADIENTS
        if name in truth
    }
    for name in VALUES:
        scale = 1 + truth[name].abs().max()
        baseline_error, error = (
            float((values[name].double() - truth[name]).abs().max() / scale) for values in (baseline, found)
        )
        result[name] = (baseline_error, error)
    return result


def assert_as_accurate_as_plain(case: Case, device: str = "cpu") -> dict[str, tuple[float, float]]:
    """Error ≤ 2 × that of the plain low-precision loss + 1e-6."""
    found = errors(case, device)
    for name, (baseline, error) in found.items():
        assert error <= 2 * baseline + 1e-6, f"{name}: {error:.2e}, plain {baseline:.2e} in {case}"
    return found


SPREADS = (0.01, 0.1, 1.0, 3.0, 30.0)


def grid(num_rows: int) -> list[Case]:
    """Every shape and spread of the accuracy grid with this many rows; kinds, weight's dtype, bias and pair alternate."""
    shapes = [(features, labels) for features in (16, 192, 768) for labels in (2, 10, 1000, 1003)]
    cases = []
    for number, (features, labels) in enumerate(shapes):
        for place, spread in enumerate(SPREADS):
            turn = number + place
            weight_dtype = (torch.float32, torch.bfloat16)[turn // 4 % 2]
            seed = turn % 6
            cases.append(
                Case(num_rows, features, labels, KINDS[turn % 4], torch.bfloat16, weight_dtype, spread, seed=seed)
            )
    return cases
