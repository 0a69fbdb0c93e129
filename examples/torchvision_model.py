"""A torchvision network that is kept from memorising: a regulariser on its heads' output, and audit heads that it never sees.

    python examples/torchvision_model.py [FACTOR]

Compare FACTOR 0 and 5: what the regulariser takes from its own heads it need not have taken from the network, which the audit
heads tell.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from rlpheads import HeadTerms, IndexedDataset, RLPHeads, TappedModel, TermWeights, combine_losses, label_table

EPOCHS, NUM_IMAGES, NUM_LABELS, TAPS = 3, 256, 10, ("layer1", "layer2", "layer4")
factor = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
torch.manual_seed(0)

digits, classes = (torch.from_numpy(array)[:NUM_IMAGES] for array in load_digits(return_X_y=True))
images_N3HW = interpolate((digits / 16).float().view(-1, 1, 8, 8), scale_factor=2).expand(-1, 3, -1, -1)
dataset = IndexedDataset(TensorDataset(images_N3HW, classes))
network = TappedModel(resnet18(num_classes=10), TAPS)

# One draw of random labels for the network's own heads, and one for the audit heads.
labels_MN = label_table(len(dataset), NUM_LABELS, num_draws=2, seed=0, split="train")
dims = network.dims(images_N3HW[:2])
own, audit = RLPHeads(dims, NUM_LABELS, 1, seed=0), RLPHeads(dims, NUM_LABELS, 1, seed=1)
terms = HeadTerms("unlikelihood", tuple(range(len(TAPS)))) if factor else HeadTerms()
optimizers = [torch.optim.AdamW(part.parameters(), lr=lr) for part, lr in ((network, 1e-3), (own, 1e-2), (audit, 1e-2))]

for epoch in range(EPOCHS):
    hits = torch.zeros(2, len(TAPS))
    num_right = 0
    for images, targets, index in DataLoader(dataset, batch_size=64, shuffle=True):
        logits, taps = network(images)
        own_losses = own(taps, labels_MN[:1, index], terms)
        audit_losses = audit(taps, labels_MN[1:, index])
        loss = cross_entropy(logits, targets) + combine_losses(audit_losses).total
        (loss + combine_losses(own_losses, weights=TermWeights(factor)).total).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        num_right += int((logits.argmax(-1) == targets).sum())
        hits += torch.stack([losses.hit_TMB.sum((1, 2)) for losses in (own_losses, audit_losses)])
    print(f"epoch {epoch}: class accuracy {num_right / len(dataset):.3f}; random-label accuracy, own and audit heads:")
    for tap, (of_own, of_audit) in zip(TAPS, (hits / len(dataset)).T.tolist(), strict=True):
        print(f"  {tap}: {of_own:.3f} {of_audit:.3f} (chance {1 / NUM_LABELS:.3f})")
