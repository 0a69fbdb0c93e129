"""Networks that are none of timm's: torchvision's and modules of one's own are tapped by the names of their modules."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from rlpheads.engine.model.tapped_model import TappedModel


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def small_vit():
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5)


class Tupled(nn.Module):
    """A network as transformers builds them: layers that give tuples, an output with names, inputs by name."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, tokens):
            return tokens + self.linear(tokens), "attention"

    class Output(dict):
        __getattr__ = dict.__getitem__

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 6))
        self.register_tokens = nn.Parameter(torch.randn(1, 2, 6))
        self.layers = nn.ModuleList([self.Layer(), self.Layer()])
        self.classifier = nn.Linear(6, 4)

    def forward(self, pixel_values):
        prefix = torch.cat([self.cls_token, self.register_tokens], 1).expand(len(pixel_values), -1, -1)
        tokens = torch.cat([prefix, pixel_values], 1)
        for layer in self.layers:
            tokens = layer(tokens)[0]
        return self.Output(logits=self.classifier(tokens[:, 0]), hidden=tokens)


def test_maps_of_a_torchvision_network_are_read_at_its_modules():
    backbone = torchvision.models.resnet18(num_classes=7).eval()
    model = TappedModel(backbone, ["layer3", "layer1.0.relu", "avgpool", "conv1"])
    assert model.taps == ("conv1", "layer1.0.relu", "layer3", "avgpool")  # by depth
    seen = {}
    for name in model.taps:
        backbone.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: seen.update({name: output})
        )
    logits, taps = model(images())
    assert torch.equal(logits, backbone(images()))
    for name, tap in zip(model.taps, taps, strict=True):
        torch.testing.assert_close(tap, seen[name].mean((2, 3)))
    assert model.dims(images()) == (64, 64, 256, 512)


def test_the_class_token_of_torchvisions_transformer_is_read_and_the_mean_on_request():
    backbone = small_vit().eval()
    caught = []
    backbone.encoder.layers[1].register_forward_hook(lambda _m, _i, output: caught.append(output))
    _, (token,) = TappedModel(backbone, ["encoder.layers.encoder_layer_1"])(images())
    assert torch.equal(token, caught[-1][:, 0])
    _, (mean,) = TappedModel(backbone, ["encoder.layers.encoder_layer_1"], pool="mean")(images())
    torch.testing.assert_close(mean, caught[-1][:, 1:].mean(1))


def test_tuples_named_outputs_named_inputs_and_register_tokens():
    backbone, tokens = Tupled(), torch.randn(3, 5, 6)
    output = backbone(tokens)
    logits, (token,) = TappedModel(backbone, ["layers.1"])(pixel_values=tokens)
    assert torch.equal(logits, output.logits)
    assert torch.equal(token, output.hidden[:, 0])
    _, (mean,) = TappedModel(backbone, ["layers.1"], "mean")(pixel_values=tokens)
    torch.testing.assert_close(mean, output.hidden[:, 3:].mean(1))  # neither the class token nor the two registers


def test_maps_with_channels_last_are_known_of_torchvisions_swin_and_told_of_others():
    backbone = torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [2, 2], [4, 4], num_classes=5).eval()
    assert TappedModel(backbone, ["features.1", "features.3"]).dims(images()) == (12, 24)
    assert TappedModel(nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (4, 8))), ["1"], channels_last=True).dims(
        torch.zeros(2, 3, 32)
    ) == (8,)


def test_measuring_the_widths_leaves_modes_and_statistics_alone():
    backbone = torchvision.models.resnet18(num_classes=7).train()
    backbone.bn1.eval()
    before = copy.deepcopy(backbone.state_dict())
    TappedModel(backbone, ["layer4"]).dims(images())
    assert backbone.training
    assert not backbone.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.long
def test_a_network_of_ones_own_compiles_without_a_graph_break():
    model = TappedModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 5)), ["0", "2"])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for expected, got in zip(model(images())[1], compiled(images())[1], strict=True):
        torch.testing.assert_close(expected, got)


@pytest.mark.wrong("library")
@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["layer5"], r"no place 'layer5'; allowed: names of modules, .* \(nearest: layer\d\)"),
        ("all", "taps 'all': this network is none of timm's, so its blocks have no numbers"),
        ([-1], "tap -1: this network is none of timm's"),
        (["3.attn"], "tap 3: this network is none of timm's"),
        (["layer1", "layer1"], "one place twice"),
        ([None], "whole number or text"),
    ],
)
def test_places_that_are_not_there_are_named_with_the_nearest(taps, message):
    with pytest.raises(ValueError, match=message):
        TappedModel(torchvision.models.resnet18(), taps)


@pytest.mark.wrong("library")
def test_a_pool_that_is_not_known_and_a_class_token_that_is_not_there():
    with pytest.raises(ValueError, match="unknown pool 'max': use one of token, mean"):
        TappedModel(small_vit(), ["encoder"], pool="max")
    with pytest.raises(ValueError, match="needs a class token"):
        TappedModel(nn.Sequential(nn.Linear(4, 4)), ["0"], pool="token")(torch.zeros(2, 3, 4))
