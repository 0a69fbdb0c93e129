"""Every loader into the memory of a real GPU, where the labels of its images are read off their table."""

from pathlib import Path

import pytest
import torch
from device_waits import no_device_waits
from loader_kinds import KINDS, loader_of, write_ramps
from loader_libraries import require_library
from torch import Tensor

from rlpheads.kernels.gpu.triton_labels import gather_by_triton
from rlpheads.kernels.label_source import gather_labels
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.delivery import deliver
from rlpheads.memorization.heads.labels import label_table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="copies to a CUDA device, and there is none"),
]
NUM_IMAGES, DRAW = 50, 1


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_their_labels_arrive_and_nothing_waits(kind: str, tmp_path: Path) -> None:
    """From the second batch on; the first one compiles."""
    require_library(kind)
    source = write_ramps(tmp_path / "ramps", NUM_IMAGES)
    table_MN = label_table(NUM_IMAGES, 1000, num_draws=3, seed=0, split="train")
    on_device_MN = table_MN.cuda()

    def step(batch: Batch) -> tuple[Tensor, ...]:
        labels_B = gather_labels([(on_device_MN, batch.index, DRAW)], gather_by_triton)
        return batch.images.clone(), batch.targets.clone(), batch.index.clone(), labels_B

    loader = loader_of(kind, source, CropSpec(32), 8, pin_memory=True)
    batches = iter(deliver(loader, torch.device("cuda", 0)))
    arrived = [step(next(batches))]
    with no_device_waits():
        arrived += map(step, batches)
    expected = loader_of(kind, source, CropSpec(32), 8)
    for (images, targets_B, index_B, labels_B), batch in zip(arrived, expected, strict=True):
        rows = batch.index >= 0  # the last batch is filled up
        assert images.is_cuda
        assert torch.equal(images.cpu(), batch.images)
        assert torch.equal(targets_B.cpu(), batch.targets)
        assert torch.equal(index_B.cpu(), batch.index)
        assert torch.equal(labels_B.cpu()[rows], table_MN[DRAW, batch.index[rows]].long())
