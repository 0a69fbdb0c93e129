"""Places of every kind: what is read is what the network computed there, and reading changes nothing."""

import copy
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from rlpheads.engine.config.data import DataConfig
from rlpheads.engine.config.learning import ModelConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.model.builder import build_model, tap_dims
from rlpheads.engine.model.pooling import pool_tokens
from rlpheads.engine.model.tapped_model import TappedModel, layout_of
from rlpheads.engine.model.taps import select_places

INSIDE_OUT = {"img_size": 32, "patch_size": 16, "depth": 2}


def tapped(name: str, taps, size: int = 32, **args) -> TappedModel:
    config = Config(model=ModelConfig(name=name, args=args), data=DataConfig(image_size=size))
    return build_model(replace(config, heads=replace(config.heads, taps=taps)), 10).eval()


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", INSIDE_OUT),
        ("beit_base_patch16_224", {**INSIDE_OUT, "embed_dim": 48, "num_heads": 3}),
        ("cait_xxs24_224", INSIDE_OUT),
        ("eva02_tiny_patch14_224", {**INSIDE_OUT, "img_size": 28, "patch_size": 14}),
        ("convit_tiny", {"depth": 2}),
        ("vit_relpos_small_patch16_224", {**INSIDE_OUT, "embed_dim": 48, "num_heads": 3, "init_values": 0.5}),
    ],
)
def test_after_attention_is_the_residual_stream(name, args):
    """With an MLP that adds nothing, a block's output is its stream after attention; and not so otherwise."""
    size = args.get("img_size", 224)
    model = tapped(name, ["0.attn", 0], size, **args)
    _, (stream, output) = model(images(size))
    assert (stream - output).abs().max() > 1e-6
    nn.init.zeros_(model.backbone.blocks[0].mlp.fc2.weight)
    nn.init.zeros_(model.backbone.blocks[0].mlp.fc2.bias)
    _, (stream, output) = model(images(size))
    assert torch.equal(stream, output)


def test_modules_of_a_convolutional_network_are_read_by_name_beside_its_stages():
    model = tapped("resnet10t", ["layer2.0.conv1", 1, "layer3", -1])
    assert model.taps == (1, "layer2.0.conv1", "layer3", 4)
    seen = {}
    for name in ("layer1", "layer2.0.conv1", "layer3", "layer4"):
        module = model.backbone.get_submodule(name)
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output}))
    logits, taps = model(images())
    for tap, output in zip(taps, seen.values(), strict=True):
        torch.testing.assert_close(tap, output.mean((2, 3)))
    assert torch.equal(logits, model.backbone(images()))


def test_channels_last_maps_and_tokens_with_a_class_token_are_told_apart():
    swin = tapped("swin_tiny_patch4_window7_224", ["layers.1.blocks.0"], 224)
    assert [tuple(tap.shape) for tap in swin(images(224))[1]] == [(2, 192)]
    token = tapped("vit_tiny_patch16_224", ["blocks.1.attn"], **INSIDE_OUT)
    seen = []
    token.backbone.blocks[1].attn.register_forward_hook(lambda _m, _i, output: seen.append(output))
    _, (tap,) = token(images())
    assert torch.equal(tap, seen[0][:, 0])


def test_a_classifiers_own_input_is_read_as_it_is():
    model = tapped("wrn_16_4", ["head.global_pool"])
    assert tap_dims(model.to("meta"), 32) == (256,)


@pytest.mark.parametrize(
    ("name", "tap", "message"),
    [
        ("resnet10t", "layer1.0.drop_path", "no place|does not call this module"),
        ("vit_tiny_patch16_224", "blocks.0.attn.attn_drop", "does not call this module"),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.attn", "128 rows for 2 images"),
    ],
)
def test_modules_that_give_no_features_are_refused(name, tap, message):
    size = 32 if name == "resnet10t" else 224
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        tap_dims(tapped(name, [tap], size), size)


def test_a_copy_reads_its_own_features():
    """The moving average of the weights is a copy: its taps must not be those of the weights that are trained."""
    model = tapped("vit_tiny_patch16_224", ["0.attn", "blocks.1"], **INSIDE_OUT)
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.5)
    before = model(images())[1]
    halved = average(images())[1]
    assert all(torch.equal(a, b) for a, b in zip(model(images())[1], before, strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(halved, before, strict=True))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "wrn_16_4"])
def test_gradients_are_the_same_when_activations_are_computed_again(name):
    args = {**INSIDE_OUT, "embed_dim": 24, "num_heads": 2} if name.startswith("vit") else {}
    model = tapped(name, ["0.attn", 0, "blocks.1"] if args else [0, "stages.1.0", 3], **args).train()
    gradients = []
    for again in (False, True):
        model.backbone.set_grad_checkpointing(again)
        model.zero_grad()
        logits, taps = model(images())
        (logits.sum() + sum(tap.square().sum() for tap in taps)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for kept, computed in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, computed)


@pytest.mark.long
def test_taps_compile_without_a_graph_break():
    model = tapped("vit_tiny_patch16_224", ["0.attn", 0, "blocks.1.mlp", -1], **INSIDE_OUT)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for expected, got in zip(model(images())[1], compiled(images())[1], strict=True):
        torch.testing.assert_close(expected, got)


def test_wide_residual_networks_are_those_of_the_paper():
    """Parameters as Zagoruyko and Komodakis count them (for ten classes): 2.7 and 36.5 million."""
    sizes = {}
    for name in ("wrn_16_4", "wrn_28_10"):
        with torch.device("meta"):
            sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name, num_classes=10).parameters())
    assert sizes == {"wrn_16_4": 2_748_890, "wrn_28_10": 36_479_194}
    with pytest.raises(ValueError, match=r"6n \+ 4 layers, got depth=17"):
        type(timm.create_model("wrn_16_4"))(17, 4)


def test_wide_residual_networks_offer_what_timms_models_offer():
    backbone = timm.create_model("wrn_16_4", num_classes=10).eval()
    final, maps = backbone.forward_intermediates(images())
    assert [tuple(each.shape[1:]) for each in maps] == [(16, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8)]
    assert torch.equal(backbone.forward_head(final), backbone(images()))
    assert torch.equal(backbone.forward_intermediates(images(), 1, norm=True, intermediates_only=True)[0], final)
    early, (stage,) = backbone.forward_intermediates(images(), [1], stop_early=True)
    assert torch.equal(early, stage)
    backbone.reset_classifier(0)
    assert backbone(images()).shape == (2, 256)
    places = select_places(["stages.0.1", "bn", "conv"], layout_of(backbone))
    assert [place.name for place in places] == ["conv", "stages.0.1", "bn"]


def test_pooling():
    tokens_BLD, prefix_BPD = torch.randn(2, 6, 5), torch.randn(2, 2, 5)
    assert torch.equal(pool_tokens(tokens_BLD, prefix_BPD, "token"), prefix_BPD[:, 0])
    assert torch.equal(pool_tokens(tokens_BLD, prefix_BPD, "mean"), tokens_BLD.mean(1))
    maps_BDHW = tokens_BLD.transpose(1, 2).reshape(2, 5, 2, 3)
    torch.testing.assert_close(pool_tokens(maps_BDHW, None, "mean"), tokens_BLD.mean(1))


@pytest.mark.parametrize("prefix_BPD", [None, torch.zeros(2, 0, 5)])
def test_the_class_token_is_missed_by_name(prefix_BPD):
    with pytest.raises(ValueError, match="no prefix tokens: use 'mean'"):
        pool_tokens(torch.zeros(2, 6, 5), prefix_BPD, "token")


def test_other_pools_and_shapes_are_refused():
    with pytest.raises(ValueError, match="unknown pool 'max': use one of token, mean"):
        pool_tokens(torch.zeros(2, 6, 5), None, "max")
    with pytest.raises(ValueError, match=r"shape \(2, 5\)"):
        pool_tokens(torch.zeros(2, 5), None, "mean")
