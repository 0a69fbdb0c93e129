"""Arithmetic counted against known answers, and utilisation that is absent where nothing is known."""

from dataclasses import replace

import pytest
import torch

from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.learning import HeadsConfig, ModelConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.model.flops import ImageFlops, Utilisation, head_flops, peak_flops
from rlpheads.engine.model.plan import plan_model
from rlpheads.engine.report.display import step_line

VIT_B = parse_config(["--config", "configs/imagenet_vit_b.yaml"])


def vit_products(tokens: int, width: int, depth: int, patch: int, classes: int) -> int:
    """FLOP of a ViT's matrix products forward: patches, then qkv, attention twice, projection, MLP; the classifier."""
    block = tokens * width * width * (3 + 1 + 8) + 2 * tokens * tokens * width
    return 2 * ((tokens - 1) * 3 * patch * patch * width + depth * block + width * classes)


def test_vit_b_takes_the_arithmetic_of_its_products():
    """Forward once and backward twice, but for the gradient of the images, which nobody asks for."""
    forward = vit_products(197, 768, 12, 16, 1000)
    patches = 2 * 196 * 3 * 16 * 16 * 768
    assert plan_model(VIT_B, 1000).image_flops == 3 * forward - patches
    assert forward == pytest.approx(35.1e9, rel=2e-3)


def test_frozen_network_goes_forward_alone():
    frozen = replace(VIT_B, model=replace(VIT_B.model, frozen=True))
    assert plan_model(frozen, 1000).image_flops == vit_products(197, 768, 12, 16, 1000)


@pytest.mark.long
def test_what_is_computed_a_second_time_is_not_counted():
    again = replace(VIT_B, runtime=replace(VIT_B.runtime, activation_checkpointing=True))
    assert plan_model(again, 1000).image_flops == plan_model(VIT_B, 1000).image_flops


def test_convolutions_and_batch_norm_are_counted_without_drawing_a_number(tiny):
    config = replace(tiny, model=ModelConfig(name="resnet18"), data=replace(tiny.data, image_size=224))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert plan_model(config, 1000).image_flops == pytest.approx(3 * 3.64e9, rel=0.03)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "regularized", "audit", "expected"),
    [
        (HeadsConfig(labels=100), (), 0, 2 * 100 * (64 + 32) * 2),
        (HeadsConfig(labels=100, draws=3), (), 0, 3 * 2 * 100 * (64 + 32) * 2),
        (HeadsConfig(labels=100), (1,), 0, 2 * 100 * (64 * 2 + 32 * 3)),
        (HeadsConfig(labels=100), (1,), 1, 2 * 100 * (64 * 4 + 32 * 5)),
        (HeadsConfig(labels=100, joint=0.5), (), 0, 2 * 100 * (64 + 32) * 3),
        (HeadsConfig(labels=100, hidden=8), (), 0, 2 * (2 * 100 * 8 * 3) + 2 * 8 * (64 + 32) * 2),
    ],
)
def test_heads_of_two_taps(settings, regularized, audit, expected):
    assert head_flops(settings, (64, 32), regularized, audit) == expected


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", False, 312e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", True, 156e12),
        ("NVIDIA A100-SXM4-40GB", "fp16", False, 312e12),
        ("NVIDIA A100-PCIE-40GB", "bf16", True, 312e12),
        ("A100-SXM4-40GB", "bf16", False, 312e12),  # as older drivers say
        ("NVIDIA A100 80GB PCIe", "fp32", False, 19.5e12),
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989.5e12),
        ("NVIDIA H100 80GB HBM3", "fp16", True, 989.5e12),
        ("NVIDIA H100 80GB HBM3", "fp32", True, 494.5e12),
        ("NVIDIA H100 80GB HBM3", "fp32", False, 67e12),
        ("NVIDIA H100 PCIe", "bf16", False, 756.5e12),
        ("NVIDIA H100 PCIe", "fp32", True, 378e12),
        ("NVIDIA H100 PCIe", "fp32", False, 51e12),
        ("NVIDIA H100 NVL", "bf16", False, 835.5e12),
        ("NVIDIA H200 NVL", "fp32", True, 417.5e12),
        ("NVIDIA H200 NVL", "fp32", False, 60e12),
        ("NVIDIA H200", "bf16", False, 989.5e12),
        ("NVIDIA B200", "bf16", False, 2250e12),
        ("NVIDIA B200", "fp32", True, 1100e12),
        ("NVIDIA B200", "fp32", False, 75e12),
        ("NVIDIA A100-SXM-64GB", "bf16", False, None),  # of one machine, with more multiprocessors
        ("NVIDIA H100 96GB HBM3", "bf16", False, None),
        ("NVIDIA H100", "bf16", False, None),
        ("NVIDIA H800", "bf16", False, None),
        ("NVIDIA B300", "bf16", False, None),
        ("NVIDIA GB200", "bf16", False, None),
        ("GRID A100X-40C", "bf16", False, None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", "bf16", False, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", False, None),
        ("NVIDIA GH200 480GB", "bf16", False, None),
        ("NVIDIA GeForce RTX 4090", "bf16", False, None),
    ],
)
def test_peak_by_device_name(name, precision, tf32, peak):
    assert peak_flops(name, precision, tf32=tf32) == peak


def test_utilisation_is_flops_by_rate_over_peak():
    used = Utilisation(ImageFlops(network=100_000_000_000, heads=20_000_000_000), peak=8 * 312e12)
    figures = used.figures(images_per_second=10_400)
    assert figures == pytest.approx({"mfu": 0.5, "mfu_heads": 0.5 / 6})
    row = {"class_loss": 1.0, "top1": 0.5, "images_per_second": 10_400.0, "data_wait": 0.0, **figures}
    assert "MFU 50.00% (heads 8.33%)" in step_line(row, None)


@pytest.mark.parametrize("used", [Utilisation(None, 1e12), Utilisation(ImageFlops(1, 1), None)])
def test_unknown_utilisation_is_absent(used):
    assert used.figures(100.0) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_run_on_a_cpu_knows_its_arithmetic_and_claims_no_utilisation(tiny: Config, build):
    training = build(tiny)
    assert training.gauges.utilisation.flops is not None
    assert training.gauges.utilisation.flops.network > 0
    assert training.gauges.utilisation.flops.heads == 2 * 2 * 2 * 5 * 24 * 2  # taps x draws x FLOP of a product, twice
    assert training.gauges.rates == {}  # no step, no rate
    training.gauges.clock.start()
    for _ in range(3):
        training.gauges.clock.step(8)
    assert training.gauges.rates.keys() == {"images_per_second", "data_wait"}
