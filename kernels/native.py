"""Compiles and loads the package's C++ at first use: a small library with a C interface, which needs no headers of torch.

It takes a compiler two or three seconds, once for each machine: the library is kept in the user's cache folder, under a name
that hashes the source, the command and the processor. Every process that finds none builds its own and moves it into
place whole, so that ranks that start together need no lock, and one that dies leaves nothing half-built. Without a
compiler there is one warning, and plain PyTorch does the same work more slowly.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

CPP_SOURCE = Path(__file__).parent / "cpu" / "tile_pass.cpp"
CPP_HEADERS = tuple(CPP_SOURCE.with_name(name) for name in ("tile_chunk.h", "tile_products.h"))
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
BUILD_TIMEOUT_SECONDS = 120


@cache
def load_library() -> ctypes.CDLL | None:
    """The library of `tile_pass.cpp`, built if need be; None, after one warning, where that cannot be done."""
    try:
        return ctypes.CDLL(str(build_library(cache_folder())))
    except (OSError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"rlpheads: the loss runs in plain PyTorch on this CPU, correct but slower: {_failure_message(error)}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def cache_folder() -> Path:
    """Where the built library is kept: rlpheads under XDG_CACHE_HOME, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlpheads"


def build_library(folder: Path) -> Path:
    """Path of the library in `folder`, built by the compiler that CXX names, or else the first of `COMPILERS`.

    Raises:
        OSError: there is no compiler, or the folder cannot be written.
        subprocess.SubprocessError: the compiler failed or took too long.
    """
    command = [*compiler_command(), *FLAGS, str(CPP_SOURCE)]
    library = folder / f"tile_pass-{_fingerprint(command)}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as building:
        whole = Path(building) / library.name
        subprocess.run(
            [*command, "-o", str(whole)], check=True, capture_output=True, text=True, timeout=BUILD_TIMEOUT_SECONDS
        )
        whole.replace(library)
    return library


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


def _fingerprint(command: list[str]) -> str:
    """Hash of what the library's code depends on; a home folder may be shared by machines with different processors."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    sources = [path.read_text() for path in (CPP_SOURCE, *CPP_HEADERS)]
    text = "\n".join([*command[:-1], platform.machine(), features, *sources])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _failure_message(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.strip().splitlines() or ["no message"]
        return f"{error.cmd[0]} failed: {next((line for line in lines if 'error' in line), lines[-1])}"
    return str(error)
