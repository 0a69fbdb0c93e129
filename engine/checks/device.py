"""Devices that cannot be used: CUDA by all ranks of this node, in the precision asked for, and GPUs that decode.

The machine is looked at in `device_errors`, `dali_errors` and `why_no_cuda` alone; the others are given what was found.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from rlpheads.engine.config.errors import ConfigError, RankError, refusal, show_value
from rlpheads.engine.config.launcher_variables import local_rank, local_world_size
from rlpheads.engine.config.schema import Config, Precision
from rlpheads.loaders.adapters.libraries import check_dali_on_gpu, dali_builds
from rlpheads.loaders.contract.errors import DatasetError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_INSTALL = "install the PyTorch for your driver (nvidia-smi shows its CUDA version; see pytorch.org)"
_OLD_DRIVER = re.compile(r"driver on your system is too old \(found version (\d+)\)")
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)")
_BF16 = (8, 0)


class Device(NamedTuple):
    """A CUDA device: its name, and the major and minor number of its compute capability."""

    name: str
    capability: tuple[int, int]


def device_errors(config: Config) -> Iterator[ConfigError]:
    """Yield what keeps this process from the device that `device` names, and the device from what `precision` needs."""
    if config.device == "cuda" and (missing := why_no_cuda()) is not None:
        yield ConfigError(f"device: got cuda, but {missing}; allowed here: cpu or auto")
        return
    if config.device == "cpu" or not torch.cuda.is_available():  # where auto finds a driver too old, torch itself warns
        return
    num_devices = torch.cuda.device_count()
    yield from device_count_errors(num_devices, local_world_size(), local_rank(), os.environ.get(VISIBLE))
    if torch.version.hip is None:
        numbers = range(min(num_devices, max(local_world_size(), local_rank() + 1)))
        devices = [Device(torch.cuda.get_device_name(n), torch.cuda.get_device_capability(n)) for n in numbers]
        yield from capability_errors(devices, torch.cuda.get_arch_list(), config.precision)


def dali_errors(config: Config) -> Iterator[ConfigError]:
    """Yield what keeps DALI from decoding where `data.dali` says."""
    settings = config.data.dali
    if min(settings.largest_image) == 0 < max(settings.largest_image):
        yield refusal("data.dali.largest_image", settings.largest_image, "a height and a width, or [0, 0]")
    if config.data.loader != "dali" or settings.decode == "cpu":
        return
    if config.device != "cpu" and torch.cuda.is_available():
        try:
            check_dali_on_gpu(torch.version.cuda, dali_builds())
        except DatasetError as error:
            yield ConfigError(f"data.dali.decode: got {settings.decode}, but {error}")
    elif settings.decode == "gpu":
        yield refusal("data.dali.decode", "gpu", "auto or cpu where the model is not on a GPU")


def why_no_cuda() -> str | None:
    """Return what keeps PyTorch from CUDA on this machine, and what to do about it; None where nothing does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says what is said here
        if torch.cuda.is_available():
            return None
        if not torch.backends.cuda.is_built():
            return f"PyTorch {torch.__version__} is built for the CPU alone: {_INSTALL}"
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return explain_cuda_error(str(error), os.environ.get(VISIBLE))
    return "PyTorch finds no GPU: `rlpheads env` shows what is there"


def explain_cuda_error(said: str, visible: str | None) -> str:
    """Return what is behind PyTorch's words about a CUDA that cannot be used, and what to do.

    Args:
        said: the message of `torch.cuda.init`.
        visible: CUDA_VISIBLE_DEVICES; None where it is not set.
    """
    if "no NVIDIA driver" in said:
        return (
            "there is no NVIDIA driver: nvidia-smi must list a GPU (on a machine that has one, install its driver; start "
            "a container with --gpus all)"
        )
    if old := _OLD_DRIVER.search(said):
        major, minor = divmod(int(old[1]), 1000)
        return (
            f"PyTorch {torch.__version__} is built for CUDA {torch.version.cuda}, and the NVIDIA driver goes up to "
            f"{major}.{minor // 10}: update the driver, or {_INSTALL}"
        )
    if "No CUDA GPUs" in said and visible is not None:
        return f"{VISIBLE} is {show_value(visible)}, which hides every GPU: unset it, or name some that nvidia-smi -L lists"
    if "No CUDA GPUs" in said:
        return "the NVIDIA driver lists no GPU: nvidia-smi -L must (a job of a cluster has to ask for one)"
    (first, *_) = said.splitlines()
    return f"CUDA does not start ({first.rstrip('.')}): `nvidia-smi` and `rlpheads env` show what is there"


def device_count_errors(num_devices: int, num_ranks: int, rank: int, visible: str | None) -> Iterator[ConfigError]:
    """Yield an error where not every rank of this node has a device of its own.

    Args:
        num_devices: CUDA devices that this process sees.
        num_ranks: ranks on this node.
        rank: this process's number among them.
        visible: CUDA_VISIBLE_DEVICES; None where it is not set.

    Yields:
        ConfigError where there are fewer devices than ranks, else RankError where this rank's number is past the last.
    """
    shows = f" ({VISIBLE} is {show_value(visible)})" if visible is not None else ""
    if num_ranks > num_devices:
        yield ConfigError(
            f"device: got {num_ranks} ranks on this node, where they see {num_devices} CUDA device(s){shows}; "
            f"allowed: --nproc-per-node {num_devices} or less, or --device cpu"
        )
    elif rank >= num_devices:
        yield RankError(
            f"device: got LOCAL_RANK {rank}, which sees {num_devices} CUDA device(s){shows}; allowed: a number below "
            f"{num_devices}, or --device cpu. Show all of a node's GPUs to each of its ranks (Slurm's --gpu-bind none), or "
            "set LOCAL_RANK 0 where each sees its own alone"
        )


def capability_errors(
    devices: Sequence[Device], built_for: Sequence[str], precision: Precision
) -> Iterator[ConfigError]:
    """Yield an error for every device that does not run this PyTorch's machine code or not compute in `precision`.

    Args:
        devices: those of this node's ranks.
        built_for: the architectures of the code, as `torch.cuda.get_arch_list` names them; empty: not known.
        precision: autocast type.
    """
    for name, capability in devices:
        number = ".".join(map(str, capability))
        if built_for and not any(_runs(architecture, capability) for architecture in built_for):
            yield ConfigError(
                f"device: got {name}, of compute capability {number}, for which PyTorch {torch.__version__} has no code (it "
                f"has {', '.join(built_for)}); allowed: --device cpu, or a PyTorch that is built for it (see pytorch.org)"
            )
        if precision == "bf16" and capability < _BF16:
            yield refusal(
                "precision",
                precision,
                f"fp32 or fp16 on {name}: bf16 needs compute capability 8.0, and it has {number}",
            )


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether a device runs code: machine code from its minor version on, PTX on whatever is newer."""
    match = _ARCHITECTURE.match(architecture)
    if match is None:
        return True
    major, minor = int(match[2]), int(match[3])
    if match[1] == "compute":
        return (major, minor) <= capability
    return major == capability[0] and minor <= capability[1]
