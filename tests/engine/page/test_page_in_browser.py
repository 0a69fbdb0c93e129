"""The report in a real browser: nothing fails, nothing is missing, nothing overflows, it works, and everybody can read it."""

import pytest
from headless_browser import probe_page, why_no_browser

from rlpheads.engine.cli import main

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser())),
]

PROBE = """
const images = [...document.images], table = document.querySelector("#content table");
const root = document.documentElement, header = table.tHead.rows[0].cells[0];
const column = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
const before = column();
header.querySelector("button").click();
const ascending = column();
header.querySelector("button").click();
const descending = column(), sorted = header.getAttribute("aria-sort");
const select = document.querySelector(".gallery select");
let shown = null;
if (select) {
  select.value = select.options[1].value;
  select.dispatchEvent(new Event("change"));
  shown = [...select.closest(".gallery").querySelectorAll("li:not([hidden])")].map((item) => item.dataset.class);
}
const audit = await axe.run(document, {resultTypes: ["violations"]});
const faults = audit.violations.filter((each) => ["serious", "critical"].includes(each.impact));
return {
  errors, before, ascending, descending, sorted, shown, wanted: select ? select.value : null,
  images: images.length, missing: images.filter((each) => !each.complete || !each.naturalWidth).length,
  overflow: root.scrollWidth - root.clientWidth,
  links: [...document.querySelectorAll("nav a")].filter((each) => !document.querySelector(each.getAttribute("href"))).length,
  faults: faults.map((each) => each.id + ": " + each.nodes.map((node) => node.html.slice(0, 120)).join(" | ")),
};
"""


@pytest.fixture(scope="module")
def pages(ledgered_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    assert main(["report", str(ledgered_run), "--out", str(folder / "one.html")]) == 0
    assert main(["report", str(ledgered_run), str(ledgered_run), "--anonymous", "--out", str(folder / "two.html")]) == 0
    return folder


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_page_opens_works_and_is_accessible(pages, name):
    found = probe_page((pages / f"{name}.html").read_text(), pages, PROBE, [390, 1400])
    for width, each in found.items():
        assert "failed" not in each, each
        assert each["errors"] == [], width
        assert each["missing"] == 0, width
        assert each["overflow"] <= 0, width
        assert each["links"] == 0, width
        assert each["faults"] == [], width
        assert each["ascending"] != each["descending"]
        assert each["ascending"] == each["descending"][::-1]
        assert sorted(each["before"]) == sorted(each["ascending"])
        assert each["sorted"] == "descending"
        assert (each["shown"] is None) is (name == "two")  # an anonymous page has no pictures
        assert each["shown"] is None or (each["shown"] and set(each["shown"]) == {each["wanted"]})


def test_the_probe_finds_what_is_wrong(pages):
    """A picture that is none, a script error, a box wider than the screen, and a control without a name."""
    wrong = '<img src="data:image/png;base64,AAAA" alt="x"><div style="width: 3000px">wide</div><input type="text">'
    page = (pages / "one.html").read_text().replace("</main>", f"{wrong}<script>nothing.there()</script></main>")
    (found,) = probe_page(page, pages, PROBE, [390]).values()
    assert any("nothing is not defined" in each for each in found["errors"])
    assert found["missing"] == 1
    assert found["overflow"] > 2000
    assert any(each.startswith("label: ") for each in found["faults"])
