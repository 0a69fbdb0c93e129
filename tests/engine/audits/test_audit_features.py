"""Features of a checkpoint at every place: what is read, in which order, and through which loader."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import layer_norm

from rlpheads.engine.audits.audit_features import FeatureReader, FeatureStore, parse_places
from rlpheads.engine.config.learning import ModelConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.model.taps import Place
from rlpheads.engine.runs.opened_run import RunError
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training import loading
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.factory import make_loader

CPU = torch.device("cpu")


def model_and_images(config: Config):
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return build_model(config, 10).eval(), images


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (None, ["0", "1"]),
        ("all", ["0", "1"]),
        ("inside", ["0.attn", "0.mlp", "1.attn", "1.mlp"]),
        ("-1,0.attn", ["0.attn", "1"]),
        ("1, 1.attn", ["1.attn", "1"]),
        ("-2.mlp", ["0.mlp"]),
    ],
)
def test_places_are_read_in_the_order_of_depth(tiny, spec, names):
    assert list(map(str, parse_places(spec, build_model(tiny, 10)))) == names


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("2", "the nearest is 1"),
        ("0.attention", "nearest: 0.attn"),
        ("insde", "no place 'insde'"),
        ("0,,1", "no place ''"),
        ("1,1.mlp", "name one place twice, as 1 and as 1.mlp"),
    ],
)
def test_unknown_places_are_answered_with_the_nearest(tiny, spec, message):
    with pytest.raises(RunError, match=message):
        parse_places(spec, build_model(tiny, 10))


def test_a_run_without_taps_must_name_places(tiny):
    model = build_model(replace(tiny, heads=replace(tiny.heads, taps="none")), 10)
    with pytest.raises(RunError, match="heads.taps is none"):
        parse_places(None, model)
    assert parse_places("1", model) == (Place(1),)


def test_places_inside_other_kinds_of_blocks_are_refused(tiny):
    post_norm = replace(
        tiny, model=ModelConfig("vit_relpos_small_patch16_rpn_224", {**tiny.model.args, "drop_rate": 0})
    )
    with pytest.raises(RunError, match=r"inside a \w*Block the residual stream is not known; use 1"):
        parse_places("1.attn", build_model(post_norm, 10))
    convolutional = replace(tiny, model=ModelConfig("resnet10t", {}))
    with pytest.raises(RunError, match="not a stack of transformer blocks; use 0"):
        parse_places("0.attn", build_model(convolutional, 10))


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_features_are_the_residual_stream_pooled_and_normalised(tiny, pool):
    """The stream is rebuilt from the blocks' own parts."""
    config = replace(tiny, heads=replace(tiny.heads, pool=pool))
    model, images = model_and_images(config)
    backbone = model.backbone
    stream = backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(backbone.patch_embed(images))))
    expected = []
    for block in backbone.blocks:
        stream = stream + block.attn(block.norm1(stream))
        expected.append(stream)
        stream = stream + block.mlp(block.norm2(stream))
        expected.append(stream)
    features = FeatureReader(model, parse_places("inside", model), norm=True)(images).features
    for place_BD, tokens_BLD in zip(features, expected, strict=True):
        pooled_BD = tokens_BLD[:, 0] if pool == "token" else tokens_BLD[:, 1:].mean(1)
        torch.testing.assert_close(place_BD, layer_norm(pooled_BD, (24,)), atol=1e-5, rtol=1e-5)


def test_features_of_blocks_are_what_the_runs_heads_read(tiny):
    model, images = model_and_images(tiny)
    raw = FeatureReader(model, parse_places("all", model), norm=False)(images).features
    after_mlp = FeatureReader(model, parse_places("0.mlp,1.mlp", model), norm=False)(images).features
    for features, same, tap in zip(raw, after_mlp, model(images)[1], strict=True):
        assert torch.equal(features, tap)
        assert torch.equal(same, tap)


def test_reading_leaves_no_hooks_and_does_not_change_the_logits(tiny):
    model, images = model_and_images(tiny)
    before = model(images)[0]
    FeatureReader(model, parse_places("inside", model), norm=True)(images)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert torch.equal(model(images)[0], before)


@pytest.mark.parametrize("batch_size", [None, 50])
@pytest.mark.parametrize("in_memory_bytes", [0, 2**30])
def test_tables_are_in_canonical_order_whatever_the_batch_and_in_memory_or_in_a_file(tiny, batch_size, in_memory_bytes):
    config = replace(tiny, eval=replace(tiny.eval, batch_size=batch_size))
    model = build_model(config, 10).eval()
    source = open_sources(config).heldout
    reader = FeatureReader(model, parse_places("0,1.attn", model), norm=True)
    with FeatureStore(config, reader, CPU, in_memory_bytes) as store:
        tables = store.read(source).tables
        normalize = Normalize(config.data.mean, config.data.std)
        every = torch.stack([source.read(index) for index in range(source.manifest.num_samples)])
        for table, features_ND in zip(tables, reader(normalize(every)).features, strict=True):
            torch.testing.assert_close(torch.cat(list(table)), features_ND, atol=1e-5, rtol=1e-5)


def test_large_tables_are_files_that_nothing_leaves_behind(tiny, tmp_path, monkeypatch):
    """Not even a signal: they have no name while they are used."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = build_model(tiny, 10).eval()
    reader = FeatureReader(model, parse_places("all", model), norm=True)
    with FeatureStore(tiny, reader, CPU, in_memory_bytes=0) as store:
        tables = store.read(open_sources(tiny).heldout).tables
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
        assert len(mapped) == len(tables) == 2
        assert all(line.endswith("(deleted)") for line in mapped)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list(tmp_path.iterdir())


def test_the_audit_reads_through_the_loader_of_the_runs_own_evaluations(tiny, monkeypatch):
    """With the setting's cap on workers too: none beyond the cores that this process may use."""
    made = []

    def recording(*arguments, options, **others):
        made.append(options)
        return make_loader(*arguments, options=options, **others)

    monkeypatch.setattr(loading, "make_loader", recording)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    config = replace(tiny, data=replace(tiny.data, workers=64))
    model = build_model(config, 10).eval()
    with FeatureStore(config, FeatureReader(model, parse_places("0", model), norm=True), CPU) as store:
        store.read(open_sources(config).heldout)
    assert [options.num_workers for options in made] == [1]
