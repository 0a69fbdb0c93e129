"""Counts what a GPU would have to launch for a loss: aten calls that write memory, those inside our operators too, and kernels
of Triton. Runs in the interpreter's process, as `triton_cases` does."""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from static_addresses import Arena
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

from rlpheads.kernels import operators
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
    arena: Arena = field(default_factory=Arena)
    """Where tensors would lie."""
    addresses: list[tuple[str, list[int]]] = field(default_factory=list)
    """Of each launch its name, and where its tensors lie."""

    def place(self, name: str, *values: Any) -> None:
        """Note where the tensors of a launch lie."""
        self.addresses.append((name, self.arena.addresses(values)))

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
                return operators.IMPLEMENTATIONS[func.name()](*args, **(kwargs or {}))
        name = name.partition(".")[0]
        found = func(*args, **(kwargs or {}))
        self._launches.place(name, args, kwargs, found)
        if name not in WRITES_NOTHING and (func._schema.is_mutable or _storages(found) - _storages((args, kwargs))):
            self._launches.aten[name] += 1
        return found


def _storages(values: Any) -> set[int]:
    """Storages of the tensors among some values: those of a view are its base's."""
    tensors = [each for each in tree_leaves(values) if isinstance(each, Tensor) and each.numel()]
    return {each.untyped_storage()._cdata for each in tensors}


@contextmanager
def counted(arena: Arena | None = None) -> Iterator[Launches]:
    """Count what is launched here, in backward passes too; tensors lie in the arena, if one is given, beside what it holds."""
    launches = Launches(arena=arena or Arena())
    run, matmul_into = InterpretedFunction.run, triton_passes.matmul_into

    def counting(kernel: Any, *arguments: Any, **options: Any) -> Any:
        launches.triton[kernel.__name__] += 1
        shapes = [each.shape if isinstance(each, Tensor) else each for each in tree_leaves(arguments)]
        launches.grids.append((kernel.__name__, *shapes, *sorted(options.items(), key=str)))
        launches.place(kernel.__name__, arguments)
        with _disable_current_modes():
            run(kernel, *arguments, **options)
        if arena is not None:
            gc.collect()  # the interpreter's closures refer to each other, and to the launch's tensors

    def product(multiply: Any) -> Any:
        """One of the library's matrix products on a GPU; on a CPU it takes several calls."""

        def counting_one(*arguments: Tensor) -> Any:
            launches.aten["bmm"] += _get_current_dispatch_mode() is not None  # not within another
            with _disable_current_modes():
                found = multiply(*arguments)
            launches.place("bmm", arguments, found)
            return found

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

    def inputs(self) -> "StepInputs":
        """What it computes with, drawn by the seed."""
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
        return StepInputs(features, weights, biases, table_MN, index_B, torch.rand(self.rows, generator=generator))

    def run(self, given: "StepInputs | None" = None, arena: Arena | None = None) -> Launches:
        """Its launches; the upstream gradients are the caller's, and not counted."""
        given = given or self.inputs()
        labels = [(given.table_MN, given.index_B, draw) for draw in range(self.num_heads)]
        with counted(arena) as launches:
            losses = random_label_losses(
                *(given.features, given.weights, labels),
                biases=given.biases,
                regularizer=self.regularizer,
                impl=self.impl,
            )
            outputs = [each for each in (losses.cross_entropy_HB, losses.regularizer_HB) if each is not None]
            inputs = [*given.weights, *given.biases, *(given.features if self.regularizer else ())]
            gradients = torch.autograd.grad(outputs, inputs, [given.upstream_B.expand_as(each) for each in outputs])
            launches.place("gradients", gradients)
        return launches


class StepInputs(NamedTuple):
    """Tensors of a step, which a CUDA graph finds at the same places at every replay."""

    features: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]
    table_MN: Tensor
    index_B: Tensor
    upstream_B: Tensor

    def copy_(self, other: "StepInputs") -> None:
        """Take the values of another's."""
        with torch.no_grad():
            for mine, theirs in zip(tree_leaves(tuple(self)), tree_leaves(tuple(other)), strict=True):
                mine.copy_(theirs)


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


def assert_every_call_meets_the_same_addresses(step: Step) -> None:
    """A second and a third call, on other values in the same inputs; the first may leave something behind."""
    arena, inputs = Arena(), step.inputs()
    calls = []
    gc.collect()
    gc.freeze()  # so that later collections are quick
    for seed in range(3):
        inputs.copy_(replace(step, seed=seed).inputs())
        calls.append(step.run(inputs, arena).addresses)
    gc.unfreeze()
    assert len(calls[1]) > 10
    assert calls[1] == calls[2]
    assert len({address for _, addresses in calls[1] for address in addresses}) > 10
