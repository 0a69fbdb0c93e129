"""timm loaded without packages that it imports where it finds them, and that this engine never uses through it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NOT_USED = {
    "wandb": "`timm.utils.summary` takes half a second of a start for it; `log.wandb` imports it itself",
}
"""Modules, each with who loads it and why nothing is lost."""


@contextmanager
def without_extras() -> Iterator[None]:
    """Have `import timm` not find what only its own scripts need.

    It can be imported afterwards; what is loaded already stays.
    """
    absent = [name for name in _NOT_USED if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]  # the import system's own way to say that there is none
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
