"""Several heads in the same launches, as `impl="triton"` takes whole heads; for the interpreter's process and the executor."""

from dataclasses import dataclass

import torch
from kernel_problems import make_problem
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rlpheads.kernels.gpu.heads import whole_heads
from rlpheads.kernels.gpu.heads.whole_heads import Wanted, WholeHeads
from rlpheads.kernels.loss_results import RandomLabelLoss
from rlpheads.kernels.random_label_loss import random_label_losses


@dataclass(frozen=True)
class ManyHeads:
    """Heads of one call; widths of their features, one for each head; 0 stands for the features of the head before."""

    widths: tuple[int, ...]
    rows: int
    labels: int
    kind: str
    dtype: torch.dtype = torch.bfloat16
    seed: int = 3
    """As in `make_problem`: bias and pair come and go with it."""

    def losses(self, impl: str, dtype: torch.dtype | None = None) -> tuple[list[RandomLabelLoss], list[Tensor]]:
        """Losses of all heads, and the gradients of all features, weights and biases; in float64 where `dtype` says so."""
        problems = [
            make_problem(self.seed + 6 * n, self.rows, self.labels, num_features=max(width, 1))
            for n, width in enumerate(self.widths)
        ]
        features: list[Tensor] = []
        weights: list[Tensor] = []
        for number, (width, problem) in enumerate(zip(self.widths, problems, strict=True)):
            own_BD = problem.features_BD.to(self.dtype).to(dtype or self.dtype).requires_grad_()
            features.append(own_BD if width else features[-1])
            weight_KD = torch.randn(
                self.labels, features[-1].shape[1], generator=torch.Generator().manual_seed(number), dtype=torch.float64
            )
            weight_KD = (weight_KD / features[-1].shape[1] ** 0.5).to(self.dtype).to(dtype or torch.float32)
            weights.append(weight_KD.requires_grad_())
        biases = [
            None if problem.bias_K is None else problem.bias_K.float().to(dtype or torch.float32).requires_grad_()
            for problem in problems
        ]
        pairs = None if problems[0].pair is None else [problem.pair for problem in problems]
        losses = random_label_losses(
            *(features, weights, [problem.labels_B for problem in problems]),
            biases=biases,
            pairs=pairs,
            regularizer=self.kind,
            joint=True,
            impl=impl,  # type: ignore[arg-type]
        ).by_head()
        generator = torch.Generator().manual_seed(1)
        outputs, upstreams = [], []
        for loss in losses:
            outputs += [loss.cross_entropy_B, loss.regularizer_B, loss.joint_B]
            upstreams += [torch.rand(self.rows, generator=generator) for _ in range(3)]
        distinct = [each for number, each in enumerate(features) if self.widths[number]]
        inputs = [*distinct, *weights, *(bias_K for bias_K in biases if bias_K is not None)]
        gradients = torch.autograd.grad(
            outputs, inputs, [up.to(out.dtype) for up, out in zip(upstreams, outputs, strict=True)]
        )  # type: ignore[arg-type]
        return losses, list(gradients)


TOLERANCES = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def assert_heads_as_in_float64(case: ManyHeads, impl: str = "triton") -> None:
    """Every value and gradient of every head, whatever group it was in."""
    found, truth = case.losses(impl), case.losses("reference", torch.float64)
    values = [
        (value, exact)
        for one, two in zip(found[0], truth[0], strict=True)
        for value, exact in zip(one, two, strict=True)
    ]
    for value, exact in (*values, *zip(found[1], truth[1], strict=True)):
        if exact.dtype == torch.bool:
            assert torch.equal(value, exact)
        else:
            error = float((value.double() - exact).detach().abs().max())
            assert error <= TOLERANCES[case.dtype] * (1 + float(exact.detach().abs().max())), error


def assert_any_strides_give_the_same() -> None:
    """Rows, labels and weights of pairs that lie apart, or are one number for all rows, of one head and of two."""
    problem = make_problem(3, 6, 40, num_features=16).to(torch.float32)
    assert problem.pair is not None
    assert problem.bias_K is not None
    seconds_B, own_weight_B = problem.pair[0], problem.pair[1].float()

    def apart(tensor: Tensor) -> Tensor:
        """The same numbers, with others between them."""
        return tensor.repeat_interleave(2, -1)[..., ::2]

    def of_heads(number: int, first_weight_B: Tensor, strided: bool) -> list[Tensor]:
        lay = apart if strided else Tensor.clone
        given = (problem.features_BD, problem.weight_KD, problem.bias_K, problem.labels_B, seconds_B)
        features_BD, weight_KD, bias_K, labels_B, second_B = (lay(each) for each in given if each is not None)
        losses = random_label_losses(
            *(features_BD, [weight_KD.requires_grad_()] * number, [labels_B] * number),
            biases=[bias_K] * number,
            pairs=[(second_B, first_weight_B)] * number,
            impl="triton",
        )
        (gradient_KD,) = torch.autograd.grad(losses.cross_entropy_HB.sum(), weight_KD)
        return [losses.cross_entropy_HB, losses.lse_HB, gradient_KD]

    for number in (1, 2):
        for first_weight_B in (apart(own_weight_B), own_weight_B[:1].expand(6)):
            strided = of_heads(number, first_weight_B, strided=True)
            for found, expected in zip(strided, of_heads(number, first_weight_B.clone(), strided=False), strict=True):
                torch.testing.assert_close(found, expected)


def assert_heads_need_not_require_gradients() -> None:
    """Weights that are frozen, and features that need no gradient, get none; the others get theirs."""
    problems = [make_problem(n, 6, 40).to(torch.float32) for n in (1, 7)]
    frozen, trained = problems[0].weight_KD, problems[1].weight_KD.requires_grad_()
    features = [problems[0].features_BD.requires_grad_(), problems[1].features_BD]
    losses = random_label_losses(
        features, [frozen, trained], [each.labels_B for each in problems], regularizer="uniform", impl="triton"
    ).by_head()
    total = sum(loss.cross_entropy_B.sum() + loss.regularizer_B.sum() for loss in losses)  # type: ignore[union-attr]
    total.backward()
    assert frozen.grad is None
    assert features[1].grad is None
    assert trained.grad is not None
    assert features[0].grad is not None


def group_sizes(num_heads: int, rows: int, features: int, labels: int, kind: str | None) -> list[int]:
    """How many heads share their launches, without computing anything."""
    with FakeTensorMode():
        heads = WholeHeads(
            [torch.empty(rows, features, dtype=torch.bfloat16) for _ in range(num_heads)],
            [torch.empty(labels, features) for _ in range(num_heads)],
            [torch.empty(labels) for _ in range(num_heads)],
            torch.empty(1, num_heads * rows, dtype=torch.int64),
            None,
        )
        wanted = Wanted(kind, joint=False, for_classes=True, for_features=kind is not None, memory_budget=2**28)
        return [some.stop - some.start for some in whole_heads._groups(heads, wanted)]
