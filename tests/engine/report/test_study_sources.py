"""Variance of a study's figures by source of chance."""

import io
import math

import pytest
import torch
from rich.console import Console

from rlpheads.engine.report.study_sources import spread_by_source, spread_table


def test_sources_that_act_independently_add_up_to_all_together():
    """Weights have a standard deviation of 3, labels of 4, and nothing interacts: all together 5."""
    generator = torch.Generator().manual_seed(0)
    weights_S, labels_S = 3 * torch.randn(20000, generator=generator), 4 * torch.randn(20000, generator=generator)
    values = {"all": weights_S + labels_S, "weights": weights_S, "labels": labels_S}
    by_source = {
        source: {"arm": {seed: {"top1": float(value)} for seed, value in enumerate(each)}}
        for source, each in values.items()
    }
    found = spread_by_source(by_source)["arm"]
    assert [found[source]["top1"].value for source in values] == pytest.approx([5, 3, 4], rel=0.02)
    for source, true in zip(values, (5, 3, 4), strict=True):
        assert found[source]["top1"].low < true < found[source]["top1"].high


def test_the_table_leaves_out_what_some_runs_lack():
    runs = {0: {"top1": 0.90, "noise_auc": 0.8}, 1: {"top1": 0.92}, 2: {"top1": math.nan}}
    by_source = {"weights": {"arm": {0: runs[0], 1: runs[1]}}, "order": {"arm": {0: runs[1], 2: runs[2]}}}
    found = spread_by_source(by_source)
    assert found["arm"]["weights"].keys() == {"top1"}
    assert found["arm"]["order"] == {}
    console = Console(width=200, file=io.StringIO())
    console.print(spread_table(found, {"top1": "held-out top-1"}, lambda _: lambda x: f"{100 * x:.2f}"))
    text = console.file.getvalue()
    assert "1.41 [0.63, 45.13]" in text  # .01·√2, and χ² with one degree of freedom
    assert "–" in text


def test_one_source_has_no_table():
    assert spread_by_source({"all": {"arm": {0: {"top1": 0.9}, 1: {"top1": 0.8}}}}) == {}
