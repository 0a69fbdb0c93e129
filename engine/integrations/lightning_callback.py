"""A Lightning callback that measures a LightningModule's memory with heads, and regularises it on request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from rlpheads.engine.integrations.loader_rows import count_samples, index_and_targets
from rlpheads.engine.integrations.measurement import HeadSettings, Measurement

try:
    import lightning.pytorch as pl
except ImportError as error:  # pragma: no cover
    raise ImportError("LightningHeads needs Lightning: pip install 'rlpheads[lightning]'") from error


class LightningHeads(pl.Callback):
    """Heads beside a network in a LightningModule; a ledger of every sample is written at each epoch's end.

    The training set is an `IndexedDataset`; so may the validation set be, which gives the held-out check. The module's
    `training_step` gets batches with the index behind the targets, and calls the network as ever. Accuracies by tap are logged
    as `rla/TAP`, `audit_rla/TAP` and `heldout_rla/TAP`; `figures` keeps them by epoch. Heads are part of Lightning's
    checkpoints; a run that goes on inside an epoch writes a ledger of the samples since then.

    Args:
        settings: of the heads.
        folder: where ledgers are written.
        network: name of the module that maps images to logits, inside the LightningModule; empty: that itself.
        rows: indices and classes of a batch.
        fingerprint: what tells this training set from others in the ledgers' metadata.
    """

    def __init__(
        self,
        settings: HeadSettings,
        folder: str | Path,
        *,
        network: str = "",
        rows: Callable[[Any], tuple[Tensor, Tensor]] = index_and_targets,
        fingerprint: str = "",
    ):
        self.settings = settings
        self.folder = Path(folder)
        self.network = network
        self.rows = rows
        self.fingerprint = fingerprint
        self.figures: list[dict[str, float]] = []
        self.measurement: Measurement | None = None
        self._state: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hook the heads to the network.

        Raises:
            ValueError: no such network or tap, a loader without indices, or a regulariser under fp16, whose loss scale this
                callback does not know.
        """
        if self.settings.factor > 0 and str(trainer.precision).startswith("16"):
            raise ValueError(
                f"precision is {trainer.precision} and factor {self.settings.factor}: regularise in bf16 or fp32"
            )
        modules = dict(pl_module.named_modules())
        if self.network not in modules:
            raise ValueError(f"network is {self.network!r}; the LightningModule has {', '.join(filter(None, modules))}")
        num_samples = count_samples(trainer.train_dataloader)
        self.measurement = Measurement(modules[self.network], self.settings, num_samples, self.folder, self.fingerprint)
        self.measurement.load_state_dict(self._state)

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Tell the heads which samples come next."""
        if self.measurement is not None:
            self.measurement.expect(*self.rows(batch), share=1 / trainer.accumulate_grad_batches)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The same for held-out samples, where they have indices."""
        if self.measurement is None:
            return
        try:
            rows = self.rows(batch)
        except ValueError:  # held-out images need no index
            return
        self.measurement.expect(*rows)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the ledger and log the figures."""
        if self.measurement is not None:
            found = self.measurement.finish_epoch(trainer.current_epoch, trainer.global_step)
            self.figures.append(found | self.measurement.finish_heldout())
            pl_module.log_dict(self.figures[-1])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the hooks off."""
        if self.measurement is not None:
            self._state = self.measurement.state_dict()
            self.measurement.release()
            self.measurement = None

    def state_dict(self) -> dict[str, Any]:
        """Return heads and their optimizer, for a checkpoint."""
        return self._state if self.measurement is None else self.measurement.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint holds."""
        self._state = state_dict
