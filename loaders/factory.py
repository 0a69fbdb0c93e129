"""One door to the loaders, whatever library decodes."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch

from rlpheads.loaders.batch import Loader, LoaderOptions
from rlpheads.loaders.crops import CropSpec
from rlpheads.loaders.datasets import ImageSource
from rlpheads.loaders.manifest import DatasetError
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
        kind: Which library decodes: "torch" or "dali".
        source: The images.
        order: Which sample stands where; its seed also keys the crops and flips.
        crop: How an image becomes a square.
        train: Random crops and flips, or the central crop of evaluation.
        options: Share of this rank, and its workers.

    Raises:
        ValueError: For an unknown kind, or an order that does not fit the source or the world size.
        DatasetError: If the library is not there, or cannot read the source.
    """
    if kind not in _ADAPTERS:
        close = difflib.get_close_matches(kind, _ADAPTERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no loader {kind!r}: it must be one of {', '.join(_ADAPTERS)}{hint}")
    return _ADAPTERS[kind](source, order, crop, train, options or LoaderOptions())


def _torch_loader(source: ImageSource, order: Order, crop: CropSpec, train: bool, options: LoaderOptions) -> Loader:
    transform = TrainTransform(crop, order.seed) if train else EvalTransform(crop)
    return TorchLoader(source, order, transform, options)


def _dali_loader(source: ImageSource, order: Order, crop: CropSpec, train: bool, options: LoaderOptions) -> Loader:
    _check_dali()
    from rlpheads.loaders.dali_loader import DaliLoader

    return DaliLoader(source, order, crop, train=train, options=options)


def check_loader(kind: str) -> None:
    """Make sure that a loader's library is there, without importing it.

    Raises:
        DatasetError: If it is not, with how to install it.
    """
    if kind in _CHECKS:
        _CHECKS[kind]()


def _check_dali() -> None:
    nvidia = importlib.util.find_spec("nvidia")  # a namespace: other packages of NVIDIA's lie in it too
    folders = [] if nvidia is None else [Path(folder) for folder in nvidia.submodule_search_locations or ()]
    if any((folder / "dali").is_dir() for folder in folders):
        return
    major = (torch.version.cuda or "13").split(".")[0]
    package = "nvidia-dali-cuda120" if major == "12" else "nvidia-dali-cuda130"
    raise DatasetError(
        f"the dali loader needs NVIDIA DALI, which is not installed: run `pip install {package}` (Linux only; about 500 "
        "MB), or leave the decoding to torchvision with --data.loader torch"
    )


_ADAPTERS: dict[str, Adapter] = {"torch": _torch_loader, "dali": _dali_loader}
_CHECKS: dict[str, Callable[[], None]] = {"dali": _check_dali}
