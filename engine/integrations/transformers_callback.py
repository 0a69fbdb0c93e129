"""A callback of Hugging Face's Trainer that measures a classifier's memory with heads, and regularises it on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlpheads.engine.integrations.loader_rows import count_samples
from rlpheads.engine.integrations.measurement import HeadSettings, Measurement
from rlpheads.loaders.adapters.indexed_dataset import INDEX

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:  # pragma: no cover
    raise ImportError("TrainerHeads needs Hugging Face's transformers: pip install 'rlpheads[transformers]'") from error

_FILE = "rlpheads.pt"


class TrainerHeads(TrainerCallback):
    """Heads beside a model that Hugging Face's Trainer trains; a ledger of every sample is written at each epoch's end.

    Give it to the Trainer when it is made (`callbacks=[…]`), with `remove_unused_columns=False`, and the training set as an
    `IndexedDataset`; the evaluation set may be one, too, which gives the held-out check. The model gets its `labels` and never
    sees the `index`. Accuracies by tap are in the Trainer's log history as `rla/TAP`, `audit_rla/TAP` and `heldout_rla/TAP`,
    and in `figures` by epoch. Heads are kept in the Trainer's checkpoints; a run that goes on inside an epoch writes a ledger
    of the samples since then.

    Args:
        settings: of the heads.
        folder: where ledgers are written.
        fingerprint: what tells this training set from others in the ledgers' metadata.
    """

    def __init__(self, settings: HeadSettings, folder: str | Path, *, fingerprint: str = ""):
        self.settings = settings
        self.folder = Path(folder)
        self.fingerprint = fingerprint
        self.figures: list[dict[str, float]] = []
        self.measurement: Measurement | None = None
        self._share = 1.0

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any) -> None:
        """Take the index out of what the model is called with.

        Raises:
            ValueError: the Trainer would drop the index, or trains in fp16 with a regulariser, whose loss scale this callback
                does not know.
        """
        if args.remove_unused_columns:
            raise ValueError(
                "the Trainer drops what the model does not take, the index too: set remove_unused_columns=False"
            )
        if self.settings.factor > 0 and args.fp16:
            raise ValueError(f"fp16 and factor {self.settings.factor}: regularise in bf16 or fp32")
        found["model"].register_forward_pre_hook(self._take_index, with_kwargs=True, prepend=True)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any
    ) -> None:
        """Hook the heads to the model.

        Raises:
            ValueError: no such tap, or a loader without indices.
        """
        if self.measurement is not None:
            self.measurement.release()
        self._share = 1 / args.gradient_accumulation_steps
        num_samples = count_samples(found["train_dataloader"])
        self.measurement = Measurement(found["model"], self.settings, num_samples, self.folder, self.fingerprint)
        kept = _state_file(args, state)
        if state.global_step and kept.is_file():
            self.measurement.load_state_dict(torch.load(kept, map_location=self.measurement.device, weights_only=True))

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any) -> None:
        """Write the ledger and log the figures."""
        if self.measurement is not None:
            epoch = max(0, round(state.epoch or 0) - 1)
            self.figures.append(self.measurement.finish_epoch(epoch, state.global_step))
            state.log_history.append({**self.figures[-1], "epoch": state.epoch, "step": state.global_step})

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any) -> None:
        """Log the held-out check, which belongs to the epoch before."""
        if self.measurement is not None and (heldout := self.measurement.finish_heldout()):
            if self.figures:
                self.figures[-1] |= heldout
            state.log_history.append({**heldout, "epoch": state.epoch, "step": state.global_step})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any) -> None:
        """Keep the heads beside the Trainer's checkpoint."""
        if self.measurement is not None and state.is_world_process_zero:
            torch.save(self.measurement.state_dict(), _state_file(args, state))

    def _take_index(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any] | None:
        if INDEX not in named:
            return None
        named = dict(named)
        index = named.pop(INDEX)
        if self.measurement is not None:
            if "labels" not in named:
                raise ValueError(
                    "the model was called with an index and without labels: the Trainer keeps those to itself with "
                    "label_smoothing_factor and compute_loss_func, which these heads do not go with"
                )
            self.measurement.expect(index, named["labels"], self._share)
        return inputs, named


def _state_file(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE
