"""What a test of a loader does where its library is not installed."""

import importlib.util
import os

import pytest

_LIBRARIES = {"ffcv": "ffcv", "dali": "nvidia.dali"}


def require_library(kind: str) -> None:
    """Skip the test, or the whole module that is being imported; in continuous integration, which must have every
    library, fail it.
    """
    library = _LIBRARIES.get(kind)
    if library is None or _is_installed(library):
        return
    reason = f"{library} is not installed: see docs/loaders.md"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it lies in
        return False
