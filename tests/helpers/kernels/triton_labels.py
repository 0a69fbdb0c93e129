"""Labels by (table, index, draw) as `impl="triton"` reads them; runs in the interpreter's process, as `triton_cases` does."""

from collections.abc import Callable
from unittest.mock import patch

import torch
from kernel_problems import make_problem
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_cases import on_device

from rlpheads.kernels.gpu import triton_launch
from rlpheads.kernels.gpu.triton_labels import gather_by_triton
from rlpheads.kernels.label_source import Labels, gather_labels
from rlpheads.kernels.random_label_loss import random_label_loss, random_label_losses

ROWS = 300
"""Two blocks of the kernel, the second ragged."""


def sources(device: str, num_samples: int = 50) -> list[Labels]:
    """Tables and tensors of every integer type and layout, with padding rows."""
    generator = torch.Generator().manual_seed(0)
    table_MN = torch.randint(1000, (4, num_samples), generator=generator).to(device)
    index_B = torch.randint(-1, num_samples, (ROWS,), generator=generator).to(device)
    strided_MN = table_MN.T.contiguous().T
    return [
        (table_MN, index_B, 3),
        (table_MN.int(), index_B, 0),
        (strided_MN, index_B.int(), 1),
        (table_MN.int(), index_B.int().repeat_interleave(2)[::2], 2),
        (table_MN[:, :1], index_B.clamp(max=0), 2),
        table_MN[1, index_B.clamp(min=0)],
        table_MN[1, index_B.clamp(min=0)].int().repeat_interleave(2)[::2],
        table_MN[:1, 7].expand(ROWS),
    ]


def expected(labels: Labels) -> Tensor:
    if isinstance(labels, Tensor):
        return labels.long()
    table_MN, index_B, draw = labels
    return table_MN[draw][index_B.long().clamp(min=0)].long()


def launches(call: Callable[[], object]) -> int:
    """How often `call` launches the kernel."""
    with patch.object(triton_launch, "gather_tables", wraps=triton_launch.gather_tables) as launch:
        call()
    return launch.call_count


def assert_every_kind_of_source(device: str = "cpu") -> None:
    """In one launch for up to SOURCES_PER_LAUNCH heads; a table of its own, or none at all, is as good as many."""
    of_every_kind = sources(device)
    for heads, num_launches in ((of_every_kind, 1), (of_every_kind * 5, 3), (of_every_kind[:1], 1)):
        found = []
        assert (
            launches(lambda heads=heads, found=found: found.append(gather_labels(heads, gather_by_triton)))
            == num_launches
        )
        assert torch.equal(found[0], torch.cat([expected(labels) for labels in heads]))
        assert found[0].dtype == torch.int64
    assert launches(lambda: gather_labels(of_every_kind[5:], gather_by_triton)) == 0
    table_MN, index_B, draw = of_every_kind[0]
    assert gather_labels([(table_MN, index_B[:0], draw)] * 2, gather_by_triton).shape == (0,)


def assert_an_index_outside_the_table_is_no_class(device: str = "cpu") -> None:
    table_MN = torch.arange(20, device=device).view(2, 10)
    index_B = torch.tensor([-2, -1, 0, 9, 10, 2**40, -(2**40)], device=device)
    assert gather_labels([(table_MN, index_B, 1)], gather_by_triton).tolist() == [-1, 10, 10, 19, -1, -1, -1]


def by_table(problem_labels: Tensor, draw: int) -> Labels:
    """The same labels, as row `draw` of a table of samples in another order."""
    index_B = torch.arange(len(problem_labels), device=problem_labels.device).flip(0)
    table_MN = problem_labels.new_full((draw + 2, len(problem_labels)), 10**6)
    table_MN[draw, index_B] = problem_labels
    return table_MN, index_B, draw


def assert_losses_by_table(with_pairs: bool, device: str = "cpu") -> None:
    """Several heads, each with a draw of its own, get the bits that they get from tensors of labels."""
    problems = [on_device(make_problem(seed, 6, 40).to(torch.float32), device) for seed in (3, 6, 9)]
    features_BD = problems[0].features_BD.requires_grad_()
    weights = [problem.weight_KD.requires_grad_() for problem in problems]
    pairs = [problem.pair for problem in problems]
    plain = [problem.labels_B for problem in problems]
    tables = [by_table(labels_B, draw) for draw, labels_B in enumerate(plain)]
    pairs_by_table = [(by_table(second_B, draw), weight_B) for draw, (second_B, weight_B) in enumerate(pairs)]

    def evaluate(labels: list[Labels], given: list | None) -> list[Tensor]:
        losses = random_label_losses(
            features_BD, weights, labels, pairs=given, regularizer="uniform", impl="triton"
        ).by_head()
        total = sum((loss.cross_entropy_B + loss.regularizer_B).sum() for loss in losses)
        gradients = torch.autograd.grad(total, (features_BD, *weights))
        return [*gradients, *(value for loss in losses for value in (loss.cross_entropy_B, loss.hit_B, loss.bits_B))]

    one = evaluate(tables, pairs_by_table if with_pairs else None)
    two = evaluate(plain, pairs if with_pairs else None)
    assert all(torch.equal(*values) for values in zip(one, two, strict=True))


def assert_tables_trace_and_compile() -> None:
    """The operator passes torch's own check, and a step with tables and a pair compiles into one graph."""
    rows, indices = [torch.arange(9), torch.arange(4).int()], [torch.tensor([3, -1, 8, 0]), None]
    torch.library.opcheck(torch.ops.rlpheads.triton_gather_labels.default, (rows, indices))
    with FakeTensorMode():
        fake = gather_labels(
            [(torch.zeros(2, 9, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), 1)] * 3, gather_by_triton
        )
    assert (fake.shape, fake.dtype) == ((12,), torch.int64)
    problem = make_problem(3, 8, 40).to(torch.float32)
    labels, second = by_table(problem.labels_B, 1), by_table(problem.pair[0], 2)
    inputs = (problem.features_BD.requires_grad_(), problem.weight_KD.requires_grad_(), labels[0], labels[1], second[1])

    def step(features_BD: Tensor, weight_KD: Tensor, table_MN: Tensor, index_B: Tensor, partner_B: Tensor) -> Tensor:
        pair = ((second[0], partner_B, 2), problem.pair[1])
        loss = random_label_loss(
            features_BD, weight_KD, (table_MN, index_B, 1), pair=pair, regularizer="uniform", impl="triton"
        )
        return loss.cross_entropy_B.mean() + loss.regularizer_B.mean()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected, actual = (torch.autograd.grad(call(*inputs), inputs[:2]) for call in (step, compiled))
    for one, two in zip(expected, actual, strict=True):
        torch.testing.assert_close(two, one)
