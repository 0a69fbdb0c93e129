from collections.abc import Iterator

import pytest
import torch
from triton_interpreter import Interpreter

from rlpheads.kernels.cpu import tiled_cpu


@pytest.fixture(autouse=True)
def memory_that_nobody_wrote_holds_nan() -> Iterator[None]:
    """What `torch.empty` returns is filled under torch's deterministic algorithms; else it often holds zeros by chance."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


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
