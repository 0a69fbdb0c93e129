"""Random numbers that belong to samples, made on the device: the same as `order.uniforms` makes on the host.

A number is a hash of (seed, stream, epoch, canonical index, position), so no generator has a state: a batch's numbers do
not depend on the batch, its rank, its loader or where a run was resumed. Nothing here reads a value on the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rlpheads.loaders.contract import order

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as the signed words that torch computes with; products and sums wrap
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_LOW_32 = 0xFFFFFFFF


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
        key = int(order.hash64(seed, order.stream_key(stream)).astype("int64"))
        self.register_buffer("key", torch.tensor(key, dtype=torch.int64), persistent=False)

    def words(self, epoch: int, *names: Tensor) -> Tensor:
        """Return one 64-bit word for each sample, a hash of the stream, the epoch and what names it.

        Args:
            epoch: epoch, from 0.
            names: int64 tensors that broadcast: the canonical index, or the two of a pair.

        Returns:
            int64 of the names' broadcast shape.
        """
        # A tensor, so that a compiled step takes the epoch as an input instead of as a constant.
        words = _absorb(self.key, torch.full_like(self.key, epoch))
        for name in names:
            words = _absorb(words, name)
        return words

    def bits(self, epoch: int, *names: Tensor, num_draws: int) -> Tensor:
        """Return `num_draws` 64-bit words for each sample: int64 (B, num_draws)."""
        words_B = self.words(epoch, *names)
        steps_U = torch.arange(1, num_draws + 1, device=words_B.device) * _GOLDEN
        return _mix64(words_B[:, None] + steps_U)

    def uniforms(self, epoch: int, *names: Tensor, num_draws: int) -> Tensor:
        """Return uniform numbers: float64 (B, num_draws) in [0, 1), multiples of 2**-53."""
        return _shift_right(self.bits(epoch, *names, num_draws=num_draws), 11).to(torch.float64) * 2.0**-53

    def normals(self, epoch: int, *names: Tensor, num_draws: int) -> Tensor:
        """Return standard normal numbers: float32 (B, num_draws), two from each word, within ±5.5."""
        bits_BU = self.bits(epoch, *names, num_draws=-(-num_draws // 2))
        halves_BU = torch.cat([bits_BU & _LOW_32, _shift_right(bits_BU, 32)], dim=1)[:, :num_draws]
        # 23 bits at the middle of their step, which float32 holds exactly: never −1 or 1, whose quantiles are infinite.
        middles_BU = ((halves_BU >> 9).to(torch.float32) + 0.5) * 2.0**-22 - 1.0
        return torch.erfinv(middles_BU).mul_(math.sqrt(2))


def _absorb(state: Tensor, word: Tensor) -> Tensor:
    """Add a word to a running hash, as `rlpheads.loaders.contract.order.hash64` does."""
    return _mix64((state ^ word) + _GOLDEN)


def _mix64(words: Tensor) -> Tensor:
    """Return splitmix64's finaliser of each word."""
    words = (words ^ _shift_right(words, 30)) * _MULTIPLIERS[0]
    words = (words ^ _shift_right(words, 27)) * _MULTIPLIERS[1]
    return words ^ _shift_right(words, 31)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Shift in zeros from the left: torch's int64 shift copies the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
