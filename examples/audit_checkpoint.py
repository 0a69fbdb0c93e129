"""An audit of a network that somebody else trained, from a file with its weights and the images it was trained on.

    python examples/audit_checkpoint.py [WEIGHTS.pt]

Probes are fitted to fresh random labels, once on features of images that the network was trained on and once on features of
images that it never saw. Where the two accuracies differ, the features tell members from others: the membership excess. (The
other excess, of labels that a network was trained with, is for runs that had random labels.) Without a file one is made first.
"""

import sys
from pathlib import Path
from tempfile import mkdtemp

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rlpheads import TappedModel, label_table
from rlpheads.memorization.audit.audit_labels import draw_audit_labels
from rlpheads.memorization.audit.feature_audit import audit_features
from rlpheads.memorization.probes.probe_heads import LeastSquaresProbe

TAPS, NUM_LABELS, NUM_MEMBERS = ("1", "3"), 10, 898


def network() -> nn.Module:
    """Return the architecture, as its authors published it."""
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


def train_somewhere_else(images: Tensor, targets: Tensor) -> Path:
    """Return a file of weights that were trained without heads, far too long."""
    torch.manual_seed(0)
    model, path = network(), Path(mkdtemp()) / "weights.pt"
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(200):
        cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), path)
    return path


digits, classes = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
images = (digits / 16).float()
members, others = images[:NUM_MEMBERS], images[NUM_MEMBERS:]
path = Path(sys.argv[1]) if len(sys.argv) > 1 else train_somewhere_else(members, classes[:NUM_MEMBERS])

model = network()
model.load_state_dict(torch.load(path, weights_only=True))
tapped = TappedModel(model, TAPS).eval()
with torch.no_grad():
    _, members_T = tapped(members)
    _, others_T = tapped(others)

unseen_MN = label_table(len(members), NUM_LABELS, num_draws=1, seed=0, split="train")  # a control: it never saw these
labels = draw_audit_labels(unseen_MN, len(others), NUM_LABELS, num_draws=64, seed=1)
print(f"{path}: accuracy on fresh random labels, of {NUM_LABELS}")
for tap, member_ND, other_ND in zip(TAPS, members_T, others_T, strict=True):
    found = audit_features(member_ND, other_ND, labels, LeastSquaresProbe())
    excess, rla = found.membership_excess, sum(found.members_F) / len(found.members_F)
    print(
        f"  after layer {tap}: members {rla:.3f}; membership excess {excess.value:+.3f} [{excess.low:+.3f}, {excess.high:+.3f}]"
    )
