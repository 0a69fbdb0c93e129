"""Sections on single images: pictures at both ends of the rankings, the dataset map, and the classes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from rlpheads.engine.page.blocks import Block, Drawing, Gallery, Grid, Picture, Section, Text
from rlpheads.engine.page.facts import RunFacts
from rlpheads.engine.report.display import percent
from rlpheads.engine.runs.opened_run import RunError, open_images, read_run
from rlpheads.engine.tables.rankings import MEASURES, RankingQuery, rank_samples
from rlpheads.engine.tables.run_tables import open_run
from rlpheads.engine.tables.sample_table import list_ledgers
from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.memorization.figures.class_figures import draw_dataset_map
from rlpheads.memorization.figures.figure_file import inline_svg
from rlpheads.memorization.measures.class_memory import ClassRows, memory_by_class
from rlpheads.memorization.measures.sample_dynamics import dataset_map
from rlpheads.memorization.measures.sample_history import fill_missed_epochs, gather_history
from rlpheads.memorization.records.ledger_file import LedgerTable, read_ledger

RANKINGS = (
    ("class_loss", False, "Greatest class loss"),
    ("class_loss", True, "Least class loss"),
    ("first_learned", False, "Learned last"),
    ("forgetting_events", False, "Forgotten most often"),
    ("bits", False, "Most bits about the random label"),
)
NUM_PICTURES = 24
_SIDE = 96
_MOST_LEDGERS = 30
"""Points of a sparkline, and ledgers that the dataset map is made of; of more, every so many are taken."""


def pictures_section(facts: RunFacts) -> Section:
    """Pictures at the ends of each ranking that is resolved; a line for each that is not."""
    if facts.anonymous or not list_ledgers(facts.path, "running"):
        return Section("pictures", "Pictures", [])
    source, losses_EN = _source(facts), _losses(facts)
    blocks: list[Block] = []
    if source is None:
        blocks.append(
            Text(
                "The images cannot be opened from here, so that names stand alone; --root FOLDER says where they are.",
                "note",
            )
        )
    for by, least, title in RANKINGS:
        if by not in MEASURES or (by == "bits" and not facts.taps):
            continue
        phase = "clean" if by == "bits" and list_ledgers(facts.path, "clean") else "running"
        ranking = rank_samples(facts.path, RankingQuery(by, NUM_PICTURES, least, phase))
        note = f"{phase} ledgers; {ranking.reliability.describe()}."
        if not ranking.reliability.is_resolvable:
            blocks.append(Text(f"{title}: {ranking.reliability.describe()}.", "note"))
            continue
        pictures = [_picture(row, by, source, losses_EN) for row in ranking.table.to_pylist()]
        blocks.append(Gallery(title, note, pictures))
    return Section("pictures", "Pictures", blocks)


def dataset_map_section(facts: RunFacts) -> Section:
    """The dataset map of the training images."""
    ledgers = _thinned(list_ledgers(facts.path, "running"))
    if len(ledgers) < 2:
        return Section(
            "map", "Dataset map", [Text("A dataset map needs two running ledgers or more (ledger.every).", "note")]
        )
    history = gather_history(read_ledger(path, heads=False) for path in ledgers)
    hit_EN, loss_EN = (values_EN[:, history.seen_N] for values_EN in fill_missed_epochs(history))
    found = dataset_map(loss_EN, hit_EN)
    caption = (
        f"Dataset map of {len(found.confidence_N):,} training images over {len(ledgers)} ledgers: top left are learned early, "
        "bottom left are never learned, the right are ambiguous (Swayamdipta et al., 2020)."
    )
    figure = draw_dataset_map(found.confidence_N.numpy(), found.variability_N.numpy())
    return Section("map", "Dataset map", [Drawing(inline_svg(figure, f"map-{facts.name_key}", caption), caption)])


def classes_section(facts: RunFacts) -> Section:
    """Loss, excess over held-out images and membership by class, the smallest class first."""
    train, heldout = facts.class_rows("clean") or facts.class_rows("running"), facts.class_rows("heldout")
    if train is None or heldout is None:
        return Section("classes", "Classes", [])
    inside, outside = (
        ClassRows(torch.from_numpy(each.target[each.seen]), torch.from_numpy(each.class_loss[each.seen]))
        for each in (train, heldout)
    )
    num_classes = 1 + max(int(each.target_N.max()) for each in (inside, outside))
    names = _class_names(facts, num_classes)
    measured = sorted(
        enumerate(memory_by_class(inside, outside, num_classes)), key=lambda pair: (pair[1].num_train, pair[0])
    )
    rows = [
        (
            names[number],
            str(each.num_train),
            str(each.num_heldout),
            f"{each.loss.value:.3f}",
            f"{each.loss_excess.value:+.3f} [{each.loss_excess.low:+.3f}, {each.loss_excess.high:+.3f}]",
            f"{each.membership_auc.value:.3f} [{each.membership_auc.low:.3f}, {each.membership_auc.high:.3f}]",
        )
        for number, each in measured
    ]
    columns = (
        "class",
        "training images",
        "held-out images",
        "training loss",
        "held-out less training loss",
        "membership AUC",
    )
    note = "Sorted by size, the tail first. Intervals of a column hold over all classes together."
    return Section("classes", "Classes", [Grid("By class", columns, rows, note)])


def _class_names(facts: RunFacts, num_classes: int) -> list[str]:
    if facts.anonymous or not list_ledgers(facts.path, "running"):
        return [f"class {number}" for number in range(num_classes)]
    table = open_run(facts.path).samples("heldout", heads=False).select(["class", "class_name"])
    pairs = table.group_by(["class", "class_name"]).aggregate([])
    known = dict(zip(pairs.column("class").to_pylist(), pairs.column("class_name").to_pylist(), strict=True))
    return [known.get(number) or f"class {number}" for number in range(num_classes)]


def _source(facts: RunFacts) -> ImageSource | None:
    """Return the training images; None where they are not there, or are others."""
    try:
        return open_images(read_run(facts.path, root=facts.root)).train
    except (RunError, ValueError, OSError):
        if facts.root is not None:
            raise
        return None


def _losses(facts: RunFacts) -> np.ndarray:
    """Return the class losses of some ledgers for sparklines, (E, N), NaN where not seen."""
    return np.stack([_loss(read_ledger(path, heads=False)) for path in _thinned(list_ledgers(facts.path, "running"))])


def _loss(table: LedgerTable) -> np.ndarray:
    return np.where(table.seen, table.class_loss, np.nan)


def _thinned(paths: Sequence[Any]) -> list[Any]:
    step = -(-len(paths) // _MOST_LEDGERS) if paths else 1
    return list(paths[::-1][::step][::-1])


def _picture(row: dict[str, Any], by: str, source: ImageSource | None, losses_EN: np.ndarray) -> Picture:
    given, shown = (
        row[f"{kind}_name"] or str(row[number]) for kind, number in (("given", "given_class"), ("class", "class"))
    )
    predicted = row["predicted_name"] or ("–" if row["predicted"] is None else str(row["predicted"]))
    value = "never" if row["value"] == float("inf") else f"{row['value']:.4g}"
    lines = [row["file"] or f"image {row['index']}"]
    lines.append(f"given {given}" + (f", shows {shown}" if shown != given else ""))
    confidence = "" if row["confidence"] is None else f" ({percent(row['confidence'])})"
    lines.append(f"predicted {predicted}{confidence}")
    lines.append(f"{by.replace('_', ' ')} {value}")
    if row["canary"]:
        lines.append(f"canary: {row['canary']}")
    pixels = "" if source is None else _data_uri(source, row["index"])
    alt = f"{lines[0]}, given {given}, predicted {predicted}"
    return Picture(pixels, alt, given, lines, _sparkline(losses_EN[:, row["index"]]))


def _data_uri(source: ImageSource, index: int) -> str:
    """Return an image as a data URI: small ones as PNG, others scaled down as JPEG; empty where it cannot be read."""
    try:
        image = Image.fromarray(source.read(index).permute(1, 2, 0).numpy())
    except ImageReadError:
        return ""
    kind = "PNG" if max(image.size) <= 40 else "JPEG"
    image.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    image.save(data, kind, **({} if kind == "PNG" else {"quality": 80}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def _sparkline(loss_E: np.ndarray) -> str:
    """Return the points of a loss over epochs in a box of 100 by 24, 0 at the bottom."""
    known = ~np.isnan(loss_E)
    if known.sum() < 2:
        return ""
    x = np.linspace(2, 98, len(loss_E))[known]
    y = 22 - 20 * loss_E[known] / max(float(loss_E[known].max()), 1e-9)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def top_samples(facts: RunFacts, top: int = 1000) -> pa.Table:
    """Return the images of greatest class loss, for the page's files."""
    return rank_samples(facts.path, RankingQuery("class_loss", top)).table
