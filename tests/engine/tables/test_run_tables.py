"""A run folder as tables: what they say is what the run's own files say."""

import json
import shutil

import numpy as np
import pyarrow.compute as pc
import pytest

from rlpheads.engine.runs.opened_run import RunError
from rlpheads.engine.tables.figure_rows import FIGURE_SCHEMA
from rlpheads.engine.tables.run_tables import open_run
from rlpheads.memorization.records.ledger_file import LedgerError, read_ledger


def values(table, **wanted):
    """Values of the rows in which columns have some value."""
    for name, value in wanted.items():
        column = table.column(name)
        table = table.filter(pc.is_null(column) if value is None else pc.equal(column, value))
    return table.column("value").to_pylist()


@pytest.mark.long
def test_epochs_are_the_lines_of_the_record(detached_run):
    lines = [json.loads(line) for line in (detached_run / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "epoch"][-1]
    table = open_run(detached_run).epochs()
    assert table.schema.equals(FIGURE_SCHEMA)
    numbers = [value for line in lines if line["kind"] == "epoch" for value in line.values()]
    assert table.num_rows == sum(
        len(value) if isinstance(value, list) else not isinstance(value, str) for value in numbers
    ) - 2 * len({line["epoch"] for line in lines})
    of_last = {"epoch": 6, "draw": None}
    assert values(table, **of_last, phase="heldout", figure="top1") == [last["eval_top1"]]
    assert values(table, **of_last, phase="running", figure="loss") == [last["train_loss"]]
    assert values(table, **of_last, phase=None, figure="lr") == [last["lr"]]
    assert values(table, **of_last, phase="clean", heads="own", figure="rla") == last["rla_clean"]
    assert values(table, **of_last, phase="clean", heads="refit", figure="rla") == last["fresh_refit_clean"]
    assert values(table, **of_last, phase="clean", tap="1", figure="bits") == last["bits_clean"][1:]


def test_heads_are_told_apart_by_draw(detached_run):
    ledger = read_ledger(detached_run / "ledger" / "epoch=0006" / "clean.parquet")
    table = open_run(detached_run).heads()
    for tap in (0, 1):
        found = values(table, phase="clean", epoch=6, tap=str(tap), figure="rla")
        np.testing.assert_allclose(found, ledger.hit[tap].mean(-1))
    assert set(table.column("phase").to_pylist()) == {"running", "clean", "heldout"}
    assert set(table.column("heads").to_pylist()) == {"own"}


def test_samples_name_every_image(detached_run):
    table = open_run(detached_run).samples("clean")
    ledger = read_ledger(detached_run / "ledger" / "epoch=0006" / "clean.parquet")
    assert table.column("index").to_pylist() == ledger.index.tolist()
    assert table.column("given_class").to_pylist() == ledger.target.tolist()
    assert table.column("class_name").to_pylist() == [str(target) for target in ledger.target]  # a digit's own name
    assert len(set(table.column("file").to_pylist())) == 179
    np.testing.assert_allclose(table.column("last_class_loss"), ledger.class_loss)
    np.testing.assert_allclose(table.column("label_bits/1"), ledger.bits[1].mean(0), rtol=1e-5)
    assert open_run(detached_run).samples("heldout").num_rows == 1797 - 179


def test_class_columns_alone_need_no_heads(detached_run):
    names = open_run(detached_run).samples("clean", heads=False).column_names
    assert "class_loss" in names
    assert not [name for name in names if name.startswith("label_")]


def test_a_run_without_the_file_of_samples_is_read(detached_run, tmp_path):
    shutil.copytree(detached_run / "ledger", tmp_path / "ledger")
    table = open_run(tmp_path).samples("clean")
    assert table.column("file").null_count == table.num_rows == 179
    assert table.column("given_class").null_count == 0


@pytest.mark.wrong("paths")
def test_what_is_no_run_is_named(detached_run, tmp_path):
    with pytest.raises(RunError, match=r"there is no run folder .*detache; nearest: .*detached"):
        open_run(detached_run.parent / "detache")
    with pytest.raises(RunError, match="is no run folder"):
        open_run(tmp_path)
    with pytest.raises(RunError, match="phase is 'held-out'; allowed: running, clean, heldout; nearest: heldout"):
        open_run(detached_run).samples("held-out")


@pytest.mark.wrong("files")
def test_a_damaged_ledger_is_named(detached_run, tmp_path):
    shutil.copytree(detached_run, tmp_path / "run")
    path = tmp_path / "run" / "ledger" / "epoch=0006" / "clean.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    for read in (open_run(tmp_path / "run").heads, lambda: open_run(tmp_path / "run").samples("clean")):
        with pytest.raises(LedgerError, match=r"clean\.parquet is no readable Parquet file"):
            read()
