"""What a test of a loader does where its library is not installed."""

import importlib.util
import os

import pytest

_LIBRARIES = {"ffcv": "ffcv", "dali": "nvidia.dali"}


def require_library(kind: str) -> None:
    """Skip the test; in continuous integration, which must have every library, fail it."""
    library = _LIBRARIES.get(kind)
    if library is not None and not _is_installed(library):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{library} is not installed: see docs/loaders.md")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it lies in
        return False
