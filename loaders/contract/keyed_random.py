"""Random numbers that belong to samples: on the host (`uniforms`), and the same on a device (`KeyedStream`).

A number is a hash of (seed, stream, epoch, canonical index, position), so no generator has a state: a batch's numbers do
not depend on the batch, its rank, its loader or where a run was resumed. `KeyedStream` reads no value on the host.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlpheads.loaders.contract.arrays import FloatArray, Int64Array, UInt64Array
from rlpheads.loaders.contract.hashing import (
    GOLDEN,
    absorb,
    absorb_tensor,
    hash64,
    mix64,
    mix64_tensor,
    shift_right,
    stream_key,
    stream_state,
)

_LOW_32 = 0xFFFFFFFF


def uniforms(seed: int, epoch: int, index_B: Int64Array, num_draws: int, *, stream: str = "crops") -> FloatArray:
    """Draw uniform numbers that depend on (seed, stream, epoch, index) alone, never on the batch they are asked for in.

    Returns:
        float64 (B, num_draws) in [0, 1), multiples of 2**-53. The first columns do not depend on num_draws.
    """
    return uniform_rows(seed, epoch, index_B, num_draws=num_draws, stream=stream).T


def uniform_rows(seed: int, epoch: int, *names: Int64Array, num_draws: int, stream: str) -> FloatArray:
    """Draw what `uniforms` draws, each sample's numbers in a column: float64 (num_draws, B), contiguous.

    Args:
        seed: key of the run.
        epoch: epoch, from 0.
        names: int64 (B,), what names a sample: its canonical index, or the two of a pair.
        num_draws: numbers of each sample.
        stream: name of the consumer.
    """
    state_B = stream_state(seed, stream, epoch)
    for name in names:
        state_B = absorb(state_B, name.astype(np.uint64))
    bits_UB = mix64(_increments(num_draws) + state_B)
    bits_UB >>= np.uint64(11)
    return np.multiply(bits_UB, 2.0**-53, dtype=np.float64)


def normals(seed: int, epoch: int, index_B: Int64Array, num_draws: int, *, stream: str) -> NDArray[np.float32]:
    """Draw standard normal numbers, those of `KeyedStream.normals`: float32 (B, num_draws), two from each word."""
    state_B = absorb(stream_state(seed, stream, epoch), index_B.astype(np.uint64))
    bits_UB = mix64(_increments(-(-num_draws // 2)) + state_B)
    halves_UB = np.concatenate([bits_UB & np.uint64(_LOW_32), bits_UB >> np.uint64(32)])[:num_draws]
    middles_UB = ((halves_UB >> np.uint64(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-22) - np.float32(
        1
    )
    return np.asarray(_to_normals(torch.from_numpy(middles_UB.T)))


def _to_normals(middles: Tensor) -> Tensor:
    """Return the quantiles of the standard normal distribution at (1 + middles) / 2."""
    return torch.erfinv(middles).mul_(math.sqrt(2))


@lru_cache(maxsize=64)
def _increments(num_draws: int) -> UInt64Array:
    """Return splitmix64's counter at each draw, which is added to a sample's hash: uint64 (U, 1)."""
    return (np.arange(num_draws, dtype=np.uint64)[:, None] + np.uint64(1)) * np.uint64(GOLDEN)


class KeyedStream(nn.Module):
    """A named stream of random numbers, as a module so that its key moves with `.to(device)`.

    The numbers of a sample do not depend on how many are asked for: more draws only add columns.

    Args:
        seed: key of the run.
        stream: name of the consumer; streams of other names are unrelated.
    """

    key: Tensor

    def __init__(self, seed: int, stream: str) -> None:
        super().__init__()
        key = int(hash64(seed, stream_key(stream)).astype("int64"))
        self.register_buffer("key", torch.tensor(key, dtype=torch.int64), persistent=False)

    def words(self, epoch: int | Tensor, *names: Tensor) -> Tensor:
        """Return one 64-bit word for each sample, a hash of the stream, the epoch and what names it.

        Args:
            epoch: epoch, from 0; a compiled graph takes it as a tensor, int64 () on the stream's device.
            names: int64 tensors that broadcast: the canonical index, or the two of a pair.

        Returns:
            int64 of the names' broadcast shape.
        """
        words = absorb_tensor(self.key, epoch if isinstance(epoch, Tensor) else torch.full_like(self.key, epoch))
        for name in names:
            words = absorb_tensor(words, name)
        return words

    def bits(self, epoch: int | Tensor, *names: Tensor, num_draws: int) -> Tensor:
        """Return `num_draws` 64-bit words for each sample: int64 (B, num_draws)."""
        words_B = self.words(epoch, *names)
        steps_U = torch.arange(1, num_draws + 1, device=words_B.device) * (GOLDEN - 2**64)
        return mix64_tensor(words_B[:, None] + steps_U)

    def uniforms(self, epoch: int | Tensor, *names: Tensor, num_draws: int) -> Tensor:
        """Return uniform numbers: float64 (B, num_draws) in [0, 1), multiples of 2**-53."""
        return shift_right(self.bits(epoch, *names, num_draws=num_draws), 11).to(torch.float64) * 2.0**-53

    def normals(self, epoch: int | Tensor, *names: Tensor, num_draws: int) -> Tensor:
        """Return standard normal numbers: float32 (B, num_draws), two from each word, within ±5.5."""
        bits_BU = self.bits(epoch, *names, num_draws=-(-num_draws // 2))
        halves_BU = torch.cat([bits_BU & _LOW_32, shift_right(bits_BU, 32)], dim=1)[:, :num_draws]
        # 23 bits at the middle of their step, which float32 holds exactly: never −1 or 1, whose quantiles are infinite.
        middles_BU = ((halves_BU >> 9).to(torch.float32) + 0.5) * 2.0**-22 - 1.0
        return _to_normals(middles_BU)
