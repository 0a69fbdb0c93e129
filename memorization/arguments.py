"""Argument checks shared by the whole room: one message for each mistake."""

from __future__ import annotations


def check_num_labels(num_labels: int) -> None:
    """Raise ValueError unless K is an integer of at least 2."""
    if int(num_labels) != num_labels or num_labels < 2:
        raise ValueError(f"num_labels is {num_labels}; random labels need an integer of at least 2")


def check_count(name: str, value: int, minimum: int = 1) -> None:
    """Raise ValueError unless `value` is an integer of at least `minimum`; `name` is what the message calls it."""
    if int(value) != value or value < minimum:
        raise ValueError(f"{name} is {value}; it must be an integer of at least {minimum}")


def check_open_fraction(name: str, value: float) -> None:
    """Raise ValueError unless `value` lies strictly between 0 and 1; `name` is what the message calls it."""
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} is {value}; it must lie strictly between 0 and 1")


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless the ratio α = n/d is a positive finite number."""
    if not 0.0 < alpha < float("inf"):
        raise ValueError(f"alpha (samples / features) is {alpha}; it must be positive and finite")
