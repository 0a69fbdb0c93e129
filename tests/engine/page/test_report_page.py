"""The report of a run: its sections in order, what it says against the run's own files, and names that are markup."""

import re
import shutil

import pyarrow.parquet as pq
import pytest

from rlpheads.engine.cli import main
from rlpheads.engine.page.facts import read_facts
from rlpheads.engine.page.run_sections import settings_section
from rlpheads.engine.page.verdict import tap_verdicts, verdict_sentences
from rlpheads.memorization.records.ledger_file import read_ledger

pytestmark = pytest.mark.long

ORDER = (
    *("verdict", "settings", "curves", "depth", "epochs", "heldout", "bits", "pictures", "map", "classes", "canaries"),
    *("audit", "membership", "overhead", "skipped", "caveats", "downloads"),
)


@pytest.fixture(scope="module")
def page(detached_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(detached_run), "--out", str(out)]) == 0
    return out.read_text()


def test_sections_are_there_in_their_order_and_nothing_is_loaded(page):
    found = re.findall(r'<section id="detached-(\w+)"', page)
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
        ("Memory beyond the head is shown: at tap ", "Below what a head alone reaches: no memory beyond the head")
    )
    assert check.startswith("The held-out check passed")


def test_settings_that_differ_are_those_of_the_run(detached_run):
    grid = settings_section(read_facts(detached_run)).blocks[1]
    rows = {row[0]: row[1:] for row in grid.rows}
    assert rows["heads.labels"] == ("5", "10")
    assert "heads.joint" not in rows


def test_names_are_text_and_not_markup(detached_run, tmp_path):
    """A folder of images may be called anything; so may a run."""
    run = tmp_path / "<b>run"
    shutil.copytree(detached_run, run)
    table = pq.read_table(run / "samples.parquet")
    for name in ("file", "class_name", "given_name"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), [["<script>alert(1)</script>"] * table.num_rows])
    pq.write_table(table, run / "samples.parquet")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>run" not in page


def test_an_anonymous_page_names_neither_files_nor_places(detached_run, tmp_path):
    assert main(["report", str(detached_run), "--anonymous", "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<img" not in page
    assert str(detached_run.parent) not in page
    assert "detached" not in page
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
