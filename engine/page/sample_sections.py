"""Sections on single images: pictures at both ends of the rankings, and the dataset map."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from rlpheads.engine.page.blocks import Block, Drawing, Gallery, Picture, Section, Text
from rlpheads.engine.page.facts import RunFacts
from rlpheads.engine.report.display import percent
from rlpheads.engine.runs.opened_run import RunError, open_images, read_run
from rlpheads.engine.tables.rankings import MEASURES, RankingQuery
from rlpheads.engine.tables.sample_table import list_ledgers
from rlpheads.loaders.contract.errors import ImageReadError
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.memorization.figures.class_figures import draw_dataset_map
from rlpheads.memorization.figures.figure_file import inline_svg
from rlpheads.memorization.measures.sample_dynamics import dataset_map
from rlpheads.memorization.records.ledger_file import read_ledger_metadata, read_sample_hits

RANKINGS = (
    ("class_loss", False, "Greatest class loss"),
    ("class_loss", True, "Least class loss"),
    ("first_learned", False, "Learned last"),
    ("forgetting_events", False, "Forgotten most often"),
    ("bits", False, "Most bits about the random label"),
)
NUM_PICTURES = 24
_SIDE = 96
_MOST_POINTS = 30
"""Of a sparkline; of more epochs every so many are taken."""
_GROUPS = {"own": "label", "audit": "audit label"}
"""What hits of the heads' own and of audit heads are called."""


def pictures_section(facts: RunFacts) -> Section:
    """Pictures at the ends of each ranking that is resolved; a line for each that is not."""
    if facts.anonymous or not list_ledgers(facts.path, "running"):
        return Section("pictures", "Pictures", [])
    source = _source(facts)
    blocks: list[Block] = []
    if source is None:
        blocks.append(
            Text(
                "The images cannot be opened from here, so that names stand alone; --root FOLDER says where they are, and "
                "--plugins imports what opens a plug-in's.",
                "note",
            )
        )
    for by, least, title in RANKINGS:
        if by not in MEASURES or (by == "bits" and not facts.taps):
            continue
        phase = "clean" if by == "bits" and facts.rankers["clean"] is not None else "running"
        ranker = facts.rankers[phase]
        assert ranker is not None
        ranking = ranker.rank(RankingQuery(by, NUM_PICTURES, least, phase))
        note = f"{phase} ledgers; {ranking.reliability.describe()}."
        if not ranking.reliability.is_resolvable:
            blocks.append(Text(f"{title}: {ranking.reliability.describe()}.", "note"))
            continue
        blocks.append(Gallery(title, note, _pictures(facts, ranking.table, by, source)))
    if facts.taps:
        blocks.append(Text(_hits_in_words(facts), "note"))
    return Section("pictures", "Pictures", blocks)


def _pictures(facts: RunFacts, table: pa.Table, by: str, source: ImageSource | None) -> list[Picture]:
    index_S = table.column("index").to_numpy()
    hits = _label_hits(facts, index_S)
    rows = table.to_pylist()
    losses_SE = _losses(facts)[:, index_S].T
    return [_picture(row, by, source, loss_E, each) for row, loss_E, each in zip(rows, losses_SE, hits, strict=True)]


def _label_hits(facts: RunFacts, index_S: NDArray[np.int64]) -> list[list[str]]:
    """Return for each sample a line for the heads' own draws and one for the audit heads': hits at each tap."""
    path = _hit_ledger(facts)
    if not facts.taps:
        return [[] for _ in index_S]
    draws = read_ledger_metadata(path).draws
    hits_STM = read_sample_hits(path, index_S)
    return [
        [
            f"{_GROUPS[group]} hits of {hits_TM[:, chosen].shape[1]}:\n{' '.join(map(str, hits_TM[:, chosen].sum(1)))}"
            for group, chosen in draws.items()
        ]
        for hits_TM in hits_STM
    ]


def _hit_ledger(facts: RunFacts) -> Path:
    """Return the ledger that hits are counted in: the last of a clean pass, where there is one."""
    return (list_ledgers(facts.path, "clean") or list_ledgers(facts.path, "running"))[-1]


def _hits_in_words(facts: RunFacts) -> str:
    phase = "clean pass" if facts.rankers["clean"] is not None else "epoch"
    return (
        f"Label hits: how many draws of the image's random labels its heads predict at each tap ({', '.join(facts.taps)}), in "
        f"the last {phase}; a guess hits one in {facts.num_labels:,}."
    )


def dataset_map_section(facts: RunFacts) -> Section:
    """The dataset map of the training images."""
    ranker = facts.rankers["running"]
    if ranker is None or len(ranker.history.epochs) < 2:
        return Section(
            "map", "Dataset map", [Text("A dataset map needs two running ledgers or more (ledger.every).", "note")]
        )
    hit_EN, loss_EN = ranker.filled
    found = dataset_map(loss_EN, hit_EN)
    caption = (
        f"Dataset map of {len(found.confidence_N):,} training images over {len(hit_EN)} ledgers: top left are learned early, "
        "bottom left are never learned, the right are ambiguous (Swayamdipta et al., 2020)."
    )
    figure = draw_dataset_map(found.confidence_N.numpy(), found.variability_N.numpy())
    return Section("map", "Dataset map", [Drawing(inline_svg(figure, f"map-{facts.name_key}", caption), caption)])


def _source(facts: RunFacts) -> ImageSource | None:
    """Return the training images; None where they are not there, or are others."""
    try:
        return open_images(read_run(facts.path, root=facts.root, plugins=facts.plugins)).train
    except (RunError, ValueError, OSError):
        if facts.root is not None or facts.plugins:
            raise
        return None


def _losses(facts: RunFacts) -> NDArray[np.float32]:
    """Return the class losses of some epochs for sparklines, (E, N), NaN where not seen."""
    ranker = facts.rankers["running"]
    assert ranker is not None
    losses_EN = ranker.history.class_loss_EN.numpy()
    step = -(-len(losses_EN) // _MOST_POINTS)
    return losses_EN[::-1][::step][::-1]


def _picture(
    row: dict[str, Any], by: str, source: ImageSource | None, loss_E: NDArray[np.float32], hits: Sequence[str]
) -> Picture:
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
    lines += hits
    if row["canary"]:
        lines.append(f"canary: {row['canary']}")
    pixels = "" if source is None else _data_uri(source, row["index"])
    alt = f"{lines[0]}, given {given}, predicted {predicted}"
    return Picture(pixels, alt, given, lines, _sparkline(loss_E))


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


def _sparkline(loss_E: NDArray[np.float32]) -> str:
    """Return the points of a loss over epochs in a box of 100 by 24, 0 at the bottom."""
    known = ~np.isnan(loss_E)
    if known.sum() < 2:
        return ""
    x = np.linspace(2, 98, len(loss_E))[known]
    y = 22 - 20 * loss_E[known] / max(float(loss_E[known].max()), 1e-9)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def top_samples(facts: RunFacts, top: int = 1000) -> pa.Table | None:
    """Return the images of greatest class loss, for the page's files; None without ledgers."""
    ranker = facts.rankers["running"]
    return None if ranker is None else ranker.rank(RankingQuery("class_loss", top)).table
