"""Function transforms and forward-mode AD: right with the reference, refused by name with all else."""

import pytest
import torch
import triton_transforms
from kernel_problems import make_problem
from torch import Tensor
from torch.autograd import forward_ad
from triton_interpreter import Interpreter
from triton_transforms import ASKED, TRANSFORMS, losses_of

from rlpheads.kernels.implementations import resolve_impl
from rlpheads.kernels.random_label_loss import random_label_loss

transforms = pytest.mark.parametrize("transform", TRANSFORMS)
MANY_LABELS = 3000
"""So many that `auto` takes `tiled_cpu`."""

sizes = pytest.mark.parametrize("num_labels", [11, MANY_LABELS], ids=["few labels", "many labels"])


@pytest.mark.parametrize("impl", ["batched", "tiled_cpu", "auto"])
@sizes
@transforms
def test_refused_by_name(impl: str, transform: str, num_labels: int) -> None:
    triton_transforms.assert_refused(impl, transform, num_labels)


def test_auto_is_not_one_implementation_at_these_sizes() -> None:
    features_BD = torch.zeros(40, 5)
    assert [resolve_impl("auto", features_BD, size) for size in (11, MANY_LABELS)] == ["batched", "tiled_cpu"]


COMPILED = {name: TRANSFORMS[name] for name in ("grad", "jvp", "vmap")}
"""What can be written inside a compiled function."""


@pytest.mark.long
@pytest.mark.parametrize("impl", ["batched", "tiled_cpu"])
@pytest.mark.parametrize("transform", COMPILED)
def test_refused_by_name_inside_a_compiled_function(impl: str, transform: str) -> None:
    problem = make_problem(1, 40, 11)
    compiled = torch.compile(
        lambda features_BD: COMPILED[transform](losses_of(problem, impl), features_BD), backend="aot_eager"
    )
    with pytest.raises(RuntimeError, match=f"called under {ASKED[transform]}.*impl='reference'"):
        compiled(problem.features_BD)


@pytest.mark.long
@pytest.mark.parametrize("impl", ["batched", "tiled_cpu"])
@pytest.mark.parametrize("transform", COMPILED)
def test_refused_by_name_around_a_compiled_function(impl: str, transform: str) -> None:
    problem = make_problem(1, 40, 11)
    compiled = torch.compile(losses_of(problem, impl), backend="aot_eager")
    compiled(problem.features_BD)  # which leaves code for calls without a transform
    with pytest.raises(RuntimeError, match=f"called under {ASKED[transform]}.*impl='reference'"):
        COMPILED[transform](compiled, problem.features_BD)


@pytest.mark.long
def test_one_graph_with_a_transform_inside_is_refused() -> None:
    problem = make_problem(1, 40, 11)
    compiled = torch.compile(
        lambda features_BD: torch.func.grad(losses_of(problem, "batched"))(features_BD),
        backend="aot_eager",
        fullgraph=True,
    )
    with pytest.raises(RuntimeError, match=r"random_label_loss was called under a transform"):
        compiled(problem.features_BD)


@pytest.mark.long
@pytest.mark.parametrize("impl", ["triton", "auto"])
@transforms
def test_refused_by_name_where_triton_runs(interpreter: Interpreter, impl: str, transform: str) -> None:
    interpreter(triton_transforms.assert_refused, impl, transform, 300, torch.float32)


@sizes
@transforms
def test_the_reference_is_right(transform: str, num_labels: int) -> None:
    """Against plain backward, row by row, which needs none of them."""
    problem = make_problem(1, 40, num_labels)
    features_BD = problem.features_BD.requires_grad_()
    loss = random_label_loss(
        features_BD, problem.weight_KD, problem.labels_B, regularizer="uniform", impl="reference"
    ).regularizer_B
    (gradient_BD,) = torch.autograd.grad(loss.sum(), features_BD)
    result = TRANSFORMS[transform](losses_of(problem, "reference"), features_BD.detach())
    expected = {
        "grad": gradient_BD,
        "vjp": gradient_BD,
        "jacrev": gradient_BD,
        "jacfwd": gradient_BD,
        "jvp": gradient_BD.sum(),
        "forward_ad": gradient_BD.sum(),
        "vmap": torch.stack([loss.detach().sum()] * 2),
        **dict.fromkeys(("vmap of grad", "is_grads_batched", "vmap of backward"), torch.stack([gradient_BD] * 2)),
        **dict.fromkeys(("vectorize", "forward_ad of backward"), gradient_BD),
    }
    torch.testing.assert_close(result, expected[transform], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("argument", ["weight_KD", "bias_K", "share_B"])
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap", "forward_ad"])
def test_of_any_argument(transform: str, argument: str) -> None:
    problem = make_problem(3, 6, 17)
    assert problem.pair is not None
    second_B, share_B = problem.pair
    given = {"weight_KD": problem.weight_KD, "bias_K": problem.bias_K, "share_B": share_B}

    def loss(tensor: Tensor) -> Tensor:
        weight_KD, bias_K, share_B = {**given, argument: tensor}.values()
        return random_label_loss(
            *(problem.features_BD, weight_KD, problem.labels_B),
            bias_K=bias_K,
            pair=(second_B, share_B),
            impl="tiled_cpu",
        ).cross_entropy_B.sum()

    with pytest.raises(RuntimeError, match=f"called under {ASKED[transform]},.*impl='reference'"):
        TRANSFORMS[transform](loss, given[argument])


def test_labels_of_a_batch() -> None:
    problem = make_problem(1, 6, 17)
    table_MN, index_B = torch.zeros(2, 9, dtype=torch.int64), torch.arange(6)
    for labels in (lambda given_B: given_B, lambda given_B: (table_MN, given_B, 1)):
        with pytest.raises(RuntimeError, match=r"called under torch.func.vmap.*impl='reference'"):
            torch.func.vmap(
                lambda given_B, labels=labels: (
                    random_label_loss(
                        problem.features_BD, problem.weight_KD, labels(given_B), impl="tiled_cpu"
                    ).cross_entropy_B
                )
            )(torch.stack([index_B, index_B]))


def test_tensors_that_a_transform_leaves_alone_are_constants() -> None:
    """As where the loss is measured within a function that is differentiated in something else."""
    problem = make_problem(1, 6, 300)

    def scaled(factor: Tensor) -> Tensor:
        loss = random_label_loss(problem.features_BD, problem.weight_KD, problem.labels_B, impl="tiled_cpu")
        return factor * loss.bits_B.sum()

    expected = scaled(torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(torch.func.grad(scaled)(torch.ones((), dtype=torch.float64)), expected)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
        torch.testing.assert_close(forward_ad.unpack_dual(scaled(dual)).tangent, expected)
