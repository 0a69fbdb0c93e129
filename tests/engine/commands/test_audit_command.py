"""Features of a checkpoint at every place, and the audit of a finished run."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import layer_norm

from rlpheads.engine.cli import main
from rlpheads.engine.commands.audit_features import FeatureReader, FeatureStore, parse_places
from rlpheads.engine.commands.audit_run import AuditOptions, audit_labels, audit_run
from rlpheads.engine.config.data import DataConfig
from rlpheads.engine.config.learning import HeadsConfig, ModelConfig, OptimConfig, RegularizerConfig, ScheduleConfig
from rlpheads.engine.config.run import CheckpointConfig, EvalConfig, LedgerConfig, RunConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner.learner import build_heads
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.model.taps import Place
from rlpheads.engine.runs.checkpoint import read_manifest, weights_sha256
from rlpheads.engine.runs.opened_run import RunError, open_run
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training import job, loading
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.factory import make_loader
from rlpheads.memorization.baselines.head_only import least_squares_rla
from rlpheads.memorization.heads.head_losses import HeadTerms
from rlpheads.memorization.records.ledger_file import read_ledger

CPU = torch.device("cpu")


def small_config(folder: Path, name: str, *, epochs: int, joint: float = 0.0, draws: int = 2) -> Config:
    """Few images (179), so that a tiny network that is told to memorise can."""
    return Config(
        epochs=epochs,
        batch_size=32,
        device="cpu",
        log_every=1000,
        run=RunConfig(dir=str(folder), name=name),
        data=DataConfig(
            workers=0,
            val_fraction=0.9,
            image_size=8,
            hflip=0.0,
            crop_scale=(1.0, 1.0),
            crop_ratio=(1.0, 1.0),
            eval_crop_fraction=1.0,
        ),
        model=ModelConfig(args={"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}),
        optim=OptimConfig(lr=3e-3),
        schedule=ScheduleConfig(name="constant"),
        heads=HeadsConfig(labels=5, draws=draws, joint=joint, optim=OptimConfig(lr=1e-2, weight_decay=0.0)),
        eval=EvalConfig(every=1000, clean_every=1000),
        ledger=LedgerConfig(every=0),
        checkpoint=CheckpointConfig(every=2, keep=2),
    )


@pytest.fixture(scope="module")
def detached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 7 epochs with λ = 0, which keeps the ends of epochs 5 and 6."""
    config = small_config(tmp_path_factory.mktemp("runs"), "detached", epochs=7)
    assert job.run(config) == 0
    return Path(config.run.dir) / config.run.name


def model_and_images(config: Config):
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return build_model(config, 10).eval(), images


# Places


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
    ("spec", "said"),
    [
        ("2", "the nearest is 1"),
        ("0.attention", "nearest: 0.attn"),
        ("insde", "no place 'insde'"),
        ("0,,1", "no place ''"),
        ("1,1.mlp", "name one place twice, as 1 and as 1.mlp"),
    ],
)
def test_unknown_places_are_answered_with_the_nearest(tiny, spec, said):
    with pytest.raises(RunError, match=said):
        parse_places(spec, build_model(tiny, 10))


def test_a_run_without_taps_must_name_places(tiny):
    model = build_model(replace(tiny, heads=replace(tiny.heads, taps="none")), 10)
    with pytest.raises(RunError, match="heads.taps is none"):
        parse_places(None, model)
    assert parse_places("1", model) == (Place(1),)


def test_blocks_of_another_kind_are_not_looked_into(tiny):
    post_norm = replace(
        tiny, model=ModelConfig("vit_relpos_small_patch16_rpn_224", {**tiny.model.args, "drop_rate": 0})
    )
    with pytest.raises(RunError, match=r"inside a \w*Block the residual stream is not known; use 1"):
        parse_places("1.attn", build_model(post_norm, 10))
    convolutional = replace(tiny, model=ModelConfig("resnet10t", {}))
    with pytest.raises(RunError, match="not a stack of transformer blocks; use 0"):
        parse_places("0.attn", build_model(convolutional, 10))


# Features


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
    features = FeatureReader(model, parse_places("inside", model), norm=True)(images)
    for place_BD, tokens_BLD in zip(features, expected, strict=True):
        pooled_BD = tokens_BLD[:, 0] if pool == "token" else tokens_BLD[:, 1:].mean(1)
        torch.testing.assert_close(place_BD, layer_norm(pooled_BD, (24,)), atol=1e-5, rtol=1e-5)


def test_features_of_blocks_are_what_the_runs_heads_read(tiny):
    model, images = model_and_images(tiny)
    raw = FeatureReader(model, parse_places("all", model), norm=False)(images)
    after_mlp = FeatureReader(model, parse_places("0.mlp,1.mlp", model), norm=False)(images)
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
def test_tables_are_in_canonical_order_whatever_the_batch_and_wherever_they_lie(tiny, batch_size, in_memory_bytes):
    config = replace(tiny, eval=replace(tiny.eval, batch_size=batch_size))
    model = build_model(config, 10).eval()
    source = open_sources(config).heldout
    reader = FeatureReader(model, parse_places("0,1.attn", model), norm=True)
    with FeatureStore(config, reader, CPU, in_memory_bytes) as store:
        tables = store.read(source)
        normalize = Normalize(config.data.mean, config.data.std)
        every = torch.stack([source.read(index) for index in range(source.manifest.num_samples)])
        for table, features_ND in zip(tables, reader(normalize(every)), strict=True):
            torch.testing.assert_close(torch.cat(list(table)), features_ND, atol=1e-5, rtol=1e-5)


def test_large_tables_are_files_that_go_away(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = build_model(tiny, 10).eval()
    reader = FeatureReader(model, parse_places("all", model), norm=True)
    with FeatureStore(tiny, reader, CPU, in_memory_bytes=0) as store:
        store.read(open_sources(tiny).heldout)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert [path.stat().st_size for path in files] == [4 * 360 * 24] * 2
    assert not list(tmp_path.iterdir())


def test_the_audit_reads_through_the_loader_of_the_runs_own_evaluations(tiny, monkeypatch):
    """With the setting's cap on workers too: none beyond the cores that this process may use."""
    made = []

    def noting(*arguments, options, **others):
        made.append(options)
        return make_loader(*arguments, options=options, **others)

    monkeypatch.setattr(loading, "make_loader", noting)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    config = replace(tiny, data=replace(tiny.data, workers=64))
    model = build_model(config, 10).eval()
    with FeatureStore(config, FeatureReader(model, parse_places("0", model), norm=True), CPU) as store:
        store.read(open_sources(config).heldout)
    assert [options.num_workers for options in made] == [1]


# Runs


def test_a_run_opens_at_its_newest_and_at_a_kept_epoch(detached):
    newest, earlier = open_run(detached), open_run(detached, epoch=5)
    assert (newest.saved.epoch, earlier.saved.epoch) == (6, 5)
    assert newest.saved.step > earlier.saved.step
    weights = [run.load_model().state_dict()["backbone.pos_embed"] for run in (newest, earlier)]
    assert not torch.equal(*weights)


def test_the_model_has_the_weights_of_the_checkpoint(detached):
    status = json.loads((detached / "status.json").read_text())
    assert weights_sha256(open_run(detached).load_model()) == status["weights_sha256"]["backbone"]


def test_an_audit_leaves_them_out(spoiled, tmp_path):
    """All is as if they were not there: features, the run's own labels and fresh ones all belong to the other images."""
    assert job.run(replace(spoiled, run=replace(spoiled.run, dir=str(tmp_path), name="spoiled"))) == 0
    found = audit_run(open_run(tmp_path / "spoiled"), AuditOptions(device="cpu"))
    assert (found.num_train, found.num_equal, found.num_skipped) == (23, 7, 2)
    assert all(0 <= tap.found.own_M[0] * 23 <= 23 and (tap.found.own_M[0] * 23) % 1 < 1e-6 for tap in found.taps)


def test_an_audit_tells_the_factor_that_its_checkpoint_was_steered_to(tmp_path):
    config = small_config(tmp_path, "steered", epochs=2)
    steered = RegularizerConfig(kind="uniform", factor=0.5, target=0.0)
    assert job.run(replace(config, regularizer=steered, eval=EvalConfig(every=1000, clean_every=1))) == 0
    opened = open_run(tmp_path / "steered")
    rows = opened.folder.metrics("epoch")
    audit = audit_run(opened, AuditOptions(draws=4, device="cpu"))
    assert rows[0]["regularizer_factor"] == 0.5
    assert audit.regularizer_factor == read_manifest(opened.saved.path)["regularizer_factor"]
    assert audit.regularizer_factor not in [row["regularizer_factor"] for row in rows]  # the last pass moved it again


def test_features_and_own_labels_reproduce_the_runs_own_ledger(detached):
    """The run's saved heads, on what the audit reads and on the labels that it takes for the run's own."""
    run = open_run(detached)
    model = run.load_model()
    with FeatureStore(run.config, FeatureReader(model, parse_places(None, model), norm=False), CPU) as store:
        tables = store.read(run.sources.train)
    taps, everyone = [table.table_ND for table in tables], tables[0].is_read_N
    heads = build_heads(run.config, (24, 24), "heads", run.config.heads.draws)
    run.load_weights("heads", heads)
    losses = heads(taps, audit_labels(run, 4, everyone, everyone).own_MN, HeadTerms())
    ledger = read_ledger(detached / "ledger" / "epoch=0006" / "clean.parquet")
    torch.testing.assert_close(losses.bits_TMB.detach(), torch.tensor(ledger.bits[:, :2]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epoch", "3"], "no checkpoint of the end of epoch 3; kept are the ends of epochs: 5, 6"),
        (["--taps", "0.atn"], "nearest: 0.attn"),
        (["--probe", "logistics"], "allowed: least_squares, logistic, two_layer; nearest: logistic"),
        (["--draws", "3"], "--draws is 3; intervals across draws need at least 4"),
        (["--level", "95"], "--level is 95.0; it must lie strictly between 0 and 1"),
        (["--hidden", "9"], "--hidden goes with --probe two_layer"),
        (["--probe", "two_layer", "--hidden", "0"], "--hidden is 0; it must be at least 1"),
        (["--root", "elsewhere"], "root must be left out"),
    ],
)
def test_mistakes_are_answered_in_one_line(detached, arguments, said, capsys):
    assert main(["audit", str(detached), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_folders_that_are_no_run(detached, tmp_path, capsys):
    assert main(["audit", str(detached.with_name("detatched"))]) == 2
    assert f"nearest: {detached}" in capsys.readouterr().err
    assert main(["audit", str(detached.parent)]) == 2
    assert "the folder holds these runs: detached" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text((detached / "config.yaml").read_text())
    assert main(["audit", str(tmp_path)]) == 2
    assert "has no whole checkpoint" in capsys.readouterr().err


def test_other_images_are_refused(detached, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(detached, copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("val_fraction: 0.9", "val_fraction: 0.8"))
    with pytest.raises(RunError, match="the train images are not those of the checkpoint"):
        open_run(copy)


def test_a_damaged_checkpoint_is_refused(detached, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(detached, copy)
    (shard, *_) = sorted(copy.glob("checkpoints/*"))[-1].glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["audit", str(copy)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_detached_features_hold_nothing_about_the_labels(detached):
    """λ = 0: the backbone never saw them, so that own labels are just further fresh labels."""
    audit = audit_run(open_run(detached), AuditOptions(taps="inside", level=0.999))
    for tap in audit.taps:
        assert abs(tap.found.label_excess.value) < tap.found.label_excess.luck
        assert tap.control.all_rows == least_squares_rla(5, 179 / 24)
        assert tap.found.rank == 23
    assert (audit.num_train, audit.num_equal, audit.num_own_draws) == (179, 179, 2)


def test_a_network_that_memorises_is_found_out(tmp_path):
    config = small_config(tmp_path, "joint", epochs=50, joint=1.0, draws=1)
    assert job.run(config) == 0
    audit = audit_run(open_run(tmp_path / "joint"), AuditOptions(level=0.99))
    last = audit.taps[-1].found
    assert last.label_excess.is_positive
    assert last.label_excess.value > 0.2


@pytest.mark.parametrize("probe", ["least_squares", "logistic", "two_layer"])
def test_the_command_prints_a_table_of_what_it_writes(detached, probe, capsys):
    arguments = ["--taps", "1.attn", "--probe", probe, "--draws", "4", "--epoch", "5"]
    arguments += ["--hidden", "2"] if probe == "two_layer" else []
    assert main(["audit", str(detached), *arguments]) == 0
    table = capsys.readouterr().out
    (path,) = (detached / "audit").glob(f"*_{probe}.json")
    assert f"written: {path}" in table
    written = json.loads(path.read_text())
    assert (written["epoch"], written["num_labels"], written["num_fresh_draws"]) == (5, 5, 4)
    (tap,) = written["taps"]
    assert tap["tap"] == "1.attn"
    found = tap["found"]
    for accuracies in (found["own_M"], found["fresh_F"], found["members_F"], found["heldout_F"]):
        assert f"{100 * sum(accuracies) / len(accuracies):.2f}%" in table
    for excess in (found["label_excess"], found["membership_excess"]):
        assert f"{100 * excess['value']:+.2f} ± {50 * (excess['high'] - excess['low']):.2f}" in table


def test_an_audit_as_json_is_the_file_and_the_same_again(detached, capsys):
    printed = []
    for _ in range(2):
        assert main(["audit", str(detached), "--taps", "0,1.attn", "--json"]) == 0
        printed.append(capsys.readouterr().out)
    (path,) = (detached / "audit").glob(f"{open_run(detached).saved.path.name}_least_squares.json")
    assert printed[0] == printed[1] == path.read_text()
    assert [tap["tap"] for tap in json.loads(printed[0])["taps"]] == ["0", "1.attn"]


def test_a_probe_that_fits_everything_says_so(detached, capsys):
    arguments = ["audit", str(detached), "--taps", "1", "--draws", "4", "--probe", "two_layer"]
    assert main([*arguments, "--hidden", "64"]) == 0
    assert "it can show no excess" in capsys.readouterr().out
    assert main(arguments[:-2]) == 0
    assert "it can show no excess" not in capsys.readouterr().out
