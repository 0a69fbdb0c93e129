"""Which kernel torch takes for a network's attention: asked with the shapes that the network gives to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

_NAMES = {
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
    SDPBackend.CUDNN_ATTENTION: "cuDNN's",
    SDPBackend.MATH: "math, which writes all weights to memory",
}
_NUM_IMAGES = 2


class AttentionCall(NamedTuple):
    """What a network hands to torch's scaled dot product attention, but for the number of images.

    Attributes:
        query_shape: heads, tokens and width of the queries.
        key_shape: the same of the keys and values.
        dropout: probability with which weights are dropped in training.
        mask_shape: of what is added to the weights; None: nothing is.
    """

    query_shape: tuple[int, ...]
    key_shape: tuple[int, ...]
    dropout: float
    mask_shape: tuple[int, ...] | None

    def describe(self, device: torch.device, dtype: torch.dtype) -> str:
        """Say which kernel torch takes for it in training, on a device and in a dtype."""
        heads, tokens, width = self.query_shape
        name = _NAMES.get(choose_kernel(self, device, dtype), "another")
        return f"attention: {name} kernel of torch, for {heads} heads of {width}, {tokens} tokens, {dtype}"


class AttentionWatch(TorchFunctionMode):
    """While it is open, keeps the last call of torch's attention in `call`; None where there was none."""

    def __init__(self) -> None:
        super().__init__()
        self.call: AttentionCall | None = None

    def __torch_function__(
        self, function: Callable[..., Any], _types: Sequence[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Keep what attention is called with, and call what was asked for."""
        named = kwargs or {}
        if function is F.scaled_dot_product_attention and len(args) >= 3:
            mask: Tensor | None = named.get("attn_mask", args[3] if len(args) > 3 else None)
            self.call = AttentionCall(
                tuple(args[0].shape[-3:]),
                tuple(args[1].shape[-3:]),
                float(named.get("dropout_p", args[4] if len(args) > 4 else 0.0)),
                None if mask is None else tuple(mask.shape),
            )
        return function(*args, **named)


def choose_kernel(call: AttentionCall, device: torch.device, dtype: torch.dtype) -> SDPBackend:
    """Ask torch which kernel it takes for tensors like those of a call that are trained; nothing is computed."""
    query, key = (
        torch.empty(_NUM_IMAGES, *shape, device=device, dtype=dtype, requires_grad=True)
        for shape in (call.query_shape, call.key_shape)
    )
    mask = None if call.mask_shape is None else torch.empty(call.mask_shape, device=device, dtype=dtype)
    return SDPBackend(torch._fused_sdp_choice(query, key, key, mask, call.dropout, False))
