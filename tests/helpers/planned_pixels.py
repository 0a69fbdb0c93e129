"""What planners do to images, for the tests of augmentation."""

import numpy as np
import torch
from torch import Tensor

from rlpheads.loaders.augment.operations import DrawnOperation, Space
from rlpheads.loaders.augment.pixel_plan import PixelPlanner, PixelRunner, run_sorted
from rlpheads.loaders.augment.policies import PolicyPlanner


class Drawn:
    """A policy that draws one given operation for each image."""

    def __init__(self, number: Tensor, strength: Tensor, space: Space) -> None:
        self.space = space
        self.drawn = [DrawnOperation(number.numpy(), strength.numpy())]

    def draw(self, index_B: np.ndarray, epoch: int) -> list[DrawnOperation]:  # noqa: ARG002
        return self.drawn


def run_planner(
    planner: PixelPlanner,
    images: Tensor,
    index: Tensor,
    epoch: int,
    run: PixelRunner = run_sorted,
    interpolation: str = "nearest",
) -> Tensor:
    """Do to uint8 (B, 3, H, W) what a planner plans for the samples of these indices."""
    steps = planner.plan(index.numpy(), epoch, (images.shape[-2], images.shape[-1]))
    kinds, values = (np.stack(column) for column in zip(*steps, strict=True))
    return run(images, kinds, values, interpolation)


def apply_operation(
    images: Tensor, number: Tensor, strength: Tensor, space: Space, run: PixelRunner = run_sorted
) -> Tensor:
    """Do to each image the operation of a number at a strength."""
    planner = PolicyPlanner(Drawn(number, strength, space))
    return run_planner(planner, images, torch.arange(len(images)), 0, run)
