"""`rlpheads samples RUN`: the images that a measure ranks first, each with its file and classes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpheads.engine import exit_codes
from rlpheads.engine.report.console import open_console

if TYPE_CHECKING:
    from rich.table import Table

    from rlpheads.engine.tables.rankings import Ranking


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "List the images that rank first by a measure of a run's ledgers, with file, class, given class, predicted class and "
        "canary kind. Each ranking is printed with its split-half reliability; one that is of chance is not listed."
    )
    add = parser.add_argument
    add("folder", metavar="RUN", type=Path, help="run folder")
    add("--top", type=int, default=50, help="how many images; default: 50")
    add(
        "--by",
        default="class_loss",
        help="class_loss (default), class_confidence, class_variability, first_learned, learned_for_good, "
        "forgetting_events: over the ledgers; bits, score, margin and audit_bits, audit_score, audit_margin: of the random "
        "labels in the last ledger",
    )
    add("--least", action="store_true", help="the smallest values first instead of the greatest")
    add("--class", dest="class_name", help="images that were given this class alone: its name, or its number")
    add("--tap", help="which tap, for measures of the random labels; default: the last")
    add("--phase", choices=("running", "clean", "heldout"), default="running", help="which ledgers; default: running")
    add("--csv", action="store_true", help="as CSV, with every column")


def run(arguments: argparse.Namespace) -> int:
    """Print the ranking; return the exit code."""
    from rlpheads.engine.config.errors import UserError  # what follows imports torch
    from rlpheads.engine.tables.rankings import RankingQuery, rank_samples
    from rlpheads.engine.tables.run_tables import TABLE_ERRORS, open_run

    names = ("by", "top", "least", "phase", "tap", "class_name")
    query = RankingQuery(**{name: getattr(arguments, name) for name in names})
    try:
        ranking = rank_samples(open_run(arguments.folder).path, query)
    except (UserError, *TABLE_ERRORS) as error:
        return exit_codes.report_error(error)
    if arguments.csv:
        _print_csv(ranking)
        return exit_codes.DONE
    console = open_console()
    console.print(_describe(ranking))
    if ranking.table.num_rows:
        console.print(_ranking_table(ranking))
    return exit_codes.DONE


def _describe(ranking: Ranking) -> str:
    query = ranking.query
    where = f" at tap {ranking.tap}" if ranking.tap is not None else ""
    order = "least" if query.least else "greatest"
    values = "" if ranking.reliability.is_resolvable else "; the values are in open_run(RUN).samples()"
    return f"{query.phase} ledgers, {order} {query.by}{where}: {ranking.reliability.describe()}{values}"


def _print_csv(ranking: Ranking) -> None:
    """Print the rows on standard output; what is to be known of them stays apart, on standard error."""
    import pyarrow.csv

    print(_describe(ranking), file=sys.stderr)
    sys.stdout.flush()
    pyarrow.csv.write_csv(ranking.table, sys.stdout.buffer)


def _ranking_table(ranking: Ranking) -> Table:
    from rich.table import Table

    table = Table(padding=(0, 1))
    for name in ("rank", "index"):
        table.add_column(name, justify="right")
    for name in ("file", "class", "given", "predicted", "canary"):
        table.add_column(name)
    table.add_column(ranking.query.by, justify="right")
    for row in ranking.table.to_pylist():
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of one image; a given class that is the image's own is not repeated."""

    def named(column: str, number: str) -> str:
        name = row[column] if row[column] is not None else row[number]
        return "–" if name is None else str(name)

    given = "" if row["given_class"] == row["class"] else named("given_name", "given_class")
    predicted = named("predicted_name", "predicted")
    if row["confidence"] is not None:
        predicted += f" ({100 * row['confidence']:.0f} %)"
    value = "never" if row["value"] == float("inf") else f"{row['value']:.4g}"
    cells = (row["rank"], row["index"], row["file"] or "–", named("class_name", "class"), given, predicted)
    return [*map(str, cells), row["canary"] or "", value]
