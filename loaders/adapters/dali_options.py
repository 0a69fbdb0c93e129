"""Options of the loader on NVIDIA DALI; in a file that needs no DALI."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DaliOptions:
    """Where DALI decodes, and what it sets aside for that.

    Attributes:
        device_id: CUDA device that decodes JPEGs and resizes; None: the CPU does.
        hardware_share: Share of the JPEGs that a GPU's hardware engine decodes where it has one (A100, H100 and later);
            its cores decode the rest. In [0, 1].
        largest_image: Height and width in pixels for which a GPU's memory is set aside at the start; (0, 0): it grows as
            images come, each time with a pause.

    Raises:
        ValueError: For a value out of its range.
    """

    device_id: int | None = None
    hardware_share: float = 0.65
    largest_image: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not 0 <= self.hardware_share <= 1:
            raise ValueError(f"hardware_share is {self.hardware_share}; it must be in [0, 1]")
        if min(self.largest_image) < 0 or (min(self.largest_image) == 0 < max(self.largest_image)):
            raise ValueError(
                f"largest_image is {self.largest_image}; it must be a height and a width in pixels, or 0 and 0"
            )
