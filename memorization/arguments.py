"""Argument checks shared by the whole room: one message for each mistake.

Counts, seeds and numbers of labels are Python integers or anything that stands for one exactly (`np.int64`, a 0-d integer
tensor); the checks return them as Python integers, so that neither a hash nor a square depends on the type that was given.
Floats and bools are refused even where they are whole: 10.0 samples are a slip, and a hash of 0.0 is not that of 0.
"""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor

INTEGER_DTYPES = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32),
)
"""Dtypes whose values int64 holds."""


def check_num_labels(num_labels: int) -> int:
    """Return K as an int; raise ValueError unless it is an integer of at least 2."""
    value = _as_integer(num_labels)
    if value is None or value < 2:
        raise ValueError(f"num_labels is {num_labels!r}; random labels need an integer of at least 2")
    return value


def check_count(name: str, value: int, minimum: int = 1) -> int:
    """Return `value` as an int; raise ValueError unless it is an integer of at least `minimum`.

    `name` is what the message calls it.
    """
    count = _as_integer(value)
    if count is None or count < minimum:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {minimum}")
    return count


def check_seed(seed: int, name: str = "seed") -> int:
    """Return a seed as an int; raise ValueError unless it is an integer, of any sign and size."""
    value = _as_integer(seed)
    if value is None:
        raise ValueError(
            f"{name} is {seed!r}; it must be an integer (no float, bool or text, which would hash differently)"
        )
    return value


def check_open_fraction(name: str, value: float) -> None:
    """Raise ValueError unless `value` lies strictly between 0 and 1; `name` is what the message calls it."""
    if not _is_number(value) or not 0.0 < value < 1.0:
        raise ValueError(f"{name} is {value!r}; it must lie strictly between 0 and 1")


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless the ratio α = n/d is a positive finite number."""
    if not _is_number(alpha) or not 0.0 < alpha < float("inf"):
        raise ValueError(f"alpha (samples / features) is {alpha!r}; it must be positive and finite")


def check_hits(name: str, values: Tensor) -> None:
    """Raise ValueError unless every value is a hit, 0 or 1: no NaN, fraction, percentage or logit. Reads the values."""
    _check_all(name, values, (values == 0) | (values == 1), "hits are 0 or 1")


def check_fractions(name: str, values: Tensor) -> None:
    """Raise ValueError unless every value lies in [0, 1]: no NaN, percentage or logit. Reads the values."""
    _check_all(name, values, (values >= 0) & (values <= 1), "they are fractions in [0, 1], neither percent nor logits")


def check_finite(name: str, values: Tensor) -> None:
    """Raise ValueError unless every value is finite. Reads the values."""
    _check_all(name, values, values.isfinite(), "NaN and infinity are refused")


def check_no_nan(name: str, values: Tensor) -> None:
    """Raise ValueError if a value is NaN; infinities pass. Reads the values."""
    _check_all(name, values, ~values.isnan(), "NaN is refused")


def check_integers(name: str, values: Tensor) -> None:
    """Raise ValueError unless the dtype is an integer one that int64 holds. Reads no value."""
    if values.dtype not in INTEGER_DTYPES:
        raise ValueError(f"{name} has dtype {values.dtype}; it must be an integer one of at most 64 bits, signed at 64")


def check_label_range(name: str, labels: Tensor, num_labels: int) -> None:
    """Raise ValueError unless all are integers in [0, K). Reads the values."""
    check_integers(name, labels)
    wide = labels.long()
    _check_all(name, labels, (wide >= 0) & (wide < num_labels), f"labels are integers in [0, {num_labels})")


def _check_all(name: str, values: Tensor, allowed: Tensor, what: str) -> None:
    if not bool(allowed.all()):
        refused = values[~allowed]
        raise ValueError(
            f"{name} holds {refused[0].item()} ({len(refused)} of {values.numel()} values refused): {what}"
        )


def _as_integer(value: Any) -> int | None:
    """The Python integer that `value` stands for exactly, or None."""
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
