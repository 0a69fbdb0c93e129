"""What a run's result may depend on besides its configuration: versions, devices, source commit, system settings.

`rlpheads env` prints it, and every run folder keeps it as environment.json.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rlpheads.engine.distributed import host_memory
from rlpheads.kernels.gpu import tuned_tiles

PACKAGES = (
    *("rlpheads", "torch", "torchvision", "timm", "triton", "numpy", "scipy", "scikit-learn", "pyarrow", "matplotlib"),
    *("jsonargparse", "PyYAML", "rich", "psutil", "tensorboard"),
    *("wandb", "ffcv", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "apex"),  # optional
)
"""Distributions whose versions are recorded."""

_VARIABLES = (
    *("CUDA_", "CUBLAS_", "NCCL_", "TORCH", "PYTORCH_", "TRITON_", "OMP_", "MKL_", "MALLOC_"),
    *("SLURM_JOB_ID", "WORLD_SIZE"),
)
_ROOT = Path(__file__).resolve().parents[2]


def collect_environment() -> dict[str, Any]:
    """Return the environment as plain values that JSON can hold; what is absent is None.

    Sections: `command`, `packages` (version by distribution), `python`, `system`, `torch`, `cuda` (None without a CUDA
    device), `tiles` (those measured for the loss, `rlpheads.kernels.gpu.tuned_tiles.record`), `git` (None outside a checkout of
    rlpheads) and `variables` (of the process, by prefix).
    """
    return {
        "command": sys.argv,
        "packages": {name: _version(name) for name in PACKAGES},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": _system(),
        "torch": _torch(),
        "cuda": _cuda() if torch.cuda.is_available() else None,
        "tiles": tuned_tiles.record(),
        "git": _git(_ROOT),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _system() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "host": platform.node(),
        "processor": _processor(),
        "cores": _cores(),
        "threads": os.cpu_count(),
        "usable_threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "keeps_freed_memory": host_memory.keeps_freed_memory(),
    }


def _cores() -> int | None:
    """Return the processor's cores, whose hardware threads Linux lists together."""
    threads = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    return len({path.read_text() for path in threads}) or None


def _processor() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def _torch() -> dict[str, Any]:
    """Return what torch was built for and how it computes; cuDNN, which asking loads, only where there is a GPU for it.

    Loading it where memory is limited (ulimit -v) ends the process with SIGABRT.
    """
    return {
        "cuda_build": torch.version.cuda,
        "hip_build": torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def _cuda() -> dict[str, Any]:
    return {
        "driver": _driver(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
        "devices": [_device(number) for number in range(torch.cuda.device_count())],
    }


def _device(number: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(number)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
    }


def _driver() -> str | None:
    """Return the NVIDIA driver's own line: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06 …"."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text().splitlines()[0].partition(":")[2].strip() if path.exists() else None


def _git(root: Path) -> dict[str, Any] | None:
    """Return commit and state of the checkout at `root`; None if `root` only lies somewhere inside another one."""
    top = _git_line(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return None
    changes = _git_line(root, "status", "--porcelain")
    return {
        "commit": _git_line(root, "rev-parse", "--verify", "HEAD"),
        "modified": None if changes is None else bool(changes),
    }


def _git_line(root: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
