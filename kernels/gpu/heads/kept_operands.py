"""Weights in the dtype of the matrix products, written once for each of their versions; imports no Triton."""

from collections.abc import Sequence
from typing import NamedTuple
from weakref import ReferenceType, finalize, ref

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook


class _Stack(NamedTuple):
    """Weights that were copied, their states then, and the copy."""

    weights: tuple["ReferenceType[Tensor]", ...]
    states: tuple[tuple[int, int], ...]
    stacked_KD: Tensor

    def place_of(self, weight: Tensor) -> int | None:
        """Which of the weights this is; None: none of them."""
        return next((number for number, each in enumerate(self.weights) if each() is weight), None)


class KeptOperands:
    """Copies of heads' weights for the matrix products, kept for as long as the weights stay as they are.

    A caller keeps one beside its heads: micro-batches of a step, and the batches of an evaluation, then cast no weight again.
    It takes K·D numbers a head in the dtype of the products. Whether a weight has changed is told by its version counter, which
    every operation on the weight raises but the fused steps of torch's optimizers: of these a hook on all optimizers tells.
    What changes a weight behind the back of both (`weight.data`, a replayed CUDA graph) must be followed by `forget`. Under
    torch.compile and while a CUDA graph is captured nothing is kept.
    """

    def __init__(self) -> None:
        self._stacks: list[_Stack] = []
        self._watches_optimizers = False

    def __reduce__(self) -> tuple[type["KeptOperands"], tuple[()]]:
        """Copies and pickles are empty."""
        return KeptOperands, ()

    def forget(self) -> None:
        """Drop all copies."""
        self._stacks = []

    def stack(self, weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The weights one after another in a dtype, (H·K, D)."""
        if torch.compiler.is_compiling() or not all(map(_may_be_kept, weights)):
            return stack_weights(weights, dtype)
        states = tuple(map(_state_of, weights))
        for stack in self._stacks:
            if stack.states == states and stack.stacked_KD.dtype == dtype and _are(stack.weights, weights):
                return stack.stacked_KD
        self._watch_optimizers()
        # One copy of each weight: heads that come in other groups replace it.
        held = {id(weight) for weight in weights}
        self._stacks = [stack for stack in self._stacks if not any(id(each()) in held for each in stack.weights)]
        self._stacks.append(_Stack(tuple(map(ref, weights)), states, stack_weights(weights, dtype)))
        return self._stacks[-1].stacked_KD

    def _watch_optimizers(self) -> None:
        """Drop the copies of what an optimizer steps from here on; for as long as this lives."""
        if self._watches_optimizers:
            return
        reference = ref(self)

        def drop_stepped(optimizer: torch.optim.Optimizer, *_: object) -> None:
            kept = reference()
            if kept is not None:
                kept._drop_stepped(optimizer)

        finalize(self, register_optimizer_step_post_hook(drop_stepped).remove)
        self._watches_optimizers = True

    def _drop_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        stepped = {id(each) for group in optimizer.param_groups for each in group["params"] if each.grad is not None}
        self._stacks = [stack for stack in self._stacks if not any(id(each()) in stepped for each in stack.weights)]

    def copy_of(self, weight_KD: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The copy of one weight as it is, part of others' or alone, if there is one; None: `stack` would make one."""
        if torch.compiler.is_compiling() or not _may_be_kept(weight_KD):
            return None
        for stack in self._stacks:
            number = stack.place_of(weight_KD)
            if number is not None and stack.states[number] == _state_of(weight_KD):
                copies_HKD = stack.stacked_KD.unflatten(0, (len(stack.weights), -1))
                return copies_HKD[number] if copies_HKD.dtype == dtype else None
        return None

    def renew(self, weight_KD: Tensor) -> None:
        """Take the copy of one weight for one of the weight as it is now: whoever changed it has written both."""
        for place, stack in enumerate(self._stacks):
            number = stack.place_of(weight_KD)
            if number is not None:
                states = (*stack.states[:number], _state_of(weight_KD), *stack.states[number + 1 :])
                self._stacks[place] = stack._replace(states=states)


def stack_weights(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """A copy of the weights one after another in a dtype, (H·K, D), by one call."""
    stacked_HKD = weights[0].new_empty((len(weights), *weights[0].shape), dtype=dtype)
    torch._foreach_copy_(list(stacked_HKD.unbind()), list(weights))
    return stacked_HKD.flatten(0, 1)


def _state_of(weight: Tensor) -> tuple[int, int]:
    return weight._version, weight.data_ptr()


def _may_be_kept(weight: Tensor) -> bool:
    if type(weight) not in (Tensor, torch.nn.Parameter) or weight.is_inference():
        return False
    return not (weight.is_cuda and torch.cuda.is_current_stream_capturing())


def _are(references: Sequence["ReferenceType[Tensor]"], weights: Sequence[Tensor]) -> bool:
    return len(references) == len(weights) and all(
        each() is weight for each, weight in zip(references, weights, strict=True)
    )
