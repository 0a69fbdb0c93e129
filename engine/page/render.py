"""The page: the sections of each run in their order, turned into one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlpheads.engine.page import class_sections, evidence_sections, memory_sections, run_sections, sample_sections
from rlpheads.engine.page.blocks import Section
from rlpheads.engine.page.comparison import comparison_section
from rlpheads.engine.page.downloads import downloads_section
from rlpheads.engine.page.facts import RunFacts
from rlpheads.engine.page.verdict import verdict_section

SECTIONS: tuple[Callable[[RunFacts], Section], ...] = (
    verdict_section,
    run_sections.settings_section,
    run_sections.curves_section,
    memory_sections.depth_section,
    memory_sections.epochs_section,
    memory_sections.heldout_section,
    memory_sections.bits_section,
    sample_sections.pictures_section,
    sample_sections.dataset_map_section,
    class_sections.classes_section,
    evidence_sections.canaries_section,
    evidence_sections.audit_section,
    class_sections.membership_section,
    run_sections.overhead_section,
    run_sections.skipped_section,
    run_sections.caveats_section,
    downloads_section,
)
"""What is said of each run, in this order."""

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class RunPart:
    """The part of the page that is about one run."""

    name: str
    key: str
    sections: Sequence[Section]


def render_page(runs: Sequence[RunFacts]) -> str:
    """Return the page of one run or several.

    Raises:
        LedgerError: a ledger of a run is damaged.
    """
    comparison = comparison_section(runs)
    parts = [RunPart(run.name, run.name_key, [each for each in _sections(run) if each.blocks]) for run in runs]
    # escapes all that is not Markup: file and class names may hold anything
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.globals |= {
        "style": Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
        "script": Markup((_TEMPLATES / "script.js").read_text(encoding="utf-8")),
    }
    environment.filters["svg"] = Markup  # made by our own figures, their text escaped by matplotlib
    title = ", ".join(run.name for run in runs)
    page = environment.get_template("page.html")
    return page.render(title=title, parts=parts, comparison=comparison if comparison.blocks else None)


def _sections(run: RunFacts) -> list[Section]:
    return [build(run) for build in SECTIONS]
