"""rlpheads trains image classifiers and measures what they memorise, with random-label prediction heads.

The rooms are `rlpheads.engine`, `rlpheads.loaders`, `rlpheads.kernels` and `rlpheads.memorization`, each imported by itself.
What a training loop of one's own begins with is at hand here as well, and is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlpheads.kernels.random_label_loss import random_label_loss as random_label_loss
    from rlpheads.memorization.heads.labels import label_table as label_table

__all__ = ["__version__", "label_table", "random_label_loss"]

_MODULES = {
    "label_table": "rlpheads.memorization.heads.labels",
    "random_label_loss": "rlpheads.kernels.random_label_loss",
}
_ROOT = Path(__file__).resolve().parent.parent
if (
    _ROOT / "setup.py"
).is_file():  # the source tree, where the rooms are this folder's neighbours; a wheel has them in it
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rlpheads")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
