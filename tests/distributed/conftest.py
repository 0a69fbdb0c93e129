"""The runs that the tests of several processes share."""

import pytest
from real_runs import Finished, Runner


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def undisturbed(runner: Runner) -> Finished:
    """The run that the others are compared with, by a whole command."""
    finished = runner.run_command("undisturbed")
    assert finished.code == 0, finished.output
    return finished
