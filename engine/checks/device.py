"""What shows of CUDA before anything runs on it: that it can be used, by all ranks of this node, in the precision asked for.

The machine is looked at in `check_device` and `why_no_cuda` alone; the other functions are told what was found.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch

from rlpheads.engine.config.errors import ConfigError, RankError, refusal, shown
from rlpheads.engine.config.launcher_variables import local_rank, local_world_size
from rlpheads.engine.config.schema import Config, Precision

VISIBLE = "CUDA_VISIBLE_DEVICES"
_INSTALL = "install the PyTorch for your driver (nvidia-smi shows its CUDA version; see pytorch.org)"
_OLD_DRIVER = re.compile(r"driver on your system is too old \(found version (\d+)\)")
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)")
_BF16 = (8, 0)


class Device(NamedTuple):
    """A CUDA device: its name, and the major and minor number of its compute capability."""

    name: str
    capability: tuple[int, int]


def check_device(config: Config) -> None:
    """Make sure that this process has the device that `device` names, and the device what `precision` needs.

    Raises:
        ConfigError: it has not, with what is missing and what to do.
    """
    if config.device == "cuda" and (missing := why_no_cuda()) is not None:
        raise ConfigError(f"device: got cuda, but {missing}; allowed here: cpu or auto")
    if config.device == "cpu" or not torch.cuda.is_available():  # where auto finds a driver too old, torch itself warns
        return
    num_devices = torch.cuda.device_count()
    check_places(num_devices, local_world_size(), local_rank(), os.environ.get(VISIBLE))
    if torch.version.hip is None:
        numbers = range(min(num_devices, max(local_world_size(), local_rank() + 1)))
        devices = [Device(torch.cuda.get_device_name(n), torch.cuda.get_device_capability(n)) for n in numbers]
        check_abilities(devices, torch.cuda.get_arch_list(), config.precision)


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
            return explained(str(error), os.environ.get(VISIBLE))
    return "PyTorch finds no GPU: `rlpheads env` shows what is there"


def explained(said: str, visible: str | None) -> str:
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
        return f"{VISIBLE} is {shown(visible)}, which hides every GPU: unset it, or name some that nvidia-smi -L lists"
    if "No CUDA GPUs" in said:
        return "the NVIDIA driver lists no GPU: nvidia-smi -L must (a job of a cluster has to ask for one)"
    (first, *_) = said.splitlines()
    return f"CUDA does not start ({first.rstrip('.')}): `nvidia-smi` and `rlpheads env` show what is there"


def check_places(num_devices: int, num_ranks: int, rank: int, visible: str | None) -> None:
    """Make sure that every rank of this node has a device of its own.

    Args:
        num_devices: CUDA devices that this process sees.
        num_ranks: ranks on this node.
        rank: this process's number among them.
        visible: CUDA_VISIBLE_DEVICES; None where it is not set.

    Raises:
        ConfigError: there are fewer devices than ranks.
        RankError: this rank's number is past the last device.
    """
    shows = f" ({VISIBLE} is {shown(visible)})" if visible is not None else ""
    if num_ranks > num_devices:
        raise ConfigError(
            f"device: got {num_ranks} ranks on this node, where they see {num_devices} CUDA device(s){shows}; "
            f"allowed: --nproc-per-node {num_devices} or less, or --device cpu"
        )
    if rank >= num_devices:
        raise RankError(
            f"device: got LOCAL_RANK {rank}, which sees {num_devices} CUDA device(s){shows}; allowed: a number below "
            f"{num_devices}, or --device cpu. Show all of a node's GPUs to each of its ranks (Slurm's --gpu-bind none), or "
            "set LOCAL_RANK 0 where each sees its own alone"
        )


def check_abilities(devices: Sequence[Device], built_for: Sequence[str], precision: Precision) -> None:
    """Make sure that devices run this PyTorch's machine code and compute in `precision`.

    Args:
        devices: those of this node's ranks.
        built_for: the architectures of the code, as `torch.cuda.get_arch_list` names them; empty: not known.
        precision: autocast type.

    Raises:
        ConfigError: for the first device that does not.
    """
    for name, capability in devices:
        number = ".".join(map(str, capability))
        if built_for and not any(_runs(architecture, capability) for architecture in built_for):
            raise ConfigError(
                f"device: got {name}, of compute capability {number}, for which PyTorch {torch.__version__} has no code (it "
                f"has {', '.join(built_for)}); allowed: --device cpu, or a PyTorch that is built for it (see pytorch.org)"
            )
        if precision == "bf16" and capability < _BF16:
            raise refusal(
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
