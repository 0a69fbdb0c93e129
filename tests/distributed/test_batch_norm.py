"""Batch norm over the images of all ranks: ranks change nothing, by the layer and by a whole run."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d
from torch import nn

from rlpheads.engine.model.batch_norm import synchronise_batch_norm

pytestmark = pytest.mark.distributed
MAPS = torch.randn(8, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 5


def layers() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3), nn.BatchNorm2d(3, momentum=None, affine=False)).float()


def passed(module: nn.Module, maps: torch.Tensor) -> dict[str, torch.Tensor]:
    maps = maps.float().requires_grad_()
    for _ in range(2):
        output = module(maps)
    (output * torch.arange(16.0).view(4, 4)).square().sum().backward()
    assert maps.grad is not None
    return {"output": output.detach(), "gradient": maps.grad, **module.state_dict()}


def run_rank(rank: int, file: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    module = layers()
    synchronise_batch_norm(module, torch.device("cpu"))
    torch.save(passed(module, MAPS.chunk(2)[rank]), f"{results}{rank}")
    dist.destroy_process_group()


def test_two_ranks_normalise_as_one_does(tmp_path):
    mp.spawn(run_rank, (str(tmp_path / "store"), str(tmp_path / "rank")), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{rank}") for rank in range(2)]
    alone = passed(layers(), MAPS)
    for name in ("output", "gradient"):
        torch.testing.assert_close(torch.cat([rank[name] for rank in ranks]), alone[name], atol=1e-4, rtol=1e-4)
    for name in layers().state_dict():
        torch.testing.assert_close(ranks[0][name], alone[name], atol=1e-5, rtol=1e-5)
        assert torch.equal(ranks[0][name], ranks[1][name])


@pytest.mark.slow
def test_a_run_with_batch_norm_learns_the_same_on_two_ranks(runner):
    flags = ["--model.name", "wrn_16_4", "--model.sync_batchnorm", "--max_steps", "4"]
    for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "drop_rate"):
        flags += [f"--model.args.{name}", "null"]
    flags += ["--heads.taps", "[stages.1.0, -1]", "--epochs", "1", "--batch_size", "16", "--eval.batch_size", "360"]
    # AdamW's first steps are as long for a gradient of rounding alone as for any other
    flags += ["--optim.name", "sgd", "--optim.lr", "0.05", "--heads.optim.name", "sgd", "--heads.optim.lr", "0.05"]
    one, two = runner.run("bn_one", *flags), runner.run("bn_two", *flags, ranks=2)
    assert one.code == 0, one.output
    assert two.code == 0, two.output
    losses = [row["class_loss"] for row in one.rows("step")]
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]
    for alone, paired in zip(one.rows("step"), two.rows("step"), strict=True):
        assert paired["class_loss"] == pytest.approx(alone["class_loss"], rel=1e-5)
        assert paired["head_cross_entropy"] == pytest.approx(alone["head_cross_entropy"], rel=1e-5)
