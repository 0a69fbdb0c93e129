"""A LightningModule measured by a callback: its training step only passes by the index that batches end with.

pip install 'rlpheads[lightning]'
python examples/lightning_module.py [FOLDER]
"""

import sys

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from rlpheads import HeadSettings, IndexedDataset
from rlpheads.engine.integrations.lightning_callback import LightningHeads

EPOCHS, NUM_TRAIN = 5, 1400


class Classifier(pl.LightningModule):
    """A network of two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return the class loss."""
        images, targets, _index = batch
        return cross_entropy(self.network(images), targets)

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        """Log the accuracy."""
        images, targets, _index = batch
        self.log("top1", (self.network(images).argmax(-1) == targets).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


folder = sys.argv[1] if len(sys.argv) > 1 else "runs/lightning"
torch.manual_seed(0)
digits, classes = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
images = (digits / 16).float()
train = IndexedDataset(TensorDataset(images[:NUM_TRAIN], classes[:NUM_TRAIN]))
heldout = IndexedDataset(TensorDataset(images[NUM_TRAIN:], classes[NUM_TRAIN:]))

heads = LightningHeads(HeadSettings(taps=["1", "3"], num_labels=10, lr=1e-2), folder, network="network")
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = pl.Trainer(
    max_epochs=EPOCHS, accelerator="cpu", devices=1, callbacks=[heads], default_root_dir=folder, **quiet
)
trainer.fit(Classifier(), DataLoader(train, batch_size=64, shuffle=True), DataLoader(heldout, batch_size=256))

print(f"held-out top-1 {float(trainer.callback_metrics['top1']):.3f}")
for name, value in heads.figures[-1].items():
    print(f"{name} {value:.3f} (chance 0.100)")
