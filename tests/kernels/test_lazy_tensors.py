"""Tensors whose memory does not hold their numbers: negative views, as of a conjugate's imaginary part, and implied zeros."""

import pytest
import torch
from kernel_problems import IMPLS, Problem, assert_same, evaluate, make_problem
from torch import Tensor

impls = pytest.mark.parametrize("impl", IMPLS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def lazy_and_plain(what: str, plain: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor negated, or zeros like it, lazily and written out."""
    if what == "negative":
        return torch._neg_view(plain.clone()), -plain
    return torch._efficientzerotensor(plain.shape, dtype=plain.dtype), torch.zeros_like(plain)


@impls
@dtypes
@pytest.mark.parametrize("what", ["negative", "zero"])
@pytest.mark.parametrize("argument", ["features_BD", "weight_KD", "bias_K", "upstream_B"])
def test_as_if_written_out(impl: str, dtype: torch.dtype, what: str, argument: str) -> None:
    problem = make_problem(1, 6, 11).to(dtype)
    given = {name: getattr(problem, name) for name in ("features_BD", "weight_KD", "bias_K")}
    given["upstream_B"] = torch.arange(1.0, 7.0, dtype=dtype)
    lazy, plain = lazy_and_plain(what, given[argument])

    def results(tensor: Tensor, impl: str) -> dict[str, Tensor]:
        of_problem = {**given, argument: tensor}
        upstream_B = of_problem.pop("upstream_B")
        return evaluate(Problem(labels_B=problem.labels_B, **of_problem), "entropy", impl, upstream_B=upstream_B)

    assert_same(results(lazy, impl), results(plain, "reference"), 1e-5 if dtype is torch.float32 else 1e-11)
