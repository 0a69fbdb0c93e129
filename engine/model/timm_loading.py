"""timm loaded without wandb, which it imports where it finds it, and which this engine never uses through it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_wandb() -> Iterator[None]:
    """Have `import timm` not find wandb, for which `timm.utils.summary` would take half a second of a start.

    `log.wandb` imports it afterwards; if it is loaded already, it stays. torch's compiler loads in here too, and keeps without
    a word what it does not find: nothing of torch's may be hidden.
    """
    if "wandb" in sys.modules:
        yield
        return
    sys.modules["wandb"] = None  # type: ignore[assignment]  # the import system's own way to say that there is none
    try:
        yield
    finally:
        del sys.modules["wandb"]
