"""Taps: which blocks of the network a head reads, and how a block's output becomes one feature vector for each row."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

Pool = Literal["token", "mean"]


def select_taps(spec: Literal["all", "none"] | str | Sequence[int], num_blocks: int) -> tuple[int, ...]:
    """Block numbers that `spec` asks for, ascending, without repeats, in [0, num_blocks).

    Args:
        spec: "all", "none", or block numbers; a negative number counts from the end, so -1 is the last block.
        num_blocks: how many blocks the network has.

    Raises:
        ValueError: an unknown word, an empty list, a number that is no block, or one block named twice.
    """
    if num_blocks < 1:
        raise ValueError(f"a network with taps needs at least 1 block, got {num_blocks}")
    if isinstance(spec, str):
        return _named_taps(spec, num_blocks)
    if not spec:
        raise ValueError("an empty list of taps: name at least one block, or write 'none' for no heads")
    named: dict[int, int] = {}
    for number in spec:
        block = _block(number, num_blocks)
        if block in named:
            raise ValueError(
                f"taps name block {block} twice, as {named[block]} and as {number}: each block at most once"
            )
        named[block] = number
    return tuple(sorted(named))


def pool_tokens(tokens: Tensor, prefix_BPD: Tensor | None, pool: Pool) -> Tensor:
    """One feature vector for each row, from a block's output: (B, D).

    Args:
        tokens: tokens (B, L, D) without the prefix tokens, or a feature map (B, D, H, W).
        prefix_BPD: the prefix tokens, the class token first; None or P = 0 where the network has none.
        pool: "token" takes the class token, "mean" the mean of `tokens` over L, or over H and W.

    Raises:
        ValueError: an unknown `pool`, "token" without a prefix token, or `tokens` of another rank.
    """
    if pool == "token":
        if prefix_BPD is None or prefix_BPD.shape[1] == 0:
            raise ValueError("pool 'token' needs a class token, and this network has no prefix tokens: use 'mean'")
        return prefix_BPD[:, 0]
    if pool != "mean":
        raise ValueError(f"unknown pool {pool!r}: use one of {', '.join(get_args(Pool))}")
    if tokens.ndim == 3:
        return tokens.mean(dim=1)
    if tokens.ndim == 4:
        return tokens.mean(dim=(2, 3))
    raise ValueError(f"a tap is (B, L, D) tokens or a (B, D, H, W) map, got a tensor of shape {tuple(tokens.shape)}")


def _named_taps(spec: str, num_blocks: int) -> tuple[int, ...]:
    if spec == "all":
        return tuple(range(num_blocks))
    if spec == "none":
        return ()
    nearest = difflib.get_close_matches(spec, ("all", "none"), n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"unknown taps {spec!r}: use 'all', 'none' or a list of block numbers{hint}")


def _block(number: int, num_blocks: int) -> int:
    """Return the block that a possibly negative number names."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"a tap is a whole number, got {number!r}")
    if not -num_blocks <= number < num_blocks:
        nearest = num_blocks - 1 if number > 0 else -num_blocks
        raise ValueError(
            f"tap {number} is not there: the network has {num_blocks} blocks, 0 to {num_blocks - 1}, or "
            f"{-num_blocks} to -1 from the end; the nearest is {nearest}"
        )
    return number % num_blocks
