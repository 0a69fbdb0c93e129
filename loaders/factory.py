"""One door to the loaders, whatever library decodes."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

import torch

from rlpheads.loaders.adapters.torch_loader import TorchLoader
from rlpheads.loaders.adapters.torch_transforms import EvalTransform, TrainTransform
from rlpheads.loaders.contract.crops import CropSpec
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.loader import Loader
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.loaders.sources.stored_rows import find_stored_rows
from rlpheads.loaders.sources.verification import check_readable

Adapter = Callable[[ImageSource, Order, CropSpec, bool, LoaderOptions], Loader]

_DALI_PACKAGE = re.compile(r"nvidia[-_]dali[-_](?:nightly[-_]|weekly[-_])?cuda(\d+)\d$")


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
        kind: Which library decodes: "torch", "dali" or "ffcv" (of a store only).
        source: The images.
        order: Which sample stands where; its seed also keys the crops and flips.
        crop: How an image becomes a square.
        train: Random crops and flips, or the central crop of evaluation.
        options: Share of this rank, and its workers.

    Raises:
        ValueError: For an unknown kind, or an order that does not fit the source or the world size.
        DatasetError: If the library is not there, or cannot read the source; if images are known to be unreadable, and are
            not to be skipped.
    """
    check_loader(kind, source)
    options = options or LoaderOptions()
    check_readable(source.manifest, options.on_error)
    return _ADAPTERS[kind](source, order, crop, train, options)


def check_loader(kind: str, source: ImageSource) -> None:
    """Make sure that a loader is there and can read a source, without importing its library.

    Raises:
        ValueError: For an unknown kind.
        DatasetError: If the library is not there, or cannot read the source, with what to do.
    """
    if kind not in _ADAPTERS:
        close = difflib.get_close_matches(kind, _ADAPTERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no loader {kind!r}: it must be one of {', '.join(_ADAPTERS)}{hint}")
    if kind == "ffcv":
        check_ffcv()
        find_stored_rows(source)
    if kind == "dali":
        check_dali()


def _torch_loader(source: ImageSource, order: Order, crop: CropSpec, train: bool, options: LoaderOptions) -> Loader:
    transform = TrainTransform(crop, order.seed) if train else EvalTransform(crop)
    return TorchLoader(source, order, transform, options)


def _ffcv_loader(source: ImageSource, order: Order, crop: CropSpec, train: bool, options: LoaderOptions) -> Loader:
    from rlpheads.loaders.adapters.ffcv_loader import FfcvLoader  # imports FFCV, which takes seconds

    return FfcvLoader(source, order, crop, train=train, options=options)


def _dali_loader(source: ImageSource, order: Order, crop: CropSpec, train: bool, options: LoaderOptions) -> Loader:
    from rlpheads.loaders.adapters.dali_loader import DaliLoader

    return DaliLoader(source, order, crop, train=train, options=options)


def check_ffcv() -> None:
    """Make sure that FFCV is there, without importing it.

    Raises:
        DatasetError: If it is not, with how to install it.
    """
    if importlib.util.find_spec("ffcv") is None:
        raise DatasetError(
            "the ffcv loader needs FFCV, which is not installed: it is built here from Debian's headers. As root, "
            "`make ffcv` installs both; otherwise have `apt-get install g++ pkg-config libturbojpeg0-dev "
            "libopencv-imgproc-dev libgl1 libglib2.0-0` run, then `make ffcv`"
        )


def check_dali() -> None:
    """Make sure that DALI is there, without importing it.

    Raises:
        DatasetError: If it is not, with how to install the build for torch's CUDA.
    """
    nvidia = importlib.util.find_spec("nvidia")  # a namespace, which other packages of NVIDIA's share
    folders = [] if nvidia is None else [Path(folder) for folder in nvidia.submodule_search_locations or ()]
    if any((folder / "dali").is_dir() for folder in folders):
        return
    raise DatasetError(
        f"the dali loader needs NVIDIA DALI, which is not installed: run `pip install {_dali_for(torch.version.cuda)}` (for "
        "Linux; about 500 MB), or leave the decoding to torchvision with --data.loader torch"
    )


def dali_builds(path: Sequence[str] | None = None) -> dict[str, str]:
    """Return the installed packages of DALI, each with the major version of its CUDA; none where it came otherwise.

    Args:
        path: Folders to look into; None: where Python imports from.
    """
    installed = distributions() if path is None else distributions(path=list(path))
    names = sorted(found.metadata["Name"] or "" for found in installed)
    return {match[0]: match[1] for match in map(_DALI_PACKAGE.match, names) if match is not None}


def check_dali_on_gpu(cuda: str | None, builds: Mapping[str, str]) -> None:
    """Make sure that DALI was built for the CUDA of torch, whose libraries are the ones that are there.

    Args:
        cuda: Version that torch is built for.
        builds: As `dali_builds` returned them.

    Raises:
        DatasetError: If it was not, with what to do.
    """
    (major, *_) = (cuda or "").split(".")
    others = [package for package, built_for in builds.items() if built_for != major]
    if others:
        raise DatasetError(
            f"DALI is installed as {' and '.join(others)}, and PyTorch is built for CUDA {cuda}: run `pip uninstall "
            f"{' '.join(builds)}`, then `pip install {_dali_for(cuda)}`; or decode on the CPU with --data.dali.decode cpu"
        )


def _dali_for(cuda: str | None) -> str:
    """Return the package that is built for a CUDA, of which minor versions do not matter."""
    return "nvidia-dali-cuda120" if (cuda or "").startswith("12.") else "nvidia-dali-cuda130"


_ADAPTERS: dict[str, Adapter] = {"torch": _torch_loader, "ffcv": _ffcv_loader, "dali": _dali_loader}
