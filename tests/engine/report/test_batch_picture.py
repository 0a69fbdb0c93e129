"""The picture of a batch shows the pixels that the network gets, and names both classes of a mixed row."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlpheads.engine.config.data import MixConfig
from rlpheads.engine.config.run import LogConfig
from rlpheads.engine.report import batch_picture
from rlpheads.engine.report.batch_picture import draw_batch
from rlpheads.engine.training.opening import draw_first_batch
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.contract.batch import Batch, Partners

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
CLASSES = ("ape", "bee", "cat")


def batch_of(rows: int, side: int) -> tuple[Batch, torch.Tensor]:
    pixels = torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(rows)
    index[-1] = -1
    return Batch(Normalize(MEAN, STD)(pixels), index % 3, index, rows), pixels


@pytest.mark.parametrize("side", [8, 112, 150])
def test_each_pixel_of_an_image_is_there(tmp_path, side):
    batch, pixels = batch_of(10, side)
    draw_batch(tmp_path / "figures" / "batch.png", batch, CLASSES, MEAN, STD)
    with Image.open(tmp_path / "figures" / "batch.png") as sheet:
        drawn = np.asarray(sheet)
    times = -(-112 // side)
    for row in range(10):
        left, top = 4 + row % 8 * (times * side + 4), 4 + row // 8 * (times * side + 13 + 4)
        tile = drawn[top : top + times * side, left : left + times * side]
        expected = pixels[row].permute(1, 2, 0).numpy().repeat(times, axis=0).repeat(times, axis=1)
        np.testing.assert_array_equal(tile, expected)


def test_captions_name_both_samples_of_a_mixed_row_and_padding():
    batch, _ = batch_of(4, 8)
    partners = Partners(batch.targets.flip(0), torch.tensor([-1, 2, 1, 0]), torch.tensor([1.0, 0.75, 0.75, 1.0]))
    assert batch_picture._captions(batch, CLASSES) == [["ape #0"], ["bee #1"], ["cat #2"], ["no image"]]
    mixed = batch_picture._captions(replace(batch, partners=partners), CLASSES)
    assert mixed == [["ape #0"], ["75% bee #1", "25% cat #2"], ["75% cat #2", "25% bee #1"], ["no image"]]


def test_the_first_batches_of_a_run_are_drawn_and_no_other(tiny, build):
    data = replace(tiny.data, mix=MixConfig(cutmix=1.0))
    training = build(replace(tiny, data=data, log=LogConfig(images=2)))
    training.run.log.open(0, 0, {})
    training.learner.train()
    batches = iter(training.splits.trained.loader)
    for _ in range(3):
        training.train_on(next(batches))
        draw_first_batch(training)
    training.run.log.close()
    drawn = sorted(path.name for path in training.run.folder.figures.iterdir())
    assert drawn == ["batch_0001.png", "batch_0002.png"]
    record = EventAccumulator(str(training.run.folder.tensorboard)).Reload()
    assert [record.Images(f"figures/{name[:-4]}")[0].step for name in drawn] == [1, 2]
