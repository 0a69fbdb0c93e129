"""Augmentation as one graph: the very numbers of the operations, and no second graph whatever a batch draws."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from rlpheads.loaders.augment.fixed_groups import CompiledAugment, FixedGroups
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.augment.pipeline import Augment
from rlpheads.loaders.augment.pixel_plan import PixelKind
from rlpheads.loaders.augment.spec import AugmentSpec, EraseSpec, PolicySpec

COUNT = 32
IMAGES = torch.randint(0, 256, (COUNT, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def augment_of(policy: str) -> Augment:
    spec = AugmentSpec(4, PolicySpec(policy), (0.4, 0.4, 0.4, 0.1), 8, EraseSpec(0.5))
    return Augment(spec, Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), 0)


@pytest.mark.long
@pytest.mark.parametrize(("policy", "backend"), [("rand", "aot_eager"), ("three", "eager")])
def test_one_graph_serves_all_batches_and_epochs(policy, backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    augment = augment_of(policy)
    compiled = CompiledAugment(augment, counter)
    for step in range(24):
        index = torch.arange(COUNT) * 7 + COUNT * step
        images = IMAGES.contiguous(memory_format=torch.channels_last)
        ours = compiled(images, index, step // 6)
        assert torch.equal(ours, augment(images, index, step // 6))
        assert ours.is_contiguous(memory_format=torch.channels_last)
    assert counter.frame_count == 1


def test_a_batch_that_does_not_fit_is_augmented_all_the_same():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    augment = Augment(AugmentSpec(policy=PolicySpec("trivial")), Normalize((0.5,) * 3, (0.5,) * 3), 0)
    compiled = CompiledAugment(augment, counter)
    same = torch.full((COUNT,), 5)  # all draw one operation
    assert torch.equal(compiled(IMAGES, same, 0), augment(IMAGES, same, 0))
    assert counter.frame_count == 0


def test_every_row_stands_in_its_kinds_group_once():
    kinds_SN = np.array([[0, 1, 1, 2] * 16, [9] * 64], dtype=np.int32)
    groups = FixedGroups(kinds_SN, 16)
    assert groups.steps == [[(PixelKind.WARP, 0, 16), (PixelKind.BRIGHTNESS, 16, 27)], [(PixelKind(9), 0, 16)]]
    kinds_SB = kinds_SN[:, :16]
    values_SB6 = np.random.default_rng(0).random((2, 16, 6), dtype=np.float32)
    rows_SG, values_SG6 = groups.sort(kinds_SB, values_SB6)
    assert sorted(rows_SG[0, :16][rows_SG[0, :16] < 16]) == np.flatnonzero(kinds_SB[0] == 1).tolist()
    assert (rows_SG[1, 16:] == 16).all()
    for step in range(2):
        for place in np.flatnonzero(rows_SG[step] < 16):
            assert (values_SG6[step, place] == values_SB6[step, rows_SG[step, place]]).all()
    assert groups.sort(np.full((2, 16), 2, dtype=np.int32), values_SB6) is None
