"""The kernel that is named is the one that torch runs."""

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from rlpheads.engine.model.attention import AttentionWatch, choose_kernel

KERNELS = {
    SDPBackend.FLASH_ATTENTION: "aten::_scaled_dot_product_flash_attention_for_cpu",
    SDPBackend.MATH: "aten::_scaled_dot_product_attention_math",
}
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("allowed", list(KERNELS), ids=str)
def test_the_kernel_is_the_one_that_runs(dtype, allowed):
    model = timm.create_model("vit_tiny_patch16_224", **SMALL).to(dtype)
    with AttentionWatch() as watch:
        model(torch.zeros(3, 3, 16, 16, dtype=dtype))
    assert watch.call is not None
    assert (watch.call.query_shape, watch.call.mask_shape) == ((2, 17, 12), None)
    with sdpa_kernel(allowed):
        chosen = choose_kernel(watch.call, torch.device("cpu"), dtype)
        with profile(activities=[ProfilerActivity.CPU]) as traced:
            model(torch.zeros(3, 3, 16, 16, dtype=dtype))
    assert chosen == allowed
    assert KERNELS[chosen] in {event.name for event in traced.events()}


def test_what_is_said_and_a_network_without_attention():
    with AttentionWatch() as watch:
        timm.create_model("resnet10t")(torch.zeros(2, 3, 32, 32))
    assert watch.call is None
    with AttentionWatch() as watch:
        timm.create_model("vit_tiny_patch16_224", **SMALL).train()(torch.zeros(2, 3, 16, 16))
    said = watch.call.describe(torch.device("cpu"), torch.float32)
    assert said == "attention: flash kernel of torch, for 2 heads of 12, 17 tokens, torch.float32"
