"""The class loss against timm's losses on the dense soft targets of timm's mixup."""

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from rlpheads.engine.learner.class_loss import ClassLoss
from rlpheads.loaders.contract.batch import Partners

GENERATOR = torch.Generator().manual_seed(0)
NUM_CLASSES, NUM_ROWS = 9, 40
LOGITS = 3 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=GENERATOR, dtype=torch.float64).float()
TARGETS = torch.randint(0, NUM_CLASSES, (NUM_ROWS,), generator=GENERATOR)
PARTNERS = Partners(
    TARGETS.flip(0), torch.arange(NUM_ROWS).flip(0), 0.5 + 0.5 * torch.rand(NUM_ROWS, generator=GENERATOR)
)


def dense(smoothing: float, partners: Partners | None) -> torch.Tensor:
    """Return timm's soft targets; it mixes with the batch turned round, as PARTNERS does."""
    weight = torch.ones(NUM_ROWS) if partners is None else partners.weight
    return mixup_target(TARGETS, NUM_CLASSES, weight[:, None], smoothing)


@pytest.mark.parametrize("partners", [None, PARTNERS], ids=["plain", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_timms_soft_targets(smoothing, partners):
    recorded, trained = ClassLoss("cross_entropy", smoothing)(LOGITS, TARGETS, partners)
    torch.testing.assert_close(trained.mean(), SoftTargetCrossEntropy()(LOGITS, dense(smoothing, partners)))
    torch.testing.assert_close(recorded, torch.nn.functional.cross_entropy(LOGITS, TARGETS, reduction="none"))


@pytest.mark.parametrize("partners", [None, PARTNERS], ids=["plain", "mixed"])
@pytest.mark.parametrize(("smoothing", "threshold"), [(0.0, None), (0.1, None), (0.0, 0.0), (0.0, 0.2), (0.0, 0.6)])
def test_bce_is_timms(smoothing, threshold, partners):
    recorded, trained = ClassLoss("bce", smoothing, threshold)(LOGITS, TARGETS, partners)
    theirs = BinaryCrossEntropy(smoothing=0.0, target_threshold=threshold, reduction="none")
    torch.testing.assert_close(trained, theirs(LOGITS, dense(smoothing, partners)).mean(1))
    torch.testing.assert_close(recorded, torch.nn.functional.cross_entropy(LOGITS, TARGETS, reduction="none"))


@pytest.mark.parametrize("loss", [ClassLoss(), ClassLoss("bce"), ClassLoss("bce", threshold=0.2)])
def test_a_weight_of_one_is_the_plain_loss(loss):
    alone = Partners(PARTNERS.targets, PARTNERS.index, torch.ones(NUM_ROWS))
    plain, mixed = loss(LOGITS, TARGETS).trained_B, loss(LOGITS, TARGETS, alone).trained_B
    assert torch.equal(plain, mixed)


def test_low_precision_logits_are_computed_in_float32():
    losses = ClassLoss("bce")(LOGITS.to(torch.bfloat16), TARGETS)
    assert {losses.recorded_B.dtype, losses.trained_B.dtype} == {torch.float32}


@pytest.mark.parametrize("target", [-100, -1, NUM_CLASSES])
@pytest.mark.parametrize("loss", [ClassLoss(), ClassLoss("bce")])
def test_a_target_that_is_no_class_is_refused(loss, target):
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        loss(LOGITS[:1], torch.tensor([target]))
