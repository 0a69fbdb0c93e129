"""timm loaded without a package that it imports where it is installed, and that this engine never uses through it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_wandb() -> Iterator[None]:
    """Have `import timm` find no wandb: `timm.utils.summary` takes half a second of a start for it.

    It can be imported afterwards, as `log.wandb` does; one that is loaded stays.
    """
    if "wandb" in sys.modules:
        yield
        return
    sys.modules["wandb"] = None  # type: ignore[assignment]  # the import system's own way to say that there is none
    try:
        yield
    finally:
        del sys.modules["wandb"]
