"""One way to make a loader, whichever library decodes."""

from __future__ import annotations

import difflib

from rlpheads.loaders.adapters.dali_options import DaliOptions
from rlpheads.loaders.adapters.libraries import check_dali, check_ffcv
from rlpheads.loaders.adapters.torch_loader import TorchLoader
from rlpheads.loaders.adapters.torch_transforms import EvalTransform, TrainTransform
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.loader import Loader
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.loaders.sources.stored_rows import find_stored_rows
from rlpheads.loaders.sources.verification import check_readable

LOADERS = ("torch", "ffcv", "dali")


def make_loader(
    kind: str,
    source: ImageSource,
    order: Order,
    crop: CropSpec,
    *,
    train: bool,
    options: LoaderOptions | None = None,
    dali: DaliOptions | None = None,
) -> Loader:
    """Make a loader. All kinds yield the same samples in the same order with the same crops.

    Args:
        kind: Which library decodes: "torch", "dali" or "ffcv" (of a store only).
        source: The images.
        order: Which sample stands where; its seed also keys the crops and flips.
        crop: How an image becomes a square.
        train: Random crops and flips, or the central crop of evaluation.
        options: Share of this rank, and its workers.
        dali: Where DALI decodes; the other kinds ignore it.

    Raises:
        ValueError: For an unknown kind, or an order that does not fit the source or the world size.
        DatasetError: If the library is not there, or cannot read the source; if images are known to be unreadable, and are
            not to be skipped.
    """
    check_loader(kind, source)
    options = options or LoaderOptions()
    check_readable(source.manifest, options.on_error)
    if kind == "torch":
        transform = TrainTransform(crop, order.seed) if train else EvalTransform(crop)
        return TorchLoader(source, order, transform, options)
    if kind == "ffcv":
        from rlpheads.loaders.adapters.ffcv_loader import FfcvLoader  # imports FFCV, which takes seconds

        return FfcvLoader(source, order, crop, train=train, options=options)
    from rlpheads.loaders.adapters.dali_loader import DaliLoader

    return DaliLoader(source, order, crop, train=train, options=options, dali=dali)


def check_loader(kind: str, source: ImageSource) -> None:
    """Make sure that a loader is there and can read a source, without importing its library.

    Raises:
        ValueError: For an unknown kind.
        DatasetError: If the library is not there, or cannot read the source, with what to do.
    """
    if kind not in LOADERS:
        close = difflib.get_close_matches(kind, LOADERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no loader {kind!r}: it must be one of {', '.join(LOADERS)}{hint}")
    if kind == "ffcv":
        check_ffcv()
        find_stored_rows(source)
    if kind == "dali":
        check_dali()
