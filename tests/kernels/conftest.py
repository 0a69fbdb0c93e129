from collections.abc import Iterator

import pytest
from triton_interpreter import Interpreter

from rlpheads.kernels.cpu import tiled_cpu


@pytest.fixture(params=[16384, 7], ids=["one tile", "many tiles"])
def tile_classes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Small problems in one tile of classes, and again in many ragged ones."""
    monkeypatch.setattr(tiled_cpu, "TILE_CLASSES", request.param)
    return request.param


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> int:
    """Tiles of 7 classes, so that a problem of a few dozen labels has many, the last of them ragged."""
    monkeypatch.setattr(tiled_cpu, "TILE_CLASSES", 7)
    return 7


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """Runs functions where Triton interprets."""
    interpreter = Interpreter()
    yield interpreter
    interpreter.close()
