"""Scores of a training run handed to cleanlab, which lists the images whose classes are likely wrong.

    pip install 'rlpheads[cleanlab]'
    python examples/cleanlab_scores.py [FOLDER]

A tenth of the classes is replaced. The ledgers hold each sample's class loss in each epoch; e^-loss is the probability of its
given class, cleanlab's self-confidence, here a mean over the early epochs, when networks have not memorised the wrong ones yet.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from cleanlab.rank import find_top_issues
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from rlpheads import HeadSettings, IndexedDataset, Measurement
from rlpheads.memorization.records.ledger_file import read_ledger

EPOCHS, SHARE = 6, 0.1
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/cleanlab")
random = torch.Generator().manual_seed(0)
torch.manual_seed(0)

digits, classes = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
wrong = torch.randperm(len(classes), generator=random)[: round(SHARE * len(classes))]
given = classes.clone()
given[wrong] = (given[wrong] + torch.randint(1, 10, (len(wrong),), generator=random)) % 10
dataset = IndexedDataset(TensorDataset((digits / 16).float(), given))

network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
measurement = Measurement(network, HeadSettings(taps=["1"], num_labels=10), len(dataset), folder)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
loader = DataLoader(dataset, batch_size=64, shuffle=True)
for epoch in range(EPOCHS):
    for images, targets, index in loader:
        measurement.expect(index, targets)  # heads and ledger do the rest in the forward pass
        cross_entropy(network(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    measurement.finish_epoch(epoch, (epoch + 1) * len(loader))

tables = [read_ledger(folder / "ledger" / f"epoch={epoch:04d}" / "running.parquet") for epoch in range(EPOCHS)]
confidence_N = np.mean([np.exp(-table.class_loss) for table in tables[1:]], axis=0)
suspected = find_top_issues(confidence_N, top=len(wrong))
found = len({*suspected.tolist()} & {*wrong.tolist()})
print(
    f"of {len(wrong)} wrong classes, {found} are among cleanlab's first {len(wrong)} (by chance: {SHARE * len(wrong):.0f})"
)
