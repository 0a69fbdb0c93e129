"""rlpheads trains image classifiers and measures what they memorise, with random-label prediction heads.

The rooms are `rlpheads.engine`, `rlpheads.loaders`, `rlpheads.kernels` and `rlpheads.memorization`, each imported by itself.
What a training loop of one's own begins with is at hand here as well, and is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlpheads.engine.integrations.measurement import HeadSettings as HeadSettings
    from rlpheads.engine.integrations.measurement import Measurement as Measurement
    from rlpheads.engine.model.tapped_model import TappedModel as TappedModel
    from rlpheads.engine.tables.run_tables import open_run as open_run
    from rlpheads.kernels.random_label_loss import random_label_loss as random_label_loss
    from rlpheads.loaders.adapters.indexed_dataset import IndexedDataset as IndexedDataset
    from rlpheads.loaders.adapters.indexed_dataset import collate_indexed as collate_indexed
    from rlpheads.loaders.factory import make_loader as make_loader
    from rlpheads.loaders.sources.datasets import open_dataset as open_dataset
    from rlpheads.memorization.heads.combined_loss import TermWeights as TermWeights
    from rlpheads.memorization.heads.combined_loss import combine_losses as combine_losses
    from rlpheads.memorization.heads.head_losses import HeadTerms as HeadTerms
    from rlpheads.memorization.heads.labels import label_table as label_table
    from rlpheads.memorization.heads.rlp_heads import RLPHeads as RLPHeads
    from rlpheads.memorization.records.ledger import Ledger as Ledger
    from rlpheads.memorization.records.ledger_file import LedgerMetadata as LedgerMetadata

    __version__: str

_MODULES = {
    "HeadSettings": "rlpheads.engine.integrations.measurement",
    "HeadTerms": "rlpheads.memorization.heads.head_losses",
    "IndexedDataset": "rlpheads.loaders.adapters.indexed_dataset",
    "Ledger": "rlpheads.memorization.records.ledger",
    "LedgerMetadata": "rlpheads.memorization.records.ledger_file",
    "Measurement": "rlpheads.engine.integrations.measurement",
    "RLPHeads": "rlpheads.memorization.heads.rlp_heads",
    "TappedModel": "rlpheads.engine.model.tapped_model",
    "TermWeights": "rlpheads.memorization.heads.combined_loss",
    "collate_indexed": "rlpheads.loaders.adapters.indexed_dataset",
    "combine_losses": "rlpheads.memorization.heads.combined_loss",
    "label_table": "rlpheads.memorization.heads.labels",
    "make_loader": "rlpheads.loaders.factory",
    "open_dataset": "rlpheads.loaders.sources.datasets",
    "open_run": "rlpheads.engine.tables.run_tables",
    "random_label_loss": "rlpheads.kernels.random_label_loss",
}
"""Each door, and the module that it opens when it is first asked for."""

__all__ = [
    "HeadSettings",
    "HeadTerms",
    "IndexedDataset",
    "Ledger",
    "LedgerMetadata",
    "Measurement",
    "RLPHeads",
    "TappedModel",
    "TermWeights",
    "__version__",
    "collate_indexed",
    "combine_losses",
    "label_table",
    "make_loader",
    "open_dataset",
    "open_run",
    "random_label_loss",
]

_ROOT = Path(__file__).resolve().parent.parent
if (
    _ROOT / "setup.py"
).is_file():  # the source tree, where the rooms are this folder's neighbours; a wheel has them in it
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rlpheads")
    except PackageNotFoundError:  # a source tree that is not installed
        import tomllib

        return str(tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
