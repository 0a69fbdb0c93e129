"""The C++ of the CPU loss: that it is built and used, what happens without a compiler, and that it agrees with PyTorch."""

import multiprocessing
import shutil
import stat
import warnings
from pathlib import Path

import pytest
import torch
from kernel_problems import KINDS, assert_same, evaluate, make_problem, margin_problem

from rlpheads.kernels import native, tile_pass

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, native.COMPILERS)), reason="there is no C++ compiler on this machine"
)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load_library", lambda: None)


@needs_compiler
def test_a_machine_with_a_compiler_uses_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.load_library() is not None


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_rows", [1, 3, 16, 67])
def test_it_agrees_with_plain_pytorch(kind: str, num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(3, num_rows, 1003, num_features=24, spread=2.0).to(torch.float32)
    compiled = evaluate(problem, kind, "tiled_cpu", memory_budget=0)
    monkeypatch.setattr(native, "load_library", lambda: None)
    assert_same(compiled, evaluate(problem, kind, "tiled_cpu", memory_budget=0), 2e-6)


@needs_compiler
def test_the_same_bits_on_any_number_of_threads_and_in_any_call() -> None:
    problem = make_problem(3, 64, 5000, num_features=24).to(torch.float32)
    results = []
    for num_threads in (1, 2, 3, 1):
        torch.set_num_threads(num_threads)
        logits_KB = (problem.weight_KD @ problem.features_BD.T).contiguous()
        labels_LB = torch.stack([problem.labels_B, problem.pair[0]])
        state = tile_pass.RowState.start(labels_LB, torch.float32)
        none = torch.empty(0, dtype=torch.int64)
        assert tile_pass.reduce_tile(
            tile_pass.Tile(0, 5000, none, none, none), logits_KB, problem.bias_K, labels_LB, state, None
        )
        results.append([logits_KB, *state])
    torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@needs_compiler
def test_exponentials_are_those_of_float64() -> None:
    logits_KB = torch.linspace(-100.0, 7.0, 20_000)[:, None].repeat(1, 2).contiguous()
    truth = logits_KB.double()
    labels_LB = torch.tensor([[0, 19_999]])
    none = torch.empty(0, dtype=torch.int64)
    state = tile_pass.RowState.start(labels_LB, torch.float32)
    state.shift_B.fill_(0.0)  # so that nothing is raised
    assert tile_pass.reduce_tile(tile_pass.Tile(0, 20_000, none, none, none), logits_KB, None, labels_LB, state, None)
    inside = (truth > -87) & (truth != truth[-1])
    error = ((logits_KB.double() - truth.exp()) / truth.exp())[inside].abs().max()
    assert error < 2e-7
    assert (logits_KB[truth < -87] == 0).all()


@needs_compiler
def test_a_raised_shift_costs_a_second_pass_and_no_digit() -> None:
    """Row maxima within `REACH` of the first classes' leave the shift alone; one beyond raises it, and says so."""
    for height, taken in ((tile_pass.REACH - 0.5, True), (tile_pass.REACH + 0.5, False)):
        logits_KB = torch.zeros(600, 1)
        logits_KB[500] = height
        labels_LB, none = torch.tensor([[3]]), torch.empty(0, dtype=torch.int64)
        state = tile_pass.RowState.start(labels_LB, torch.float32)
        arguments = (tile_pass.Tile(0, 600, none, none, none), logits_KB.clone(), None, labels_LB, state, None)
        assert tile_pass.reduce_tile(*arguments) is taken
        if not taken:
            assert state.shift_B.item() == height
            arguments = (arguments[0], logits_KB, *arguments[2:])
            assert tile_pass.reduce_tile(*arguments)
        total = state.sum_B.double() * state.shift_B.double().exp()
        torch.testing.assert_close(total, 598 + torch.tensor([height]).double().exp(), rtol=1e-6, atol=0)
        assert (state.max_before_B.item(), state.max_after_B.item()) == (0.0, height)


# ------------------------------------------------------------------------------------------------------- without a compiler


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("margin", [4, 16, 80])
def test_plain_pytorch_is_as_accurate(kind: str, margin: int, plain: None, tile_classes: int) -> None:
    problem = margin_problem(margin)
    truth = evaluate(problem.to(torch.float32).to(torch.float64), kind, "reference")
    assert_same(evaluate(problem.to(torch.float32), kind, "tiled_cpu"), truth, 1e-5)


def loaded_anew(monkeypatch: pytest.MonkeyPatch, cache_home: Path) -> object:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    native.load_library.cache_clear()
    try:
        return native.load_library()
    finally:
        native.load_library.cache_clear()


def test_no_compiler_is_one_warning_that_names_the_remedy(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(RuntimeWarning, match=r"plain PyTorch .*no C\+\+ compiler \(g\+\+.*name it in CXX") as caught:
        assert loaded_anew(monkeypatch, tmp_path) is None
    assert len(caught) == 1


def test_a_compiler_that_fails_is_one_warning_with_its_own_words(tmp_path, monkeypatch) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'tile_pass.cpp:1: fatal error: disk on fire' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.warns(RuntimeWarning, match="broken failed: .*disk on fire"):
        assert loaded_anew(monkeypatch, tmp_path) is None
    assert not list((tmp_path / "rlpheads").iterdir())


def build(folder: str) -> str:
    return str(native.built_library(Path(folder)))


@needs_compiler
def test_processes_that_start_together_build_one_library(tmp_path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        paths = pool.map(build, [str(tmp_path)] * 3)
    assert len(set(paths)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [Path(paths[0]).name]
