"""The arms of a study as files for other programs: a long CSV table, and one of LaTeX's to be put into a paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

_COLUMNS = ("arm", "measure", "mean", "low", "high", "seeds", "difference", "difference_low", "difference_high")
_P_VALUES = ("p_value", "p_adjusted")
_SPECIAL = {**{mark: f"\\{mark}" for mark in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX = str.maketrans(_SPECIAL | {"\\": r"\textbackslash{}", "−": "$-$", "±": r"$\pm$"})


def csv_text(found: Mapping[str, Any]) -> str:
    """Return a line for each arm and measure: mean and interval over seeds, and the paired difference from the reference."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_COLUMNS, *_P_VALUES))
    writer.writerows(_rows(found))
    return text.getvalue()


def _rows(found: Mapping[str, Any]) -> Iterator[list[Any]]:
    for arm, summary in found["arms"].items():
        for name, each in summary.items():
            if name == "settings":
                continue
            difference = each.get("difference", {})
            numbers = [each["mean"], each["low"], each["high"], len(each["values"])]
            numbers += [difference.get(key) for key in ("mean", "low", "high", *_P_VALUES)]
            yield [arm, name, *numbers]


def latex_text(found: Mapping[str, Any], titles: Mapping[str, str], cells: Mapping[str, Mapping[str, str]]) -> str:
    """Return a `tabular` of the arms.

    Args:
        found: the study.
        titles: of the measures' columns, by measure.
        cells: text of every cell, by arm and measure; one that begins with * is set in bold.
    """
    lines = [
        rf"% {found['study']}: mean over taps and seeds $\pm$ half of the 95 \% interval; bold: differs from "
        rf"{found['reference'].translate(_LATEX)} (Holm, .05)",
        rf"\begin{{tabular}}{{l{'r' * len(titles)}}}",
        r"\hline",
        " & ".join(["arm", *(title.translate(_LATEX) for title in titles.values())]) + r" \\",
        r"\hline",
    ]
    for arm, of_arm in cells.items():
        shown = (of_arm.get(name, "–") for name in titles)
        lines.append(" & ".join([arm.translate(_LATEX), *map(_latex_cell, shown)]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def _latex_cell(text: str) -> str:
    plain = text.removeprefix("*").translate(_LATEX)
    return rf"\textbf{{{plain}}}" if text.startswith("*") else plain
