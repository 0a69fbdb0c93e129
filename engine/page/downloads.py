"""What the page holds to be saved: tables as CSV and Parquet, and text for a paper."""

from __future__ import annotations

import base64
import io

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from rlpheads.engine.page.blocks import Attachment, Attachments, Section
from rlpheads.engine.page.facts import RunFacts
from rlpheads.engine.page.sample_sections import top_samples
from rlpheads.engine.page.verdict import tap_verdicts
from rlpheads.engine.report.summary import summary_text
from rlpheads.engine.tables.run_tables import open_run

BIBTEX = """@inproceedings{rlpheads2026paper,
  title     = {Random Label Prediction Heads for Studying Memorization in Deep Neural Networks},
  booktitle = {International Conference on Learning Representations},
  year      = {2026}
}
@software{rlpheads,
  title   = {rlpheads: training image classifiers and measuring what they memorise},
  version = {VERSION}
}"""


def downloads_section(facts: RunFacts) -> Section:
    """Files and text of one run."""
    figures = pa.BufferOutputStream()
    pq.write_table(open_run(facts.path).epochs(), figures, compression="zstd")
    files = [
        _attachment(
            facts, "summary.csv", "text/csv", summary_text(facts.epochs, facts.config.heads).encode(), "the epochs"
        ),
        _attachment(
            facts,
            "epochs.parquet",
            "application/octet-stream",
            figures.getvalue().to_pybytes(),
            "every figure of every epoch",
        ),
    ]
    if not facts.anonymous and (samples := top_samples(facts)) is not None:
        text = io.BytesIO()
        pyarrow.csv.write_csv(samples, text)
        files.append(
            _attachment(facts, "samples.csv", "text/csv", text.getvalue(), "up to 1,000 images of greatest class loss")
        )
    version = str(facts.environment.get("packages", {}).get("rlpheads", ""))
    snippets = [("LaTeX table", latex_table(facts)), ("BibTeX", BIBTEX.replace("VERSION", version))]
    return Section("downloads", "To be taken along", [Attachments(files, snippets)])


def latex_table(facts: RunFacts) -> str:
    """Return the accuracies by depth as a LaTeX table (booktabs)."""
    lines = [
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"tap & accuracy (\%) & refit (\%) & excess (points) \\",
        r"\midrule",
    ]
    for each in tap_verdicts(facts):
        tap = "".join(f"\\{letter}" if letter in "_%&#$" else letter for letter in each.tap)
        excess = rf"${100 * each.excess:+.2f} \pm {100 * each.half_width:.2f}$"
        lines.append(rf"{tap} & {100 * each.accuracy:.2f} & {100 * each.refit:.2f} & {excess} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _attachment(facts: RunFacts, name: str, kind: str, content: bytes, words: str) -> Attachment:
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return Attachment(f"{facts.name_key}-{name}", uri, f"{words}, {len(content) / 1024:.0f} KiB")
