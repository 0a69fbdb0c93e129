"""Random labels as a pure function of (seed, split, draw, sample id).

Nothing is drawn from a generator: a sample's label is a hash of its identity, scaled to [0, K). The labels are therefore
the same on any device, rank, world size, order and loader, they never need broadcasting, and asking for more draws or
more samples changes none of those already there. Two splits of one run get unrelated labels because the split's name is
hashed too.
"""

from __future__ import annotations

import difflib
from typing import Literal, get_args

import torch
from torch import Tensor

from rlpheads.memorization.arguments import check_count, check_integers, check_num_labels, check_seed
from rlpheads.memorization.heads.hashing import key_from_name, logical_shift_right, splitmix64

Balance = Literal["iid", "balanced"]

MAX_LABELS = 2**31  # labels are stored as int32, and the scaling below stays inside int64 up to here

_LOW_32 = 0xFFFFFFFF


def random_labels(sample_ids_N: Tensor, num_labels: int, *, key: int) -> Tensor:
    """Return independent uniform labels of the given samples: int32 in [0, K), of the ids' shape and device.

    Args:
        sample_ids_N: canonical indices of any integer dtype, in any order and any subset: each label depends on its own id
            alone, not on the dtype.
        num_labels: K, from 2 to 2^31.
        key: key of the draw, from `label_key`.

    The label is floor(hash·K / 2^64) with all 64 bits of the hash. Its probability is off 1/K by less than 2^-64, so
    that even products over millions of samples (the e-value 2^T) do not notice; 32 bits would not do for large K.

    Raises:
        ValueError: ids that are no integers, K out of range, or a key that is no signed 64-bit integer.
    """
    num_labels = _check_labels_fit(num_labels)
    check_integers("sample_ids_N", sample_ids_N)
    hash_N = splitmix64(key, sample_ids_N)
    high_N = logical_shift_right(hash_N, 32) * num_labels
    carry_N = ((hash_N & _LOW_32) * num_labels) >> 32
    return ((high_N + carry_N) >> 32).to(torch.int32)


def label_key(seed: int, split: str, draw: int) -> int:
    """Key of the random stream of one draw of one split's labels.

    Raises:
        ValueError: a seed that is no integer, a split whose name is no text, or a draw that is no integer of at least 0.
    """
    seed, draw = check_seed(seed), check_count("draw", draw, 0)
    if not isinstance(split, str):
        raise ValueError(f"split is {split!r}; it must be the split's name, as text")
    return key_from_name("labels", seed, split, draw)


def label_table(
    num_samples: int,
    num_labels: int,
    *,
    num_draws: int,
    seed: int,
    split: str,
    balance: Balance = "iid",
    device: torch.device | str | None = None,
) -> Tensor:
    """Every sample's random label in every draw.

    Args:
        num_samples: N, the samples of the split.
        num_labels: K, from 2 to 2^31.
        num_draws: M, independent draws.
        seed: seed of the run.
        split: name of the split; other names give unrelated labels.
        balance: "iid" draws every label independently. "balanced" gives each label equally often (counts differ by
            at most 1); its labels depend on N and on one another, so the bits' e-values and held-out splits need "iid".
        device: where the table is computed and lives.

    Returns:
        int32 (M, N).

    Raises:
        ValueError: a size is out of range or no integer, the seed is no integer, or `balance` is unknown.
    """
    num_samples, num_draws = check_count("num_samples", num_samples), check_count("num_draws", num_draws)
    num_labels = _check_labels_fit(num_labels)
    check_balance(balance)
    label = random_labels if balance == "iid" else _balanced_labels
    sample_ids_N = torch.arange(num_samples, device=device)
    return torch.stack([label(sample_ids_N, num_labels, key=label_key(seed, split, draw)) for draw in range(num_draws)])


def _balanced_labels(sample_ids_N: Tensor, num_labels: int, *, key: int) -> Tensor:
    """Cut the samples, in the order of their hashes, into K runs of equal length: int32 (N,)."""
    num_samples = sample_ids_N.numel()
    order_N = torch.argsort(splitmix64(key, sample_ids_N), stable=True)
    labels_N = torch.empty_like(order_N)
    labels_N[order_N] = torch.arange(num_samples, device=order_N.device) * num_labels // num_samples
    return labels_N.to(torch.int32)


def _check_labels_fit(num_labels: int) -> int:
    num_labels = check_num_labels(num_labels)
    if num_labels > MAX_LABELS:
        raise ValueError(f"num_labels is {num_labels}; labels are stored as int32, so it must be at most 2**31")
    return num_labels


def check_balance(balance: str) -> None:
    """Raise ValueError, with the nearest choice, unless `balance` is one of `Balance`."""
    choices = get_args(Balance)
    if balance not in choices:
        nearest = difflib.get_close_matches(str(balance), choices, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown balance {balance!r}: use one of {', '.join(choices)}; the nearest is {nearest!r}")
