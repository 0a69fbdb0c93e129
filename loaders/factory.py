"""One door to the loaders, whatever library decodes."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from rlpheads.loaders.batch import Loader, LoaderOptions
from rlpheads.loaders.crops import CropSpec
from rlpheads.loaders.datasets import ImageSource
from rlpheads.loaders.order import Order
from rlpheads.loaders.torch_loader import TorchLoader
from rlpheads.loaders.torch_transforms import EvalTransform, TrainTransform

Adapter = Callable[[ImageSource, Order, CropSpec, bool, LoaderOptions], Loader]


def make_loader(
    kind: str,
    source: ImageSource,
    order: Order,
    crop: CropSpec,
    *,
    train: bool,
    options: LoaderOptions | None = None,
) -> Loader:
    """Make a loader. All kinds yield the same samples in the same order with the same crops.

    Args:
        kind: Which library decodes: "torch".
        source: The images.
        order: Which sample stands where; its seed also keys the crops and flips.
        crop: How an image becomes a square.
        train: Random crops and flips, or the central crop of evaluation.
        options: Share of this rank, and its workers.

    Raises:
        ValueError: For an unknown kind, or an order that does not fit the source or the world size.
    """
    if kind not in _ADAPTERS:
        close = difflib.get_close_matches(kind, _ADAPTERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no loader {kind!r}: it must be one of {', '.join(_ADAPTERS)}{hint}")
    return _ADAPTERS[kind](source, order, crop, train, options or LoaderOptions())


def _torch_loader(source: ImageSource, order: Order, crop: CropSpec, train: bool, options: LoaderOptions) -> Loader:
    transform = TrainTransform(crop, order.seed) if train else EvalTransform(crop)
    return TorchLoader(source, order, transform, options)


_ADAPTERS: dict[str, Adapter] = {"torch": _torch_loader}
