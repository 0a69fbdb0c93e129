"""Two run folders, or two commits: what is equal, what differs, and where they part first."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from compare_runs import DIFFERENT, EQUAL, NOT_COMPARED, main
from real_runs import Runner
from run_differences import first_different_row

pytestmark = pytest.mark.long

LEDGER = "ledger/epoch=0000/clean.parquet"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    finished = Runner(tmp_path_factory.mktemp("trained")).run("tiny", "--epochs", "1", "--log_every", "4")
    assert finished.code == 0, finished.output
    return finished.folder


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def change_metrics(run: Path, step: int, **figures: float) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{**row, **figures} if row["step"] == step and row["kind"] == "step" else row for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_column(run: Path, name: str, change) -> None:
    table = pq.read_table(run / LEDGER)
    column = change(table[name].combine_chunks())
    pq.write_table(table.set_column(table.schema.get_field_index(name), table.schema.field(name), column), run / LEDGER)


def test_a_copy_is_equal_though_its_clock_was_another(trained, copied, capsys):
    change_metrics(copied, 8, images_per_second=1.0, data_wait=0.5)
    assert main([str(trained), str(copied)]) == EQUAL
    assert "metrics.jsonl: " in (printed := capsys.readouterr().out)
    assert f"{LEDGER}: " in printed
    assert "equal: " in printed


def test_the_first_step_that_differs_is_named_with_both_values(trained, copied, capsys):
    for step in (8, 12):
        change_metrics(copied, step, class_loss=2.5)
    assert main([str(trained), str(copied)]) == DIFFERENT
    printed = capsys.readouterr().out
    assert "metrics.jsonl: " in printed
    assert ", 2 differ" in printed
    assert "part first in metrics.jsonl, step 8 (epoch 0): class_loss is 2." in printed
    assert printed.endswith("and 2.5\n")


def test_a_step_that_only_one_run_has_is_a_difference(trained, copied, capsys):
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(line for line in lines if '"step": 8,' not in line))
    assert main([str(copied), str(trained)]) == DIFFERENT
    assert "step 8 (epoch 0): class_loss is 'absent' and 2." in capsys.readouterr().out


def test_other_weights_are_found(trained, copied, capsys):
    status = json.loads((copied / "status.json").read_text())
    status["weights_sha256"]["heads"] = "0" * 64
    (copied / "status.json").write_text(json.dumps(status))
    assert main([str(trained), str(copied)]) == DIFFERENT
    assert "part first in status.json, at the end: weights_sha256.heads is " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "change", "found"),
    [
        ("class_loss", lambda loss: pc.multiply(loss, pa.scalar(1 + 2**-23, pa.float32())), "row 0: class_loss"),
        ("target", lambda target: pc.if_else(pc.equal(target, target[0]), target, 0), "target is "),
        (
            "bits",
            lambda bits: pa.ListArray.from_arrays(bits.offsets, pc.add(bits.flatten(), pa.scalar(1, pa.float32()))),
            "row 0: bits",
        ),
    ],
)
def test_a_ledger_is_compared_to_the_bit(trained, copied, capsys, column, change, found):
    change_column(copied, column, change)
    assert main([str(trained), str(copied)]) == DIFFERENT
    assert found in capsys.readouterr().out


def test_a_ledger_that_is_missing_is_a_difference(trained, copied, capsys):
    (copied / LEDGER).unlink()
    assert main([str(trained), str(copied)]) == DIFFERENT
    assert f"part first in {LEDGER}, file: present is True and False" in capsys.readouterr().out


def test_metadata_of_a_ledger_is_compared_but_for_paths(trained, copied, capsys):
    table = pq.read_table(copied / LEDGER)
    facts = json.loads(table.schema.metadata[b"rlpheads.ledger"])
    for changed, code in (({"canaries": "/elsewhere/canaries.npz"}, EQUAL), ({"seed": 7}, DIFFERENT)):
        metadata = {b"rlpheads.ledger": json.dumps({**facts, **changed})}
        pq.write_table(table.replace_schema_metadata(metadata), copied / LEDGER)
        assert main([str(trained), str(copied)]) == code
    assert "metadata: rlpheads.ledger.seed is 0 and 7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("left", "right", "row"),
    [
        ([1.0, float("nan")], [1.0, float("nan")], None),
        ([0.0, 1.0], [-0.0, 1.0], 0),
        ([1.0, None], [1.0, 0.0], 1),
        ([[1.0], [], [2.0, 3.0]], [[1.0], [], [2.0, 4.0]], 2),
        ([[1.0], [2.0, 3.0]], [[1.0, 2.0], [3.0]], 0),
        ([[1.0], [2.0]], [[1.0], [2.0]], None),
        ([True, False], [True, True], 1),
        ([], [], None),
    ],
)
def test_the_first_row_that_differs(left, right, row):
    arrow = {bool: pa.bool_(), list: pa.list_(pa.float32())}.get(type((left or [0.0])[0]), pa.float32())
    assert first_different_row(pa.array(left, arrow), pa.array(right, arrow)) == row


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere", "HEAD", "--", "--epochs", "1"], "got 'nowhere'; allowed: a run folder"),
        (["HEAD", "HEAD"], "a commit needs training arguments"),
        (["RUN", "RUN", "--", "--epochs", "1"], "got training arguments --epochs 1"),
        (["--keep", "KEEP", "HEAD", "HEAD", "--", "--epochs", "1"], "exists; name an empty folder"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(trained, tmp_path, capsys, argv, message):
    (tmp_path / "keep" / "a").mkdir(parents=True)
    named = {"RUN": str(trained), "KEEP": str(tmp_path / "keep")}
    assert main([named.get(argument, argument) for argument in argv]) == NOT_COMPARED
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_commits_are_trained_with_their_own_code(tmp_path, capsys):
    tiny = ["--config", "configs/digits_vit.yaml", "--device", "cpu", "--max_steps", "10", "--log_every", "5"]
    tiny += ["--model.args.depth", "2", "--model.args.embed_dim", "24", "--heads.taps", "all"]
    assert main(["--keep", str(tmp_path / "runs"), "HEAD", "HEAD", "--", *tiny]) == EQUAL
    assert main([str(tmp_path / "runs" / "a"), str(tmp_path / "runs" / "b")]) == EQUAL
    assert main(["HEAD", str(tmp_path / "runs" / "a"), "--", *tiny, "--seed", "1"]) == DIFFERENT
    assert "step 5 (epoch 0): class_loss" in capsys.readouterr().out
