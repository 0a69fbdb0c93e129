"""Counts what a GPU would have to launch for a loss: aten calls that write memory, those inside our operators too, and kernels
of Triton. Runs in the interpreter's process, as `triton_cases` does."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

from rlpheads.kernels.gpu import triton_passes
from rlpheads.kernels.random_label_loss import random_label_losses

WRITES_NOTHING = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
"""Beside views; by the operator's name."""


@dataclass
class Launches:
    """Names of what was launched, and how often."""

    aten: Counter[str] = field(default_factory=Counter)
    triton: Counter[str] = field(default_factory=Counter)
    grids: list[tuple[Any, ...]] = field(default_factory=list)
    """Of each launch of a Triton kernel its name, grid, numbers, flags, and shapes of its tensors, in their order."""

    @property
    def total(self) -> int:
        return self.aten.total() + self.triton.total()


class _AtenCounter(TorchDispatchMode):
    """Counts aten calls; of an operator of ours those that its implementation makes."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self._launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        if namespace == "rlpheads":
            with self:
                return _implementation(func)(*args, **(kwargs or {}))
        name = name.partition(".")[0]
        found = func(*args, **(kwargs or {}))
        if name not in WRITES_NOTHING and (func._schema.is_mutable or _storages(found) - _storages((args, kwargs))):
            self._launches.aten[name] += 1
        return found


def _storages(values: Any) -> set[int]:
    """Storages of the tensors among some values: those of a view are its base's."""
    tensors = [each for each in tree_leaves(values) if isinstance(each, Tensor) and each.numel()]
    return {each.untyped_storage()._cdata for each in tensors}


def _implementation(func: Any) -> Any:
    """The Python function of an operator of ours."""
    from torch._library.custom_ops import OPDEFS

    from rlpheads.kernels.batched import batched_loss

    if func.name() in OPDEFS:
        return OPDEFS[func.name()]._init_fn
    return batched_loss.IMPLEMENTATIONS[func.name()]


@contextmanager
def counted() -> Iterator[Launches]:
    """Count what is launched here, in backward passes too."""
    launches = Launches()
    run, matmul_into = InterpretedFunction.run, triton_passes.matmul_into

    def counting(kernel: Any, *arguments: Any, **options: Any) -> Any:
        launches.triton[kernel.__name__] += 1
        shapes = [each.shape if isinstance(each, Tensor) else each for each in tree_leaves(arguments)]
        launches.grids.append((kernel.__name__, *shapes, *sorted(options.items(), key=str)))
        with _disable_current_modes():
            return run(kernel, *arguments, **options)

    def product(multiply: Any) -> Any:
        """One of the library's matrix products on a GPU; on a CPU it takes several calls."""

        def counting_one(*arguments: Tensor) -> Any:
            launches.aten["bmm"] += _get_current_dispatch_mode() is not None  # not within another
            with _disable_current_modes():
                return multiply(*arguments)

        return counting_one

    with (
        _AtenCounter(launches),
        patch.object(InterpretedFunction, "run", counting),
        patch.object(triton_passes, "matmul_float32", product(triton_passes.matmul_float32)),
        patch.object(triton_passes, "matmul_into", product(matmul_into)),
    ):
        yield launches


@dataclass(frozen=True)
class Step:
    """The loss of a step, forward and backward: heads with biases, each of features of its own, labels from a table."""

    num_heads: int
    num_labels: int
    regularizer: str | None
    impl: str = "triton"
    rows: int = 8
    features: int = 16
    seed: int = 0

    def run(self) -> Launches:
        """Its launches; the upstream gradients are the caller's, and not counted."""
        generator = torch.Generator().manual_seed(self.seed)
        features = [
            torch.randn(self.rows, self.features, generator=generator).bfloat16() for _ in range(self.num_heads)
        ]
        weights = [torch.randn(self.num_labels, self.features, generator=generator) for _ in range(self.num_heads)]
        biases = [torch.zeros(self.num_labels) for _ in weights]
        table_MN = torch.randint(self.num_labels, (self.num_heads, 50), generator=generator)
        index_B = torch.randint(50, (self.rows,), generator=generator)
        for tensor in (*weights, *biases, *(features if self.regularizer else ())):
            tensor.requires_grad_()
        labels = [(table_MN, index_B, draw) for draw in range(self.num_heads)]
        upstream_B = torch.rand(self.rows, generator=generator)
        with counted() as launches:
            losses = random_label_losses(
                features, weights, labels, biases=biases, regularizer=self.regularizer, impl=self.impl
            )
            outputs = [loss.cross_entropy_B for loss in losses]
            if self.regularizer:
                outputs += [loss.regularizer_B for loss in losses]  # type: ignore[misc]
            inputs = [*weights, *biases, *(features if self.regularizer else ())]
            torch.autograd.grad(outputs, inputs, [upstream_B] * len(outputs))
        return launches


def launches_of(step: Step) -> Launches:
    """What a step launches."""
    return step.run()


HOST_READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_to_cpu"}
"""Calls that wait for a GPU's values."""


def assert_launches_do_not_depend_on_values() -> None:
    """Two steps with other values, labels among them, launch the same on the same shapes."""
    for kind in (None, "uniform", "entropy"):
        one, two = (Step(3, 300, kind, seed=seed).run() for seed in (0, 1))
        assert one.grids == two.grids
        assert one.aten == two.aten
        assert not HOST_READS & one.aten.keys()
