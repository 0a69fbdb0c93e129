"""The ways to compute random-label losses that bench_random_label_loss.py compares, all on one problem.

Each contender is a pair of calls: the forward returns what is to be differentiated, the backward differentiates it. "Both
routes" means per-row cross-entropy whose gradient trains the head, and the `unlikelihood` regulariser whose gradient trains
the features. A library that has only the mean cross-entropy, with one gradient for both sides, is marked so: it does less.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlpheads.kernels.random_label_loss import random_label_loss

REGULARIZER = "unlikelihood"


@dataclass(frozen=True)
class Problem:
    """B rows of D features, a head of K labels, and the labels."""

    features_BD: Tensor
    weight_KD: Tensor
    labels_B: Tensor

    def clear(self) -> None:
        """Drop the gradients, as zero_grad does before a step."""
        self.features_BD.grad = self.weight_KD.grad = None


@dataclass(frozen=True)
class Contender:
    """One way to compute the losses and their gradients."""

    forward: Callable[[Problem], Tensor]
    both_routes: bool = True


def make_problem(num_rows: int, num_labels: int, num_features: int, dtype: torch.dtype, device: str) -> Problem:
    """A head near its initialisation: logits of standard deviation 0.5."""
    generator = torch.Generator().manual_seed(0)
    features_BD = torch.randn(num_rows, num_features, generator=generator)
    weight_KD = torch.randn(num_labels, num_features, generator=generator).mul_(0.5 / num_features**0.5)
    labels_B = torch.randint(num_labels, (num_rows,), generator=generator).to(device)
    features_BD, weight_KD = (tensor.to(device, dtype).requires_grad_() for tensor in (features_BD, weight_KD))
    return Problem(features_BD, weight_KD, labels_B)


def ours(impl: str, regularizer: str | None = REGULARIZER, **options: Any) -> Contender:
    """`random_label_loss` with these options."""

    def forward(problem: Problem) -> Tensor:
        loss = random_label_loss(
            problem.features_BD,
            problem.weight_KD,
            problem.labels_B,
            regularizer=regularizer,
            impl=impl,
            **options,
        )
        total = loss.cross_entropy_B.mean()
        return total if loss.regularizer_B is None else total + loss.regularizer_B.mean()

    return Contender(forward)


def two_losses(problem: Problem) -> Tensor:
    """Both routes as autograd users write them: two sets of logits, each with one side detached."""
    head_BK = F.linear(problem.features_BD.detach(), problem.weight_KD).float()
    features_BK = F.linear(problem.features_BD, problem.weight_KD.detach()).float()
    log_p_B = F.log_softmax(features_BK, 1).gather(1, problem.labels_B[:, None])[:, 0]
    regularizer_B = -torch.log1p(-log_p_B.exp())
    return F.cross_entropy(head_BK, problem.labels_B) + regularizer_B.mean()


def linear_cross_entropy(options: Any) -> Contender:
    """Torch's own fused linear and cross-entropy."""

    def forward(problem: Problem) -> Tensor:
        return F.linear_cross_entropy(problem.features_BD, problem.weight_KD, problem.labels_B, options=options)

    return Contender(forward, both_routes=False)


def contenders(device: str, num_rows: int, num_labels: int) -> dict[str, Contender]:
    """Everything that runs on this device; the reference holds B×K logits, so it is left out where they are many."""
    found = {
        "ours": ours("auto"),
        "ours, slabs": ours("triton" if device == "cuda" else "tiled_cpu", memory_budget=0),
        "ours, measuring only": ours("auto", None),
        "two losses, eager": Contender(two_losses),
        "two losses, compiled": Contender(torch.compile(two_losses)),
    }
    if hasattr(F, "linear_cross_entropy"):  # not in torch before 2.14
        chunked = torch.nn.LinearCrossEntropyOptions
        found["F.linear_cross_entropy"] = linear_cross_entropy(None)
        found["F.linear_cross_entropy, chunks"] = linear_cross_entropy(chunked())
        for size in (num_rows, num_rows // 2, num_rows // 4):
            found[f"F.linear_cross_entropy, chunks of {size}"] = linear_cross_entropy(chunked(batch_chunk_size=size))
    if num_rows * num_labels <= 2**24:
        found["ours, reference"] = ours("reference")
        if device == "cpu":
            found["ours, tiled"] = ours("tiled_cpu")  # which `auto` does not take where logits are few
    return found | (_gpu_libraries() if device == "cuda" else {})


def _gpu_libraries() -> dict[str, Contender]:
    """Those of Liger, Apple's CCE and QuACK that are installed."""
    found = {}
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        found["Liger"] = Contender(
            lambda p: liger_fused_linear_cross_entropy(p.features_BD, p.weight_KD, p.labels_B), both_routes=False
        )
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy as cce

        found["CCE"] = Contender(lambda p: cce(p.features_BD, p.weight_KD, p.labels_B), both_routes=False)
    if importlib.util.find_spec("quack"):
        from quack.linear_cross_entropy import chunked_linear_cross_entropy

        found["QuACK"] = Contender(
            lambda p: chunked_linear_cross_entropy(p.features_BD, p.weight_KD, p.labels_B), both_routes=False
        )
    return found


def floors(problem: Problem) -> dict[str, Callable[[], object]]:
    """Bare whole matrix products: torch's into buffers that exist, each in two layouts of the logits; on a CPU oneDNN's too.

    `logits` Z = X Wᵀ, `features` U = Z W and `weight` V = Zᵀ X: a floor is the sum of the fastest of each that it needs.
    On CPUs torch multiplies fp32 by MKL where it is built with it, which on some processors is a third of oneDNN's speed.
    """
    x_BD, w_KD = problem.features_BD.detach(), problem.weight_KD.detach()
    x_DB = x_BD.T.contiguous()
    z_BK = torch.zeros(len(x_BD), len(w_KD), dtype=x_BD.dtype, device=x_BD.device)
    z_KB = torch.zeros(len(w_KD), len(x_BD), dtype=x_BD.dtype, device=x_BD.device)
    u_BD, v_KD = torch.zeros_like(x_BD), torch.zeros_like(w_KD)
    by_onednn: dict[str, Callable[[], object]] = {}
    if x_BD.device.type == "cpu" and onednn_multiplies(x_BD.dtype):
        by_onednn = {
            "logits, oneDNN": lambda: onednn_product(x_BD, w_KD),
            "features, oneDNN": lambda: onednn_product(z_BK, w_KD.T),
            "weight, oneDNN": lambda: onednn_product(z_BK.T, x_BD.T),
        }
    return by_onednn | {
        "logits, rows by labels": lambda: torch.mm(x_BD, w_KD.T, out=z_BK),
        "logits, labels by rows": lambda: torch.mm(w_KD, x_DB, out=z_KB),
        "features, rows by labels": lambda: torch.mm(z_BK, w_KD, out=u_BD),
        "features, labels by rows": lambda: torch.mm(z_KB.T, w_KD, out=u_BD),
        "weight, rows by labels": lambda: torch.mm(z_BK.T, x_BD, out=v_KD),
        "weight, labels by rows": lambda: torch.mm(z_KB, x_BD, out=v_KD),
    }


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, and has products of this type on this processor: bfloat16 needs some of its instructions."""
    if not torch.backends.mkldnn.is_available():
        return False
    has_bfloat16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16)


def onednn_product(left_MN: Tensor, right_LN: Tensor) -> Tensor:
    """Return left @ rightᵀ, (M, L), by oneDNN, of float32 or bfloat16 on a CPU and in new memory."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left_MN, right_LN, None, "none", [], None)
    return product


def floors_together(problems: Sequence[Problem]) -> dict[str, Callable[[], object]]:
    """Return each of `floors` for several problems in one call, one after another."""
    found = [floors(problem) for problem in problems]
    return {name: partial(_call_all, [each[name] for each in found]) for name in found[0]}


def _call_all(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


FLOOR_OF = {
    "ours, slabs": ("logits", "logits", "features", "weight"),
    "ours, measuring only": ("logits", "weight"),
}
"""Products of a contender's floor; of all others logits, features and weight."""

THREE_PRODUCTS = ("logits", "features", "weight")
