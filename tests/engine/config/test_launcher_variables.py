"""Launchers that start copies of the program without a rendezvous, and what old ones add to the command line."""

import subprocess
import sys

import pytest

from rlpheads.engine import cli, exit_codes, train
from rlpheads.engine.config.errors import RankError
from rlpheads.engine.config.launcher_variables import check_one_process, rank_numbers, without_local_rank

COPIES = [
    ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "SLURM_STEP_NUM_TASKS: got 2: srun", "srun --ntasks 1"),
    ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "SLURM_PROCID: got 1: srun", "srun --ntasks 1"),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE: got 4: mpirun", "mpirun -n 1"),
    ({"PMI_SIZE": "3"}, "PMI_SIZE: got 3: mpirun", "mpirun -n 1"),
]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", *(name for given, *_ in COPIES for name in given)):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.wrong("launcher")
@pytest.mark.parametrize(("variables", "beginning", "one_task"), COPIES, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("command", ["engine/train.py", "rlpheads train"])
def test_copies_by_srun_or_mpirun_name_the_command_that_launches_ranks(
    monkeypatch, tmp_path, capsys, command, variables, beginning, one_task
):
    """They would each train a world of one, into the same folder."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    argv = ["--config", "configs/digits_vit.yaml", "--device", "cpu", "--run.dir", str(tmp_path)]
    code = train.main(argv) if command == "engine/train.py" else cli.main(["train", *argv])
    assert code == exit_codes.WRONG_SETTINGS
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {beginning} started several copies, and each would train alone")
    assert f"{one_task} rlpheads train --nproc-per-node N --config FILE" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # the batch script of a job
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_one_copy_by_srun_or_mpirun_is_a_world_of_one(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_one_process()
    assert rank_numbers() == (0, 1, 0)


def test_ranks_that_srun_starts_with_torchruns_variables_are_ranks(monkeypatch):
    ours = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in (ours | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}).items():
        monkeypatch.setenv(name, value)
    assert rank_numbers() == (1, 2, 1)
    with pytest.raises(RankError):
        check_one_process()


def test_local_rank_of_the_old_launcher_is_passed_over(monkeypatch):
    """`python -m torch.distributed.launch` gives it as a flag, beside the variable."""
    argv = ["--local-rank=1", "--local_rank=1", "--epochs", "3"]
    assert without_local_rank(argv) == argv
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert without_local_rank(argv) == ["--epochs", "3"]


@pytest.mark.long
@pytest.mark.wrong("launcher")
def test_old_launcher_in_a_real_process(tmp_path):
    """Its flag is not what is complained of."""
    command = [sys.executable, "-m", "torch.distributed.launch", "--nproc-per-node", "1", "--master-port", "0"]
    command += ["engine/train.py", "--config", "configs/digits_vit.yaml", "--run.dir", str(tmp_path), "--epochs", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: epochs: got 0")


def test_interrupt_before_the_first_step_is_no_traceback(monkeypatch, capsys, tmp_path):
    from rlpheads.engine.training import job

    def interrupted(_config):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run", interrupted)
    argv = ["--config", "configs/digits_vit.yaml", "--run.dir", str(tmp_path)]
    assert train.main(argv) == exit_codes.INTERRUPTED
    expected = "stopped: interrupted; the same command goes on from the last checkpoint, if there is one\n"
    assert capsys.readouterr().err == expected
