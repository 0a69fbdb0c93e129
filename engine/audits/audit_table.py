"""What an audit found, printed: a table with a row for each tap, and how to read it where it says little."""

from __future__ import annotations

import math
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlpheads.engine.audits.audit_run import RunAudit
from rlpheads.engine.report.display import percent
from rlpheads.memorization.audit.excesses import Excess
from rlpheads.memorization.measures.estimates import Estimated


def print_audit(audit: RunAudit, console: Console) -> None:
    """Print the tables of an audit."""
    console.print(audit_table(audit))
    console.print(_about_class_probes(audit), soft_wrap=True)  # a title would be as narrow as its table
    console.print(class_probe_table(audit))
    if audit.is_saturated:
        least = audit.probe["name"] == "least_squares"
        remedy = "there are too few images for it" if least else "take a smaller one, or least_squares"
        console.print(f"Where the probe fits nearly every fresh label it can show no excess: {remedy}.")
    if audit.num_skipped:
        console.print(f"{audit.num_skipped} images could not be read and were left out.")


def audit_table(audit: RunAudit) -> Table:
    """Return the table of an audit."""
    when = f"end of epoch {audit.epoch}" if audit.epoch is not None else f"step {audit.step}"
    level = percent(audit.options.level).replace(".00", "")
    factor = f"λ = {audit.regularizer_factor:g} (λ/K = {audit.regularizer_factor / audit.num_labels:g})"
    title = (
        f"{audit.run}, {when}: {audit.probe['name']} probes, K = {audit.num_labels}, {factor}, μ = {audit.joint:g}; "
        f"chance {percent(audit.chance)}, intervals of {level} that hold at all taps together, "
        f"{audit.num_fresh_draws} fresh draws"
    )
    table = Table(title=title, title_justify="left", padding=(0, 1))
    n, equal = f"n = {audit.num_train}", f"n = {audit.num_equal}"
    table.add_column("tap")
    table.add_column("rank / d", justify="right")
    for name in (f"own labels\n{n}", f"fresh labels\n{n}", "label excess\npoints", "luck\npoints", f"head alone\n{n}"):
        table.add_column(name, justify="right")
    for name in (f"training\n{equal}", f"held-out\n{equal}", "membership excess\npoints", f"head alone\n{equal}"):
        table.add_column(name, justify="right")
    for tap in audit.taps:
        found = tap.found
        table.add_row(
            tap.tap,
            f"{found.rank} / {tap.num_features}",
            percent(fmean(found.own_M)),
            percent(fmean(found.fresh_F)),
            _excess_text(found.label_excess),
            f"± {100 * found.label_excess.luck:.2f}",
            percent(tap.control.all_rows),
            percent(fmean(found.members_F)),
            percent(fmean(found.heldout_F)),
            _excess_text(found.membership_excess),
            percent(tap.control.equal_rows),
        )
    return table


def _about_class_probes(audit: RunAudit) -> str:
    """Return the sentence above the table of the class probes, with the network's own answers."""
    network = audit.network
    text = f"classes, least squares on the given ones: held-out right (the network: {percent(network.heldout.value)})"
    if _has_mislabelled(audit):
        text += (
            ", and mislabelled training images answered with their true class "
            f"(the network: {percent(network.true_class.value)}; with the given one: {percent(network.given_class.value)})"
        )
    return text


def _has_mislabelled(audit: RunAudit) -> bool:
    return not math.isnan(audit.network.true_class.value)


def class_probe_table(audit: RunAudit) -> Table:
    """Return the table of the class probes, with the columns of mislabelled images where there are some."""
    noisy = _has_mislabelled(audit)
    table = Table(padding=(0, 1))
    table.add_column("tap")
    for name in ("held-out", "probe − network\npoints", *(("true class", "probe − network\npoints") if noisy else ())):
        table.add_column(name, justify="right")
    for tap in audit.taps:
        pairs = [(tap.classes.probe.heldout, tap.classes.heldout_gain)]
        pairs += [(tap.classes.probe.true_class, tap.classes.true_class_gain)] if noisy else []
        cells = [cell for share, gain in pairs for cell in (percent(share.value), _gain_text(gain))]
        table.add_row(tap.tap, *cells)
    return table


def _gain_text(gain: Estimated) -> Text:
    """Return a difference in percentage points; bold where its interval leaves out 0."""
    half = "" if math.isnan(gain.low) else f" ± {100 * (gain.high - gain.low) / 2:.2f}"
    return Text(f"{100 * gain.value:+.2f}{half}", style="bold" if gain.excludes(0) else "")


def _excess_text(excess: Excess) -> Text:
    """Return an excess in percentage points; bold where it is not by luck."""
    text = f"{100 * excess.value:+.2f} ± {100 * excess.half_width:.2f}"
    return Text(text, style="bold" if excess.is_positive or excess.is_negative else "")
