"""The figures of a run, drawn from its folder alone: by the run as it ends, by `rlpheads figures`, and on the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rlpheads.engine.config.schema import Config
from rlpheads.engine.runs.folder import RunFolder, write_atomically
from rlpheads.engine.tables.run_tables import open_run
from rlpheads.engine.tables.sample_table import list_ledgers
from rlpheads.memorization.figures.figure_file import FORMATS, save_figure
from rlpheads.memorization.figures.rla_figures import (
    References,
    draw_rla_by_depth,
    draw_rla_by_epoch,
    draw_rla_heat_map,
)
from rlpheads.memorization.records.ledger_file import read_hit_counts

_PHASES = {"clean": "rla_clean", "audit": "audit_rla_clean", "running": "rla_running", "heldout": "rla_heldout"}


def draw_run_figures(
    folder: Path, config: Config, formats: Sequence[str] = FORMATS, width: float | None = None
) -> tuple[Path, ...]:
    """Draw every figure of a run into its folder `figures`, each with its caption as a text file; return the figures' paths.

    Args:
        folder: the run folder.
        config: its settings, K settled.
        formats: png, svg, pdf.
        width: of each figure, in inches; None: as the figure likes it.
    """
    written: list[Path] = []
    figures: dict[str, tuple[Callable[..., Figure | None], Callable[[Path, Config], str]]] = {
        "rla_by_depth": (depth_figure, depth_caption),
        "rla_by_epoch": (epoch_figure, epoch_caption),
        "rla_heat_map": (heat_map_figure, heat_map_caption),
    }
    for name, (draw, caption) in figures.items():
        figure = draw(folder, config, width)
        if figure is not None:
            written += save_figure(figure, folder / "figures" / name, formats)
            write_atomically(folder / "figures" / f"{name}.txt", caption(folder, config) + "\n")
    return tuple(written)


def depth_figure(folder: Path, config: Config, width: float | None = None) -> Figure | None:
    """Draw random-label accuracy by depth from the last ledgers, every draw a dot; None where there is nothing to draw."""
    accuracy: dict[str, Any] = {}
    taps: tuple[int | str, ...] = ()
    num_heldout, clean_epoch = None, None
    for phase in ("clean", "running", "heldout"):
        for path in list_ledgers(folder, phase)[-1:]:
            metadata, num_seen, hits_TM = read_hit_counts(path)
            if not metadata.taps or not num_seen:
                continue
            taps = metadata.taps
            groups = {"own": phase, "audit": "audit"} if phase == "clean" else {"own": phase}
            for group, name in groups.items():
                if group in metadata.draws:
                    accuracy[name] = hits_TM[:, metadata.draws[group]] / num_seen
            num_heldout = num_seen if phase == "heldout" else num_heldout
            clean_epoch = metadata.epoch if phase == "clean" else clean_epoch
    if not accuracy:
        return None
    rows = RunFolder(folder).metrics("epoch")
    if clean_epoch is not None:  # the refit on the features that these very accuracies are of
        rows = [row for row in rows if row["epoch"] == clean_epoch]
    references = _references(rows, config.heads.num_labels, num_heldout)
    return draw_rla_by_depth(taps, accuracy, references, **_width(width))


def epoch_figure(folder: Path, config: Config, width: float | None = None) -> Figure | None:
    """Draw random-label accuracy by epoch, averages over draws; None where there is nothing to draw."""
    rows, taps = RunFolder(folder).metrics("epoch"), _taps(folder)
    accuracy = {
        phase: np.array([row.get(name) or [np.nan] * len(taps) for row in rows], dtype=float)[:, :, None]
        for phase, name in _PHASES.items()
        if taps and any(name in row for row in rows)
    }
    if not accuracy:
        return None
    num_heldout = next((read_hit_counts(path)[1] for path in list_ledgers(folder, "heldout")[-1:]), None)
    references = _references(rows, config.heads.num_labels, num_heldout)
    return draw_rla_by_epoch([row["epoch"] for row in rows], taps, accuracy, references, width=width)


def heat_map_figure(folder: Path, config: Config, width: float | None = None) -> Figure | None:
    """Draw accuracy over taps and epochs: of the clean passes, or while training where there are none."""
    rows, taps = RunFolder(folder).metrics("epoch"), _taps(folder)
    name = _mapped_figure(rows, config)
    if not taps or name is None:
        return None
    measured = [row for row in rows if row.get(name)]
    values_ET = np.array([row[name] for row in measured], dtype=float)
    return draw_rla_heat_map(
        [row["epoch"] for row in measured], taps, values_ET, config.heads.num_labels, **_width(width)
    )


def depth_caption(folder: Path, config: Config) -> str:
    """Return the caption of the figure by depth."""
    beside = _line_in_words(folder)
    return f"Random-label accuracy by depth. {_circumstances(folder, config)}{beside} Dots are single draws, lines their means."


def epoch_caption(folder: Path, config: Config) -> str:
    """Return the caption of the figure by epoch."""
    beside = _line_in_words(folder)
    return f"Random-label accuracy by epoch, one line a tap. {_circumstances(folder, config)}{beside} Means over the draws."


def heat_map_caption(folder: Path, config: Config) -> str:
    """Return the caption of the heat map."""
    name = _mapped_figure(RunFolder(folder).metrics("epoch"), config)
    which = {"audit_rla_clean": "Audit heads, clean passes", "rla_clean": "Own heads, clean passes"}
    told = which.get(name or "", "Own heads, while training")
    return f"Random-label accuracy over taps and epochs. {told}. {_circumstances(folder, config)} The scale begins at chance."


def _circumstances(folder: Path, config: Config) -> str:
    """Say model, data, K, n, draws and λ."""
    heads, words = config.heads, [f"{config.model.name} on {config.data.dataset}", f"K = {config.heads.num_labels}"]
    for path in list_ledgers(folder, "clean")[-1:] or list_ledgers(folder, "running")[-1:]:
        metadata, num_seen, _ = read_hit_counts(path)
        words.append(f"n = {num_seen:,} training images")
        words.append(
            f"{heads.draws} draw(s)"
            + (f" and {metadata.num_audit_draws} of audit heads" if metadata.num_audit_draws else "")
        )
    words.append(f"λ = {config.regularizer.factor:g}")
    return f"{'; '.join(words)}; chance is 1/K."


def _line_in_words(folder: Path) -> str:
    if _last(RunFolder(folder).metrics("epoch"), "fresh_refit_clean") is None:
        return ""
    return " Dotted: heads refitted to fresh labels on the same features, with their 95 % interval."


def _mapped_figure(rows: Sequence[dict[str, Any]], config: Config) -> str | None:
    """Return which accuracies the map shows: of the heads that tell what is remembered, in clean passes if there are any."""
    audited = any(row.get("audit_rla_clean") for row in rows)
    clean = "audit_rla_clean" if config.heads.telling(audited=audited) == "audit" else "rla_clean"
    names = (clean, "rla_running")
    return next((name for name in names if any(row.get(name) for row in rows)), None)


def _references(rows: Sequence[dict[str, Any]], num_labels: int, num_heldout: int | None) -> References:
    refit, half_width = (_last(rows, f"fresh_refit_{name}clean") for name in ("", "half_width_"))
    return References(num_labels, num_heldout, refit, "refit, fresh labels", half_width)


def _last(rows: Sequence[dict[str, Any]], name: str) -> list[float] | None:
    return next((row[name] for row in reversed(rows) if row.get(name)), None)


def _taps(folder: Path) -> list[int | str]:
    return list(_numbered(open_run(folder).taps))


def _numbered(taps: Sequence[str]) -> Iterator[int | str]:
    """Yield the taps' names, as numbers where all are, which are drawn to scale."""
    numbers = all(tap.isdecimal() for tap in taps)
    yield from (int(tap) if numbers else tap for tap in taps)


def _width(width: float | None) -> dict[str, Any]:
    return {} if width is None else {"width": width}
