"""Inputs of the DALI pipeline: the encoded images of a request, and which part of each becomes the square."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlpheads.loaders.adapters.dali_pipeline import PipelineInput
from rlpheads.loaders.contract.arrays import FloatArray, Int64Array
from rlpheads.loaders.contract.crops import CropSpec, central_boxes, draw_crops, no_draws, place_crops
from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.contract.request import Request
from rlpheads.loaders.sources.encoded_source import EncodedImage


@dataclass(frozen=True)
class FetchedRequest:
    """A request with the encoded images that were read for it.

    Attributes:
        request: What was asked for.
        images: The images to be decoded, by row.
        errors: Why other rows cannot be read.
    """

    request: Request
    images: dict[int, EncodedImage]
    errors: dict[int, ImageReadError]

    @classmethod
    def from_read(cls, request: Request, read: list[EncodedImage | ImageReadError]) -> FetchedRequest:
        """Separate what was read for the samples of a request, in order, from the errors."""
        images = {row: image for row, image in enumerate(read) if isinstance(image, EncodedImage)}
        errors = {row: error for row, error in enumerate(read) if isinstance(error, ImageReadError)}
        return cls(request, images, errors)

    @property
    def rows(self) -> list[int]:
        """Rows of the images to be decoded."""
        return list(self.images)


@dataclass(frozen=True)
class Cropper:
    """Crops and flips in DALI's terms; a pure function of (seed, epoch, index) and the image's size.

    Attributes:
        crop: How an image becomes a square.
        seed: Key of the run.
        train: Keyed crops and flips, or the central crop of evaluation.
    """

    crop: CropSpec
    seed: int
    train: bool

    def draw(self, epoch: int, index_B: Int64Array) -> FloatArray:
        """Draw the random numbers of crops and flips, before any image is read: (U, B)."""
        return draw_crops(self.crop, self.seed, epoch, index_B) if self.train else no_draws(index_B)

    def pipeline_input(self, fetched: FetchedRequest, manifest: Manifest) -> PipelineInput:
        """Return what the pipeline needs of a request's images."""
        images = list(fetched.images.values())
        index_R = fetched.request.index_B[fetched.rows]
        sizes_R2 = np.array([(image.height, image.width) for image in images], dtype=np.int64)
        if self.train:
            windows_R4, flip_R = place_crops(self.crop, fetched.request.draws_UB[:, fetched.rows], sizes_R2)
            regions_R4 = np.concatenate([np.zeros_like(windows_R4[:, 2:]), windows_R4[:, 2:]], axis=1).astype(
                np.float32
            )
            regions_R4[flip_R] = regions_R4[flip_R][:, [0, 3, 2, 1]]
        else:
            boxes_R4, reach_R4 = central_boxes(self.crop, sizes_R2)
            first_R2, end_R2 = reach_R4[:, :2], reach_R4[:, 2:]
            windows_R4 = np.concatenate([first_R2, end_R2 - first_R2], axis=1)
            start_R2 = boxes_R4[:, :2] - first_R2
            regions_R4 = np.concatenate([start_R2, start_R2 + boxes_R4[:, 2:]], axis=1).astype(np.float32)
        return PipelineInput(
            encoded=[image.data for image in images],
            windows_R4=windows_R4.astype(np.int32),
            regions_R4=regions_R4,
            targets_R=manifest.targets[index_R],
            index_R=index_R,
        )
