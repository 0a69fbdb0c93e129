"""Which decoding libraries are installed, and what to do where one is missing; nothing here imports them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

import torch

from rlpheads.loaders.contract.errors import DatasetError

_DALI_PACKAGE = re.compile(r"nvidia[-_]dali[-_](?:nightly[-_]|weekly[-_])?cuda(\d+)\d$")


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
