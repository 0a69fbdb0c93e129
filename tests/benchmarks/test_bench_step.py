"""The benchmark of a training step: its settings can be run, and every contender takes a step."""

import bench_step
import pytest
import timm_runs
import torch
from loss_contenders import floors, make_problem, onednn_multiplies

from rlpheads.engine.checks.settings import settings_errors
from rlpheads.engine.config.ranges import range_errors
from rlpheads.engine.train import read_settings


@pytest.mark.parametrize(
    "case", sorted({*bench_step.QUICK, *bench_step.FULL, *bench_step.SMALL, *bench_step.GPU}), ids=str
)
def test_every_case_has_settings_that_can_be_run(case, tmp_path):
    config = bench_step.config_of(case, tmp_path)
    assert [*range_errors(config), *settings_errors(config, 1)] == []


def test_a_step_with_heads_is_timed_beside_the_bound_by_arithmetic():
    case = bench_step.Case(taps=2, side=32, rows=8, micro=True)
    seconds = bench_step.measure(case, rounds=1)["seconds"]
    assert seconds.keys() == {"engine", "bare", "without heads", "products", "copy"}
    assert "of the arithmetic bound" in bench_step.line(case._replace(micro=False), seconds)


@pytest.mark.parametrize(("labels", "bytes_a_parameter"), [(10, 28), (100_000, 24)])
def test_an_update_that_takes_gradients_as_they_are_made_moves_none(labels, bytes_a_parameter, tmp_path):
    case, cpu = bench_step.Case(2, labels), torch.device("cpu")
    moved = bench_step.update_bytes(case, (192, 192), bench_step.config_of(case, tmp_path), cpu)
    assert moved == bytes_a_parameter * 2 * labels * 193


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_of_a_bare_product_makes_the_same(dtype):
    problem = make_problem(8, 40, 16, dtype, "cpu")
    x_BD, w_KD = problem.features_BD.detach(), problem.weight_KD.detach()
    z_BK = x_BD @ w_KD.T
    expected = {"logits": z_BK, "features": z_BK @ w_KD, "weight": z_BK.T @ x_BD}
    calls = floors(problem)  # products of the logits find them in place only behind those that make them
    for name in sorted(calls, key=lambda name: not name.startswith("logits")):
        kind, _, way = name.partition(", ")
        found = calls[name]()
        found = found.T if name == "logits, labels by rows" else found
        torch.testing.assert_close(found, expected[kind], msg=lambda said, way=way, kind=kind: f"{kind}, {way}: {said}")
    assert ("logits, oneDNN" in calls) == onednn_multiplies(dtype)
    assert onednn_multiplies(torch.float32)


@pytest.mark.parametrize("pairing", timm_runs.PAIRINGS, ids=lambda each: f"{each.model}-{each.precision}")
def test_the_run_beside_timms_takes_each_image_once(pairing, tmp_path):
    num_steps = 3
    for name in ("train", "val"):
        (tmp_path / "tree" / name / "class").mkdir(parents=True)
        for number in range(num_steps * timm_runs.ROWS):
            (tmp_path / "tree" / name / "class" / f"{number}.jpg").touch()
    config = read_settings(timm_runs.command_of("engine", pairing, tmp_path / "tree", tmp_path / "runs")[2:], print)
    assert list(settings_errors(config, 1)) == []
    assert config.max_steps == num_steps
    assert config.eval.clean_every == 0
    assert config.epochs > 1  # behind the last one there is a clean pass in any case
