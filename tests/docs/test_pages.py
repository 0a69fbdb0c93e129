"""The pages: links lead somewhere, commands exist and are known to the script that runs them, Python in them can be read."""

import ast
import re
from pathlib import Path

import pytest
import run_docs
import yaml

import rlpheads
from rlpheads.engine.cli import COMMANDS

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    page
    for pattern in ("*.md", "docs/*.md", "docs/notes/*.md", "benchmarks/*.md")
    for page in sorted(ROOT.glob(pattern))
]
"""Those of the site."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def name_of(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_somewhere(page):
    broken = []
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if re.match(r"\w+:", link):
            continue  # of the web
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if (
            not target.exists()
            or (target.suffix == ".md" and target not in PAGES)
            or (anchor and anchor not in anchors(target))
        ):
            broken.append(link)
    assert not broken


def test_every_page_is_linked_from_the_readme_and_listed_in_the_site():
    readme, site = (ROOT / "README.md").read_text(), (ROOT / "docs" / "site" / "index.md").read_text()
    pages = {page.stem for page in ROOT.glob("docs/*.md")}
    assert {stem for stem in pages if f"docs/{stem}.md" not in readme} == set()
    assert {stem for stem in pages if f"../{stem}\n" not in site} == set()


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=name_of)
def test_python_in_a_page_can_be_read_and_imports_what_is_there(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "rlpheads":
                assert {alias.name for alias in node.names} <= set(rlpheads.__all__)
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("rlpheads."):
                file = ROOT / f"{node.module.removeprefix('rlpheads.').replace('.', '/')}.py"
                assert file.is_file(), node.module
                names = {alias.name for alias in node.names}
                assert all(re.search(rf"^(class |def |)\b{name}\b", file.read_text(), re.MULTILINE) for name in names)


def test_commands_of_the_pages_exist():
    commands = list(run_docs.find_commands(ROOT))
    assert len(commands) > 60
    for command in commands:
        words = command.text.split()
        if words[0] == "rlpheads":
            assert words[1] in COMMANDS or words[1].startswith("-"), command.shown
        if words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), command.shown


def test_every_rule_of_how_commands_are_run_is_needed():
    used = {command.how for command in run_docs.find_commands(ROOT)}
    assert [how.begins for how in run_docs.HOW if how not in used] == []


def test_the_citation_is_of_this_version():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["version"] == rlpheads.__version__
    assert found["preferred-citation"]["title"] in (ROOT / "docs" / "citing.md").read_text()


@pytest.mark.slow
def test_every_command_of_the_pages_runs():
    """Some ten minutes: what `make commands` prints."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "run_docs.py"], capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stdout
