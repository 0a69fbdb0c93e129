"""`rlpheads truth`: networks on subsets of a real run's images, resumed, judged, and compared over two widths."""

import json
import shutil
from dataclasses import replace

import pytest
from small_runs import small_config

from rlpheads.engine.cli import main
from rlpheads.engine.training.job import run

pytestmark = pytest.mark.long
ARGUMENTS = ["--fraction", "0.5", "--at-once", "4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of two widths on the same images, a third of whose classes are wrong."""
    folder = tmp_path_factory.mktemp("runs")
    for width in (16, 24):
        config = small_config(folder, f"width{width}", epochs=4)
        args = config.model.args | {"embed_dim": width}
        config = replace(config, model=replace(config.model, args=args), ledger=replace(config.ledger, every=1))
        assert run(replace(config, data=replace(config.data, label_noise=0.3))) == 0
    return folder / "width16", folder / "width24"


def truth_json(capsys, *words: str) -> list[dict]:
    capsys.readouterr()
    assert main(["truth", *words, *ARGUMENTS, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_networks_are_added_and_judged(runs, capsys):
    [few] = truth_json(capsys, str(runs[0]), "--networks", "4")
    first = sorted(path.name for path in (runs[0] / "truth").iterdir())
    [found] = truth_json(capsys, str(runs[0]), "--networks", "10")
    assert first == ["networks=000000-000003.npz"]
    assert sorted(path.name for path in (runs[0] / "truth").iterdir()) == [
        *first,
        "networks=000004-000007.npz",
        "networks=000008-000009.npz",
    ]
    assert (few["num_networks"], found["num_networks"]) == (4, 10)
    assert found == json.loads((runs[0] / "truth.json").read_text())
    assert len(found["memorization"]) == 179
    assert found["inside_accuracy"] > found["outside_accuracy"]
    assert {"class loss", "class loss IQR", "forgetting events", "label bits, block 1"} <= found["scores"].keys()
    assert -1 <= found["scores"]["class loss"]["spearman"]["rho"] <= 1


def test_two_widths_have_trends(runs, capsys):
    assert main(["truth", *map(str, runs), *ARGUMENTS, "--networks", "4"]) == 0
    text = capsys.readouterr().out
    assert "from the smallest to the largest network" in text
    assert "memorisation (ground truth)" in text
    assert "width24: 4 networks of" in text


@pytest.mark.wrong("words")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--networks", "0"], "--networks: got 0; allowed: a number at least 1"),
        (["--fraction", "1"], "--fraction: got 1.0; allowed: a number above 0 and below 1"),
        (["--fraction", "0.6", "--networks", "4"], "give --fraction as then"),
        (["--fraction", "0.01", "--networks", "99"], "fewer than batch_size 32"),
    ],
)
def test_what_cannot_be_done_is_told(runs, capsys, words, message):
    main(["truth", str(runs[0]), *ARGUMENTS, "--networks", "4"])
    capsys.readouterr()
    assert main(["truth", str(runs[0]), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.wrong("files")
def test_a_folder_that_cannot_be_made_is_told_before_networks_are_trained(runs, tmp_path, capsys):
    copy = shutil.copytree(runs[0], tmp_path / "copy", ignore=shutil.ignore_patterns("truth"))
    (copy / "truth").touch()
    assert main(["truth", str(copy), *ARGUMENTS, "--networks", "4"]) == 1
    told = capsys.readouterr()
    assert "error: " in told.err
    assert "100%" not in told.out
