"""One run on 1, 2, 4 and again 2 ranks: the samples, labels and figures of a run that never changed."""

import json

import pytest
from real_runs import without_times

pytestmark = pytest.mark.distributed

NO_DROPOUT = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "drop_rate": 0.0}


@pytest.mark.slow
def test_a_run_on_one_two_four_and_two_ranks_measures_what_one_rank_does(runner):
    """Each sample once, in the epoch that ranks are changed in as in the others; hits may differ where logits tie."""
    flags = ["--model.args", json.dumps(NO_DROPOUT), "--optim.lr", "1e-4", "--heads.optim.lr", "1e-4"]
    whole = runner.run("never_changed", *flags)
    assert whole.code == 0, whole.output
    for ranks, steps in ((1, 9), (2, 18), (4, 27)):
        part = runner.run("changing", *flags, "--max_steps", str(steps), ranks=ranks)
        assert part.code == 0, part.output
        assert part.status["step"] == steps
    changing = runner.run("changing", *flags, ranks=2)
    assert changing.code == 0, changing.output
    ours, theirs = changing.ledgers, whole.ledgers
    assert ours.keys() == theirs.keys()
    for name in ours:
        for column in ("index", "status", "count", "target"):
            assert ours[name][column] == theirs[name][column], (name, column)
    for kind in ("step", "epoch"):
        rows, expected = without_times(changing.rows(kind)), without_times(whole.rows(kind))
        assert [(row["step"], row["epoch"]) for row in rows] == [(row["step"], row["epoch"]) for row in expected]
        for row, other in zip(rows, expected, strict=True):
            for name, value in other.items():
                if name != "kind":
                    assert row[name] == pytest.approx(value, rel=2e-3, abs=2e-3), (kind, name)
