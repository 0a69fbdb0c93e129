"""What a test of a loader does where its library is not installed."""

import importlib.util
import os

import pytest

_LIBRARIES = {"ffcv": "ffcv"}


def require_library(kind: str) -> None:
    """Skip the test; in continuous integration, which must have every library, fail it."""
    library = _LIBRARIES.get(kind)
    if library is not None and importlib.util.find_spec(library) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{library} is not installed: make {kind}")
