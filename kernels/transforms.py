"""Function transforms (torch.func) and forward-mode AD, which only the reference implementation has rules for.

Without this check `torch.func.jvp` and dual numbers would yield tangents of 0, since custom operators drop them silently.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

TRANSFORMS = {"Grad": "grad, vjp or jacrev", "Vmap": "vmap", "Jvp": "jvp or jacfwd"}
"""Functions of torch.func by the name of their level on functorch's stack."""


@torch.compiler.assume_constant_result
def may_transform() -> bool:
    """Whether a function transform or forward-mode AD is at work at all.

    torch.compile asks once, while it traces under the transforms; its own guards see to it that they are the same later.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def check_no_transform(tensors: Iterable[Tensor]) -> None:
    """Check that neither a function transform nor forward-mode AD asks for derivatives or batches of these tensors.

    torch.compile leaves it to the eager call.

    Raises:
        RuntimeError: one does; the message names it.
    """
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break("random_label_loss was called under a transform of torch.func or forward-mode AD")
    if asked := _requested_transform(list(tensors)):
        raise _refusal(asked)


def check_no_transform_of_backward(upstream: Tensor) -> None:
    """Check that a backward gets one upstream at a time, neither many in a batch nor one with a tangent.

    Raises:
        RuntimeError: it does not; the message names who asks.
    """
    if torch.compiler.is_compiling():
        return
    if torch._C._functorch.is_legacy_batchedtensor(upstream):
        raise _refusal("torch.autograd with batches of gradients (is_grads_batched, vectorize)")
    if may_transform():
        check_no_transform([upstream])


def _refusal(asked: str) -> RuntimeError:
    return RuntimeError(
        f"random_label_loss was called under {asked}, for which its tiled and fused implementations have no rules: pass "
        "impl='reference', which holds all B×K logits"
    )


def _requested_transform(tensors: list[Tensor]) -> str | None:
    """The innermost transform that acts on the tensors.

    It does not act on tensors that it does not wrap and that need no gradient: they are constants to it.
    """
    functorch = torch._C._functorch
    levels = [level.key().name for level in functorch.get_interpreter_stack() or ()]
    names = [TRANSFORMS[level] for level in levels if level in TRANSFORMS]
    if names and any(functorch.is_functorch_wrapped_tensor(tensor) or tensor.requires_grad for tensor in tensors):
        return f"torch.func.{names[-1]}"
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors if tensor.is_floating_point()):
        return "torch.autograd.forward_ad"
    return None
