"""Weights from a local file: every format that timm writes, and a clear word for whatever does not fit."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from strangers_files import Command

from rlpheads.engine.checks.checks import check_config
from rlpheads.engine.config.command_line import ConfigError, parse_config
from rlpheads.engine.model.initial_weights import WeightsError, load_weights, read_weights_file

PREPARED = ("--data.mean", "[0.5, 0.5, 0.5]", "--data.std", "[0.5, 0.5, 0.5]", "--data.interpolation", "bicubic")
"""As the published weights of this name were trained."""

ARGS = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
SYNTHETIC = ("--data.dataset", "synthetic")  # in the place of CIFAR-100, which is read where no file is named
DIGITS = str(Path(__file__).parents[3] / "configs" / "digits_vit.yaml")


def network(num_classes: int = 10, seed: int = 0, **changes):
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **{**ARGS, **changes})


def written(path: Path, state) -> str:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return str(path)


def loaded(model, file: str) -> str:
    return load_weights(model, read_weights_file(Path(file)))


def same(one, other) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("plain.safetensors", lambda state: state),
        ("plain.pth", lambda state: state),
        ("timm.pth.tar", lambda state: {"epoch": 3, "arch": "vit", "state_dict": state}),
        ("ema.pt", lambda state: {"state_dict": {}, "state_dict_ema": state}),
        ("ddp.bin", lambda state: {f"module.{name}": tensor for name, tensor in state.items()}),
        ("ours.safetensors", lambda state: {f"backbone.{name}": tensor for name, tensor in state.items()}),
    ],
)
def test_every_format_loads(tmp_path, name, wrap):
    given, model = network(seed=1), network(seed=2)
    assert loaded(model, written(tmp_path / name, wrap(given.state_dict()))) == f"weights from {tmp_path / name}"
    assert same(given, model)


def test_a_classifier_for_other_classes_is_drawn_afresh_and_said_to_be(tmp_path):
    file = written(tmp_path / "w.pth", network(num_classes=1000, seed=1).state_dict())
    model = network(seed=2)
    drawn = model.head.weight.clone()
    assert "head drawn afresh" in loaded(model, file)
    assert torch.equal(model.head.weight, drawn)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, network(num_classes=1000, seed=1).blocks[1].mlp.fc1.weight)


def test_position_embeddings_of_another_image_size_are_resized(tmp_path):
    file = written(tmp_path / "w.pth", network(seed=1, img_size=16).state_dict())
    model = network(seed=2)
    loaded(model, file)
    assert torch.equal(model.patch_embed.proj.weight, network(seed=1, img_size=16).patch_embed.proj.weight)
    assert model.pos_embed.shape == (1, 5, 24)


@pytest.mark.wrong("checkpoint")
def test_other_networks_are_refused_with_what_differs(tmp_path):
    deeper = written(tmp_path / "deeper.pth", network(depth=3).state_dict())
    with pytest.raises(WeightsError, match=r"12 of its tensors are unknown here \(blocks\.2\.norm1\.weight, .*, …\)"):
        loaded(network(), deeper)
    shallow = written(tmp_path / "shallow.pth", network(depth=1).state_dict())
    with pytest.raises(WeightsError, match="12 of 32 tensors are not in it"):
        loaded(network(), shallow)
    wider = written(tmp_path / "wider.pth", network(embed_dim=48).state_dict())
    with pytest.raises(
        WeightsError, match=r"have another shape \(cls_token is \(1, 1, 48\) in it and \(1, 1, 24\) here"
    ):
        loaded(network(), wider)


def test_a_refused_file_leaves_the_model_as_it_was(tmp_path):
    model = network(seed=2)
    with pytest.raises(WeightsError):
        loaded(model, written(tmp_path / "deeper.pth", network(depth=3).state_dict()))
    assert same(network(seed=2), model)


def complaint(*flags: str, base: tuple[str, ...] = ("--config", DIGITS)) -> str:
    config = parse_config([*base, "--device", "cpu", *flags])
    with pytest.raises(ConfigError) as caught:
        check_config(config, 1)
    return str(caught.value)


@pytest.mark.long
@pytest.mark.wrong("checkpoint")
def test_files_that_are_none_are_named_before_anything_is_built(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"not a pickle")
    (tmp_path / "cut.safetensors").write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "weights.npz").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    torch.save({"args": Path("x"), "state_dict": {}}, tmp_path / "pickle.pth")
    (tmp_path / "begun" / "checkpoints" / "step=000000040").mkdir(parents=True)
    (tmp_path / "begun" / "config.yaml").touch()
    messages = {
        "wieghts.pth": f"no such file; nearest: {tmp_path / 'weights.pth'}",
        "weights.pth": "cannot be read: ",
        "cut.safetensors": "cannot be read: ",
        "weights.npz": "cannot be read; allowed: a file of tensors that ends in .safetensors, .pth",
        "list.pth": "holds no mapping of names to tensors",
        "number.pth": "holds no mapping of names to tensors",
        "pickle.pth": "cannot be read: weights_only=True blocked loading",
        ".": "is a folder, and neither a run's nor a checkpoint's; allowed: a run folder, one of its checkpoints",
        "begun": "is a run that has saved nothing yet: neither weights/ nor a whole checkpoint is in it",
        "begun/checkpoints/step=000000040": "is a checkpoint without manifest.json, which is written last: it was never",
    }
    for name, message in messages.items():
        said = complaint("--model.checkpoint", str(tmp_path / name))
        assert said.startswith("model.checkpoint: "), name
        assert message in said, name


@pytest.mark.wrong("checkpoint")
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".tar", ".safetensors"])
def test_weights_that_run_a_command_are_refused(tmp_path, suffix):
    file, touched = tmp_path / f"weights{suffix}", tmp_path / "touched"
    for old in (False, True):  # torch's archive, and the bare pickle that older versions wrote
        torch.save({"state_dict": {"x": Command(touched)}}, file, _use_new_zipfile_serialization=not old)
        with pytest.raises(WeightsError, match="cannot be read: "):
            loaded(network(), str(file))
    file.write_bytes(pickle.dumps(Command(touched)))
    with pytest.raises(WeightsError, match="cannot be read: "):
        loaded(network(), str(file))
    assert not touched.exists()


@pytest.mark.wrong("checkpoint")
def test_published_weights_that_cannot_be_had_are_told_with_the_remedy():
    """The tests run without a network, as the machines do for which local files are meant."""
    said = complaint("--model.pretrained", "--model.name", "vit_tiny_patch16_224", *PREPARED)
    assert said.endswith("--model.checkpoint FILE")
    assert "timm publishes no weights for wrn_16_4" in complaint("--model.pretrained", *SYNTHETIC, base=())
    twice = complaint("--model.pretrained", "--model.checkpoint", "x.pth")
    assert twice == "model.checkpoint: got a file, and model.pretrained too; allowed: one of the two"
    assert complaint("--model.args.pretrained", "true") == (
        "model.args: got pretrained; weights to start from are given by model.pretrained or model.checkpoint"
    )


@pytest.mark.wrong("checkpoint")
def test_published_weights_that_were_trained_on_other_numbers_are_refused():
    flags = ("--model.pretrained", "--model.name", "vit_tiny_patch16_224")
    std = ("--data.std", "[0.5, 0.5, 0.5]")
    bicubic = ("--data.interpolation", "bicubic")
    assert complaint(*flags, "--data.mean", "[0.485, 0.456, 0.406]", *std, *bicubic) == (
        "model.pretrained: the weights of vit_tiny_patch16_224 were trained with data.mean [0.5, 0.5, 0.5], but the run has "
        'data.mean [0.485, 0.456, 0.406]; give --data.mean "[0.5, 0.5, 0.5]"'
    )
    crop = ("--data.image_size", "224", "--data.eval_crop_fraction", "0.5")
    said = complaint(*SYNTHETIC, *flags, *PREPARED, *crop, base=())
    assert "data.eval_crop_fraction 0.9, but the run has data.eval_crop_fraction 0.5; give --data.eval_" in said
    crop = (*crop[:3], "0.9", "--data.interpolation", "bilinear")
    said = complaint(*SYNTHETIC, *flags, *PREPARED, *crop, base=())
    assert said == (
        "model.pretrained: the weights of vit_tiny_patch16_224 were trained with data.interpolation bicubic, but the run has "
        'data.interpolation bilinear; give --data.interpolation "bicubic"'
    )


def test_a_frozen_network_is_measured_and_never_changes(tiny, build, tmp_path):
    """Its heads learn; not even the statistics of batch norm, or dropout, move with it."""
    file = written(tmp_path / "w.safetensors", network(seed=1).state_dict())
    model = replace(tiny.model, checkpoint=file, frozen=True)
    training = build(replace(tiny, model=model))
    training.learner.train()
    heads = {name: tensor.clone() for name, tensor in training.learner.heads.module.state_dict().items()}
    batches = iter(training.splits.trained.loader)
    for step in range(3):
        training.step(training.preparation.for_evaluation(next(batches)), step, training.term_weights)
    backbone = training.learner.tapped.backbone
    assert same(network(seed=1), backbone)
    assert not backbone.training
    assert all(
        not torch.equal(heads[name], tensor) for name, tensor in training.learner.heads.module.state_dict().items()
    )
    assert "backbone" in training.learner.state()
    assert "backbone_optimizer" not in training.learner.state()


@pytest.mark.wrong("config")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--heads.taps", "none"],
            "model.frozen: got true, and heads.taps is none; allowed: heads, or there is nothing",
        ),
        (["--regularizer.factor", "1"], "regularizer.factor: got 1.0; allowed: 0 while model.frozen"),
        (["--heads.joint", "1"], "heads.joint: got 1.0; allowed: 0 while model.frozen"),
        (["--model.ema_decay", "0.9"], "model.ema_decay: got 0.9; allowed: null while model.frozen"),
    ],
)
def test_what_a_frozen_network_leaves_nothing_to_do_for_is_refused(flags, message):
    assert complaint("--model.frozen", *flags).startswith(message)
