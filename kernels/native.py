"""Compiles and loads the package's C++ at first use: a small library with a C interface, which needs no headers of torch.

It takes a compiler two or three seconds, once for each machine: the library is kept in the user's cache folder, under a name
that hashes what it is built from, with its own hash beside it. It is loaded only if the hash is right and no other user
could have written it; else it is built anew. Every process that finds none builds its own, loads that, and moves it into
place whole, so that ranks that start together need no lock. What killed builds leave behind is deleted by a later process.
Without a compiler there is one warning, and plain PyTorch does the same work more slowly.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rlpheads.kernels.cache_folder import folder_for_code, warn_not_kept

ROOM = Path(__file__).parent
CPP_SOURCES = tuple(
    ROOM / name
    for name in (
        *("cpu/tile_pass.cpp", "cpu/tile_update.cpp", "batched/batched_pass.cpp"),
        *("batched/batched_ranges.cpp", "batched/row_message.cpp", "head_rows/head_rows.cpp"),
        *("pixels/pixel_pass.cpp", "pixels/pair_mixing.cpp"),
    )
)
CPP_HEADERS = tuple(
    ROOM / name
    for name in (
        *("cpu/tile_chunk.h", "cpu/tile_products.h", "cpu/tile_scratch.h"),
        *("batched/batched_heads.h", "batched/batched_products.h", "pixels/pixel_image.h"),
        *("head_rows/row_terms.h", "head_rows/row_outputs.h", "head_rows/range_sums.h"),
    )
)
_MaybeTensor = TypeVar("_MaybeTensor", Tensor, Tensor | None)

COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
BUILD_TIMEOUT_SECONDS = 120
ABANDONED_SECONDS = 3600
"""Age from which a build's folder is that of a killed process: far more than a build may take."""

BUILD_PREFIX = "building-"
BUILD_FOLDERS = (f"{BUILD_PREFIX}*", "tmp????????")
"""Folders of builds, those of earlier versions too."""


class Recipe(NamedTuple):
    """How the library is built."""

    command: list[str]
    fingerprint: str
    """SHA-256 of all that its code depends on: sources, flags, compiler and its version, processor."""

    @property
    def library_name(self) -> str:
        """Name of its file."""
        return f"tile_pass-{self.fingerprint[:16]}.so"

    @property
    def record_name(self) -> str:
        """Name of the file beside it, which holds its hash."""
        return f"{self.library_name}.sha256"

    def record(self, library: Path) -> str:
        """What the record of such a library says."""
        return f"library {hashlib.sha256(library.read_bytes()).hexdigest()}\nbuilt from {self.fingerprint}\n"


@cache
def load_library() -> ctypes.CDLL | None:
    """The library of `CPP_SOURCES`, built if need be; None, after one warning, where that cannot be done."""
    try:
        recipe = make_recipe()
        with folder_for_code([recipe.library_name, recipe.record_name]) as folder:
            return load_kept(folder, recipe) or build_library(folder, recipe)
    except (OSError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"rlpheads: loss and augmentation run in plain PyTorch here, correct but slower: {_failure_message(error)}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def load_kept(folder: Path, recipe: Recipe) -> ctypes.CDLL | None:
    """The library in `folder`; None where there is none, it is not what was built, or it does not load.

    A library that was cut off must not be loaded to find out: the process would die of SIGBUS.
    """
    _delete_abandoned_builds(folder)
    library, record = folder / recipe.library_name, folder / recipe.record_name
    with suppress(OSError, UnicodeDecodeError):
        if record.read_text() == recipe.record(library):
            return ctypes.CDLL(str(library))
    return None


def build_library(folder: Path, recipe: Recipe) -> ctypes.CDLL:
    """Build the library, load it, and keep it in `folder`; where it cannot be kept, a warning says so.

    Raises:
        OSError: the folder cannot be written.
        subprocess.SubprocessError: the compiler failed or took too long.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=BUILD_PREFIX) as building:
        library, record = Path(building) / recipe.library_name, Path(building) / recipe.record_name
        _run_compiler([*recipe.command, "-o", str(library)])
        loaded = ctypes.CDLL(str(library))
        try:
            record.write_text(recipe.record(library))
            for path in (library, record):
                path.chmod(0o644)
                _flush(path)
                path.replace(folder / path.name)
            _flush(folder)
        except OSError as error:
            warn_not_kept(str(error))
    return loaded


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers begin, for C++, which computes all other places from sizes; 0 or None where it has none.

    Raises:
        RuntimeError: the numbers do not lie side by side: C++ would read or write another tensor's.
    """
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise RuntimeError(f"C++ cannot take a {tuple(tensor.shape)} with strides {tensor.stride()}")
    return tensor.data_ptr()


def pointers(tensors: Sequence[Tensor | None]) -> "ctypes.Array[ctypes.c_void_p]":
    """Where each tensor lies, null for None; as `address`, without a call of Python's for each."""
    places = [
        None if each is None else each.data_ptr() if each.is_contiguous() else address(each)  # which raises
        for each in tensors
    ]
    return (ctypes.c_void_p * len(places))(*places)


def plain_floats(tensors: Iterable[_MaybeTensor]) -> list[_MaybeTensor]:
    """Tensors in float32 and contiguous, as they mostly are; None stays None."""
    return [
        each if each is None or (each.dtype == torch.float32 and each.is_contiguous()) else each.float().contiguous()
        for each in tensors
    ]


def widths(matrices: Sequence[Tensor]) -> "ctypes.Array[ctypes.c_int64]":
    """D of each matrix (…, D)."""
    return (ctypes.c_int64 * len(matrices))(*[matrix.shape[1] for matrix in matrices])


def make_recipe() -> Recipe:
    """The command of the compiler that CXX names, or else of the first of `COMPILERS`, and the hash of what it reads.

    Raises:
        OSError: there is no compiler.
        subprocess.SubprocessError: it does not run.
    """
    compiler = compiler_command()
    version = _run_compiler([*compiler, "--version"])
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    # A home folder may be shared by machines with different processors.
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    sources = [path.read_text() for path in (*CPP_SOURCES, *CPP_HEADERS)]
    text = "\n".join([*compiler, *FLAGS, version, platform.machine(), features, *sources])
    return Recipe([*compiler, *FLAGS, *map(str, CPP_SOURCES)], hashlib.sha256(text.encode()).hexdigest())


def compiler_command() -> list[str]:
    """Command of the C++ compiler.

    Raises:
        FileNotFoundError: there is none.
    """
    if given := os.environ.get("CXX"):
        return given.split()
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise FileNotFoundError(f"no C++ compiler ({', '.join(COMPILERS)}) is on PATH; install one or name it in CXX")
    return [found]


def _run_compiler(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_TIMEOUT_SECONDS).stdout


def _delete_abandoned_builds(folder: Path) -> None:
    for path in (path for pattern in BUILD_FOLDERS for path in folder.glob(pattern)):
        with suppress(OSError):
            if path.is_dir() and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failure_message(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.strip().splitlines() or ["no message"]
        return f"{error.cmd[0]} failed: {next((line for line in lines if 'error' in line), lines[-1])}"
    return str(error)
