"""Tiles that were measured: what is written, and what the loss then takes; runs in the interpreter's process."""

import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from kernel_problems import Problem, assert_same, evaluate, make_problem

from rlpheads.kernels.gpu import triton_launch, triton_passes
from rlpheads.kernels.gpu.triton_tiles import INTERPRETED_TILES, TileConfig
from rlpheads.kernels.gpu.tuned_tiles import FILE_VARIABLE, TuningCase, Winner, read_winners, save_winner
from rlpheads.kernels.tools import tune

USUAL, OTHER = INTERPRETED_TILES[:2]


@contextmanager
def tiles_file_set_to(path: Path):
    """Measured tiles are those of this file."""
    with patch.dict(os.environ, {FILE_VARIABLE: str(path)}):
        yield


def tiles_used(
    problem: Problem, kind: str | None = "unlikelihood", memory_budget: int | None = None
) -> set[TileConfig]:
    """Tiles of every pass over the classes, forward and backward."""
    with patch.object(triton_launch, "class_tiles", wraps=triton_launch.class_tiles) as launch:
        evaluate(problem, kind, "triton", memory_budget=memory_budget)
    return {call.args[3] for call in launch.call_args_list}


def case_of(problem: Problem) -> TuningCase:
    operands = triton_launch.Operands(problem.features_BD, problem.weight_KD, problem.bias_K, problem.labels_B[None], 0)
    return triton_launch.tuning_case(operands, has_base=False)


def problem_of(num_labels: int = 300) -> Problem:
    return make_problem(2, 5, num_labels, num_features=16).to(torch.float32)


def assert_the_command_writes_what_the_loss_takes(folder: Path) -> None:
    """The fastest candidate of each case, timed for real, beside the winners that the file had."""
    path = folder / "cache" / "tiles.json"
    shape = ["--rows", "5", "--features", "16", "--classes", "300", "40", "--dtype", "float32"]
    with tiles_file_set_to(path):
        assert tune.main(shape) == 0
        assert tune.main([*shape, "--regularizer", "uniform", "--pair", "--bias"]) == 0
        winners = read_winners(path)
        assert {(case.classes, case.pair, case.base, case.bias) for case in winners} == {
            (classes, *[every] * 3) for classes in (300, 40) for every in (False, True)
        }
        problem = problem_of()
        winner = winners[case_of(problem)]
        assert winner.tiles in INTERPRETED_TILES
        assert 0 < winner.milliseconds <= winner.usual_milliseconds
        assert tiles_used(problem) == {winner.tiles}
    assert list(path.parent.iterdir()) == [path]


def assert_the_loss_takes_measured_tiles_for_their_case_alone(folder: Path) -> None:
    path, problem = folder / "tiles.json", problem_of()
    case = case_of(problem)
    save_winner(path, case, Winner(OTHER, 1.0, 2.0))
    for change in ({"triton": "1.0.0"}, {"device": "another"}, {"rows": 6}):
        save_winner(path, replace(case, **change), Winner(INTERPRETED_TILES[2], 1.0, 2.0))
    assert tiles_used(problem) == {USUAL}, "tests read no file unless they name one"
    usual = evaluate(problem, "uniform", "triton", memory_budget=0)
    with tiles_file_set_to(path):
        assert tiles_used(problem) == {OTHER}
        assert tiles_used(problem, memory_budget=0) == {OTHER}
        assert tiles_used(problem_of(301)) == {USUAL}
        assert tiles_used(problem, "uniform") == {USUAL}, "bases are a case of their own"
        save_winner(path, replace(case, base=True), Winner(INTERPRETED_TILES[2], 1.0, 2.0))
        assert tiles_used(problem, "uniform") == {INTERPRETED_TILES[2]}
        measured = evaluate(problem, "uniform", "triton", memory_budget=0)
    assert_same(measured, usual, 2e-6)


def assert_an_unusable_file_stops_the_loss(path: Path, reason: str) -> None:
    problem = problem_of(40)
    with tiles_file_set_to(path), pytest.raises(ValueError, match="holds no tiles for the loss") as caught:
        evaluate(problem, "unlikelihood", "triton")
    message = str(caught.value)
    assert str(path) in message
    assert reason in message
    assert "delete it, and measure anew if you like (`python -m rlpheads.kernels.tools.tune`)" in message
    assert f"set {FILE_VARIABLE} to another file" in message


def assert_tiles_that_are_no_candidate_stop_the_loss(path: Path) -> None:
    case = case_of(problem_of(40))
    save_winner(path, case, Winner(replace(USUAL, rows=96), 1.0, 2.0))
    assert_an_unusable_file_stops_the_loss(
        path, "96 × 256 × 256, 4 warps, 1 stages is none of the tiles that TuningCase("
    )


def assert_wrong_tiles_are_found_out(folder: Path) -> None:
    """A candidate that computes something else is not kept, however fast it is; nor one that does not run."""
    from triton.runtime.errors import OutOfResources

    forward_pass = triton_passes.forward_pass

    def broken(operands, plan, pass_outputs, tiles):
        outputs = forward_pass(operands, plan, pass_outputs, USUAL)
        if tiles == OTHER:
            outputs.state_SR[1] *= 1.1
        if tiles == INTERPRETED_TILES[2]:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return outputs

    head = tune.HeadShape(5, 16, 300, torch.float32, "unlikelihood", pair=False, bias=False)
    with patch.object(triton_passes, "forward_pass", broken):
        _, timings = tune.time_candidates(head, "cpu")
    assert [timing.tiles for timing in timings] == list(INTERPRETED_TILES)
    assert timings[0].milliseconds is not None
    assert [timing.milliseconds for timing in timings[1:]] == [None, None]
    assert timings[1].reason == "computes something else than the usual tiles"
    assert timings[2].reason.startswith("does not run here: out of resource: shared memory, Required: 300000")
    assert tune.fastest_tiles(timings).tiles == USUAL
