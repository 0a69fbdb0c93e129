"""The report of a run: its sections in order, what it says against the run's own files, and names that are markup."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlpheads.engine.cli import main
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.schema import Config
from rlpheads.engine.page.blocks import Gallery
from rlpheads.engine.page.class_sections import classes_section, membership_section
from rlpheads.engine.page.comparison import greatest_memory
from rlpheads.engine.page.facts import read_facts
from rlpheads.engine.page.run_sections import overhead_section, settings_section, shipped_config
from rlpheads.engine.page.sample_sections import pictures_section
from rlpheads.engine.page.verdict import tap_verdicts, verdict_sentences
from rlpheads.engine.report.summary import with_derived
from rlpheads.engine.tables.rankings import RankingQuery, SampleRanker
from rlpheads.engine.tables.run_figures import depth_figure, heat_map_caption
from rlpheads.engine.tables.run_tables import open_run
from rlpheads.memorization.records.ledger_file import read_ledger

pytestmark = pytest.mark.long

ORDER = (
    *("verdict", "settings", "curves", "depth", "epochs", "heldout", "bits", "pictures", "map", "classes", "canaries"),
    *("audit", "membership", "overhead", "skipped", "caveats", "downloads"),
)


@pytest.fixture(scope="module")
def page(ledgered_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(ledgered_run), "--out", str(out)]) == 0
    return out.read_text()


def test_sections_are_there_in_their_order_and_nothing_is_loaded(page):
    found = re.findall(r'<section id="ledgered-(\w+)"', page)
    assert found == list(ORDER)
    outside = re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert outside == []
    assert "default-src 'none'" in page


def test_the_verdict_has_the_numbers_of_the_ledgers(detached_run):
    facts = read_facts(detached_run)
    ledger = read_ledger(detached_run / "ledger" / "epoch=0006" / "clean.parquet")
    for position, each in enumerate(tap_verdicts(facts)):
        assert each.accuracy == pytest.approx(ledger.hit[position].mean())
        assert each.low < each.accuracy < each.high
        assert each.excess == pytest.approx(each.accuracy - facts.last("fresh_refit_clean")[position])
    classes, memory, check = verdict_sentences(facts)
    assert "done after 7 epochs" in classes
    assert memory.startswith(
        ("Memory beyond the head is shown: at tap ", "Below what a head", "Not beyond what a head")
    )
    assert check.startswith("The held-out check passed")


def test_hits_of_a_ledger_are_set_beside_the_refit_of_the_same_pass(ledgered_run, tmp_path):
    """As of a run in progress whose last clean passes had no ledger yet (ledger.every)."""
    shutil.copytree(ledgered_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "epoch=000[3-5]"))
    facts = read_facts(tmp_path / "run")
    row = facts.epochs[2]
    assert row["fresh_refit_clean"] != facts.last("fresh_refit_clean")
    found = tap_verdicts(facts)
    assert [each.refit for each in found] == row["fresh_refit_clean"]
    assert [each.accuracy for each in found] == pytest.approx(row["audit_rla_clean"])
    assert "in epoch 2, the last with a ledger, at tap" in verdict_sentences(facts)[1]
    drawn = depth_figure(tmp_path / "run", facts.config).axes[0].get_lines()
    (line,) = (line for line in drawn if line.get_label() == "refit, fresh labels")
    assert list(line.get_ydata()[1:-1]) == row["fresh_refit_clean"]
    assert "ledger" not in verdict_sentences(read_facts(ledgered_run))[1]


def test_heads_that_are_believed_are_the_same_everywhere(ledgered_run):
    """Audit heads, but where the network learns the labels of its own heads: comparison, verdict, file and map agree."""
    facts = read_facts(ledgered_run)
    for joint, name in ((0.0, "audit_rla_clean"), (1.0, "rla_clean")):
        facts = replace(facts, config=replace(facts.config, heads=replace(facts.config.heads, joint=joint)))
        accuracy_T, refit_T = facts.last(name), facts.last("fresh_refit_clean")
        assert greatest_memory(facts) == max(accuracy_T)
        assert [each.accuracy for each in tap_verdicts(facts)] == pytest.approx(accuracy_T)
        excess_T = with_derived(facts.epochs, facts.config.heads)[-1]["excess_clean"]
        assert excess_T == pytest.approx(np.subtract(accuracy_T, refit_T))
        heads = {"audit_rla_clean": "Audit heads, clean", "rla_clean": "Own heads, clean"}[name]
        assert heads in heat_map_caption(ledgered_run, facts.config)


def test_an_excess_within_chance_is_not_said_to_be_below_the_line(ledgered_run):
    facts = read_facts(ledgered_run)
    refit_T = [value - 0.001 for value in facts.last("audit_rla_clean")]
    lines = [{**row, "fresh_refit_clean": refit_T} for row in facts.epochs]
    sentence = verdict_sentences(replace(facts, epochs=lines))[1]
    assert sentence.startswith("Not beyond what a head alone reaches: no memory beyond the head is shown")
    assert "(+0.10 ± " in sentence


def test_settings_that_differ_are_those_of_the_run(detached_run):
    grid = settings_section(read_facts(detached_run)).blocks[1]
    rows = {row[0]: row[1:] for row in grid.rows}
    assert rows["heads.labels"] == ("5", "10")
    assert "heads.joint" not in rows


def test_pictures_carry_the_hits_of_their_random_labels_by_tap(ledgered_run):
    """Of the heads' own draws and of the audit heads', as the last clean ledger has them."""
    blocks = pictures_section(read_facts(ledgered_run)).blocks
    ledger = read_ledger(ledgered_run / "ledger" / "epoch=0005" / "clean.parquet")
    galleries = [block for block in blocks if isinstance(block, Gallery)]
    assert {"Greatest class loss", "Least class loss"} <= {each.title for each in galleries}
    numbers = {row["file"]: row["index"] for row in open_run(ledgered_run).samples(heads=False).to_pylist()}
    for picture in galleries[0].pictures:
        hit_TM = ledger.hit[:, :, numbers[picture.lines[0]]]
        own, audit = hit_TM[:, :2].sum(1), hit_TM[:, 2:].sum(1)
        assert f"label hits of 2:\n{own[0]} {own[1]}" in picture.lines
        assert f"audit label hits of 1:\n{audit[0]} {audit[1]}" in picture.lines


def test_membership_and_classes_are_those_that_the_run_wrote(ledgered_run, tmp_path):
    """memory.json knows loss traces and random labels by class; without it, ledgers tell what they can."""
    memory = json.loads((ledgered_run / "memory.json").read_text())
    facts = read_facts(ledgered_run)
    (grid,) = membership_section(facts).blocks
    assert [row[0] for row in grid.rows] == ["a low class loss", *[row[0] for row in grid.rows[1:]]]
    assert grid.rows[0][1].startswith(f"{memory['membership']['loss']['auc']['value']:.4f} [")
    assert grid.columns[2] == "true positives at 1 % false positives"
    classes = classes_section(facts).blocks[0]
    assert "that less the refit on fresh labels" in classes.columns
    shutil.copytree(ledgered_run, tmp_path / "run", ignore=shutil.ignore_patterns("memory.json", "checkpoints"))
    without = read_facts(tmp_path / "run")
    assert membership_section(without).blocks[0].rows[0] == grid.rows[0]
    columns = [[row[:6] for row in block.rows] for block in (classes, classes_section(without).blocks[0])]
    assert columns[0] == columns[1]


def test_a_class_with_one_heldout_image_has_a_value_without_an_interval(ledgered_run, tmp_path):
    shutil.copytree(ledgered_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    memory = json.loads((tmp_path / "run" / "memory.json").read_text())
    memory["classes"][0]["loss_excess"] = {"value": 0.25, "low": None, "high": None}
    (tmp_path / "run" / "memory.json").write_text(json.dumps(memory))
    (grid, *_) = classes_section(read_facts(tmp_path / "run")).blocks
    assert "+0.250 (no interval)" in [row[4] for row in grid.rows]


def test_a_run_whose_batches_were_all_left_out_ranks_no_image(ledgered_run, tmp_path):
    shutil.copytree(ledgered_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "epoch=000[0-4]"))
    (path,) = (tmp_path / "run" / "ledger").glob("*/running.parquet")
    table = pq.read_table(path)
    status, skipped = table.schema.get_field_index("status"), pa.array([2] * table.num_rows, pa.uint8())
    pq.write_table(table.set_column(status, table.schema.field(status), skipped), path)
    for by in ("class_loss", "first_learned"):
        ranking = SampleRanker(tmp_path / "run", "running").rank(RankingQuery(by, 5, phase="running"))
        assert ranking.table.num_rows == 0
        assert not ranking.reliability.is_resolvable


def test_what_heads_cost_is_told_as_the_run_measured_it(ledgered_run):
    facts = read_facts(ledgered_run)
    assert "Steps were not timed without heads" in overhead_section(facts).blocks[0].note  # 36 steps
    timed = {"with_seconds": 0.02, "without_seconds": 0.016, "num_pairs": 10, "kept_bytes": 2**20, "share": 0.25}
    (grid,) = overhead_section(replace(facts, status={**facts.status, "overhead": timed})).blocks
    assert grid.rows[0] == ("time that heads add to a step", "+25.0 %")
    assert "Medians of 10 steps each" in grid.note


def test_settings_are_compared_with_the_shipped_config_that_the_command_names():
    words, config = shipped_config(["torchrun", "--config", "configs/digits_vit.yaml", "--config=mine.yaml"])
    assert words == "the shipped config digits_vit"
    assert config == parse_config(["--config", "digits_vit"])
    assert shipped_config(["train", "--epochs", "3"]) == ("the defaults", Config())


def test_names_are_text_and_not_markup(ledgered_run, tmp_path):
    """A folder of images may be called anything; so may a run."""
    run = tmp_path / "<b>run"
    shutil.copytree(ledgered_run, run)
    table = pq.read_table(run / "samples.parquet")
    for name in ("file", "class_name", "given_name"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), [["<script>alert(1)</script>"] * table.num_rows])
    pq.write_table(table, run / "samples.parquet")
    memory = json.loads((run / "memory.json").read_text())
    memory["classes"][0]["class"] = "<script>alert(1)</script>"
    (run / "memory.json").write_text(json.dumps(memory))
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>run" not in page


def test_an_anonymous_page_names_neither_files_nor_places(ledgered_run, tmp_path):
    assert main(["report", str(ledgered_run), "--anonymous", "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<img" not in page
    assert str(ledgered_run.parent) not in page
    assert "ledgered" not in page
    assert "digits/" not in page


@pytest.mark.wrong("paths")
def test_what_is_no_run_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "there is no run folder" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("epochs: 2\n")
    assert main(["report", str(tmp_path)]) == 2
    assert "has no finished epoch yet" in capsys.readouterr().err


def test_figures_are_drawn_again_in_the_width_and_format_of_a_paper(detached_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(detached_run, run)
    shutil.rmtree(run / "figures")
    assert main(["figures", str(run), "--width", "3.3in", "--format", "pdf"]) == 0
    names = {path.name for path in (run / "figures").iterdir()}
    assert names == {f"rla_{each}.{kind}" for each in ("by_depth", "by_epoch", "heat_map") for kind in ("pdf", "txt")}
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", (run / "figures" / "rla_by_depth.pdf").read_bytes())
    assert float(box[1]) == pytest.approx(3.3 * 72, abs=1)
    caption = (run / "figures" / "rla_by_depth.txt").read_text()
    assert "K = 5; n = 179 training images; 2 draw(s); λ = 0" in caption
    with pytest.raises(SystemExit):
        main(["figures", str(run), "--width", "3 metres"])
    assert "allowed: 2 to 20 inches, such as 3.3in" in capsys.readouterr().err
