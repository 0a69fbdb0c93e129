"""Taps read what they say, and reading changes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.learning import ModelConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.learner.learner import build_heads, num_parameters
from rlpheads.engine.model.builder import build_model, tap_dims

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.*"))


def images(size: int = 8) -> torch.Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_logits_are_the_backbones_own(tiny):
    model = build_model(tiny, 10).eval()
    logits, taps = model(images())
    assert torch.equal(logits, model.backbone(images()))
    assert [tuple(tap.shape) for tap in taps] == [(3, 24), (3, 24)]


def test_taps_are_the_blocks_outputs(tiny):
    model = build_model(tiny, 10).eval()
    seen = []
    for block in model.backbone.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    _, taps = model(images())
    for tap, output in zip(taps, seen, strict=True):
        assert torch.equal(tap, output[:, 0])


def test_mean_pooling_leaves_the_class_token_out(tiny):
    model = build_model(replace(tiny, heads=replace(tiny.heads, pool="mean", taps=[-1])), 10).eval()
    seen = []
    model.backbone.blocks[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    _, (tap,) = model(images())
    torch.testing.assert_close(tap, seen[0][:, 1:].mean(1))


def test_weights_depend_on_the_seed_alone(tiny):
    torch.manual_seed(123)
    first = build_model(tiny, 10).state_dict()
    torch.rand(5)
    second = build_model(replace(tiny, heads=replace(tiny.heads, taps="none")), 10).state_dict()
    other = build_model(replace(tiny, seed=1), 10).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["backbone.pos_embed"], other["backbone.pos_embed"])


def test_token_pooling_needs_a_token(tiny):
    args = {**tiny.model.args, "class_token": False, "global_pool": "avg"}
    config = replace(tiny, model=replace(tiny.model, args=args))
    assert build_model(config, 10).pool == "mean"
    with pytest.raises(
        ValueError, match=r"heads\.pool=token, but VisionTransformer has no class token; use mean or auto"
    ):
        build_model(replace(config, heads=replace(tiny.heads, pool="token")), 10)


def test_wrong_image_size_is_named(tiny):
    with torch.device("meta"):
        model = build_model(tiny, 10)
    with pytest.raises(ValueError, match="does not take images of 16 x 16 pixels"):
        tap_dims(model, 16)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "size", "num_taps", "pool"),
    [
        ("vit_small_patch14_reg4_dinov2", 518, 12, "token"),
        ("deit_tiny_distilled_patch16_224", 224, 12, "token"),
        ("beit_base_patch16_224", 224, 12, "mean"),
        ("eva02_tiny_patch14_224", 224, 12, "mean"),
        ("cait_xxs24_224", 224, 24, "mean"),
        ("vit_relpos_small_patch16_224", 224, 12, "mean"),
        ("vit_base_patch16_siglip_224", 224, 12, "mean"),
        ("swin_tiny_patch4_window7_224", 224, 4, "mean"),
        ("convnext_tiny", 224, 4, "mean"),
    ],
)
def test_transformers_of_many_kinds_have_taps(name, size, num_taps, pool):
    with torch.device("meta"):
        model = build_model(Config(model=ModelConfig(name=name)), 10)
        dims = tap_dims(model, size)
    assert (len(dims), model.pool) == (num_taps, pool)


@pytest.mark.long
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_builds_on_the_meta_device(path, tmp_path):
    flags = ["--data.root", str(tmp_path)] if "imagenet" in path.name.lower() else []
    config = parse_config(["--config", str(path), *flags])
    with torch.device("meta"):
        model = build_model(config, 1000)
        dims = tap_dims(model, config.data.image_size)
        heads = build_heads(config, dims, "heads", config.heads.draws)
    assert len(dims) == len(model.taps) > 0
    assert num_parameters(heads) == sum((dim + 1) * config.heads.labels * config.heads.draws for dim in dims)
