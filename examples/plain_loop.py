"""A plain training loop that measures how much of its training set each layer memorises; seconds on a laptop.

    python examples/plain_loop.py [FOLDER]

It prints random-label accuracy by layer and writes FOLDER/ledger/epoch=0009/running.parquet, a row for each sample.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from rlpheads import IndexedDataset, Ledger, LedgerMetadata, RLPHeads, TappedModel, combine_losses, label_table

EPOCHS, NUM_LABELS, TAPS = 10, 10, ("1", "3", "5")
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/plain_loop")
torch.manual_seed(0)

digits, classes = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
dataset = IndexedDataset(TensorDataset((digits / 16).float(), classes))  # samples carry their index
layers = (
    nn.Linear(64, 128),
    nn.ReLU(),
    nn.Linear(128, 128),
    nn.ReLU(),
    nn.Linear(128, 128),
    nn.ReLU(),
    nn.Linear(128, 10),
)
network = TappedModel(nn.Sequential(*layers), TAPS)  # (logits, features at each tap), from any nn.Module

labels_MN = label_table(len(dataset), NUM_LABELS, num_draws=1, seed=0, split="train")  # random labels of every sample
heads = RLPHeads(network.dims(torch.zeros(2, 64)), NUM_LABELS, 1, seed=0)
ledger = Ledger(len(dataset), len(TAPS), 1)
optimizers = torch.optim.AdamW(network.parameters(), lr=1e-3), torch.optim.AdamW(heads.parameters(), lr=1e-2)

for _ in range(EPOCHS):
    ledger.reset()
    for images, targets, index in DataLoader(dataset, batch_size=64, shuffle=True):
        logits, taps = network(images)
        class_loss_B = cross_entropy(logits, targets, reduction="none")
        losses = heads(taps, labels_MN[:, index])
        (class_loss_B.mean() + combine_losses(losses).total).backward()  # the second term trains the heads alone
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        class_hit_B = logits.argmax(-1) == targets
        ledger.record(index, targets, class_loss_B, class_hit_B, losses.hit_TMB, losses.bits_TMB, losses.margin_TMB)

print(f"class accuracy {ledger.class_accuracy:.3f}; random-label accuracy (chance {1 / NUM_LABELS:.3f}):")
for tap, accuracy_M in zip(network.taps, ledger.label_accuracy_TM, strict=True):
    print(f"  after layer {tap}: {accuracy_M.mean():.3f}")
of_run = partial(LedgerMetadata, "scikit-learn's digits", seed=0, num_labels=NUM_LABELS, taps=TAPS, num_draws=1)
about = of_run(epoch=EPOCHS - 1, phase="running", split="train", step=EPOCHS * -(-len(dataset) // 64))
ledger.write_parquet(folder / "ledger" / f"epoch={EPOCHS - 1:04d}" / "running.parquet", about)
