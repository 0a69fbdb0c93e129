"""Lightning itself trains a module with heads beside it: on one rank, over two, on to another fit, and wrongly set."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from two_ranks import epoch_ledger, ledger_of_two_ranks, save_heads

from rlpheads.loaders.adapters.indexed_dataset import IndexedDataset

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]
pl = pytest.importorskip("lightning.pytorch", reason="Lightning is an extra: make test-integrations installs it")

from rlpheads.engine.integrations.lightning_callback import LightningHeads  # noqa: E402 - needs Lightning
from rlpheads.engine.integrations.measurement import HeadSettings  # noqa: E402

SCRIPT = Path(__file__)
NUM_SAMPLES = 37  # odd: Lightning's sampler for two ranks gives a sample twice
SETTINGS = HeadSettings(taps=["1"], num_labels=4, lr=1e-2)


class Module(pl.LightningModule):
    """A user's own module, which knows nothing of heads but that batches end with indices."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch, _batch_idx):
        inputs, targets, _ = batch
        return cross_entropy(self.net(inputs), targets)

    def validation_step(self, batch, _batch_idx):
        self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(num_samples=NUM_SAMPLES, wrapped=True, seed=1, **options):
    random = torch.Generator().manual_seed(seed)
    dataset = TensorDataset(torch.randn(num_samples, 6, generator=random), torch.arange(num_samples) % 3)
    return DataLoader(IndexedDataset(dataset) if wrapped else dataset, batch_size=8, **options)


def trainer(folder, *callbacks, **options):
    defaults = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "devices": 1}
    defaults |= {"enable_model_summary": False, "default_root_dir": folder, "enable_checkpointing": False}
    return pl.Trainer(callbacks=list(callbacks), **defaults | options)


def fit(folder, settings=SETTINGS, module=None, **options):
    module, heads = module or Module(), LightningHeads(settings, folder, network="net")
    fitting = trainer(folder, heads, **options)
    fitting.fit(module, loader(), loader(20, seed=2))
    return module, heads, fitting


def test_every_epoch_has_a_ledger_and_figures_and_the_network_is_as_without_heads(tmp_path):
    module, heads, fitting = fit(tmp_path)
    for epoch in range(2):
        table = epoch_ledger(tmp_path, epoch)
        assert table.metadata.step == 5 * (epoch + 1)
        assert heads.figures[epoch]["rla/1"] == pytest.approx(table.hit.mean())
    assert set(heads.figures[0]) == {"rla/1", "heldout_rla/1"}
    assert float(fitting.callback_metrics["rla/1"]) == pytest.approx(heads.figures[1]["rla/1"])
    alone = Module()
    trainer(tmp_path).fit(alone, loader(), loader(20, seed=2))
    for name, value in alone.state_dict().items():
        assert torch.equal(value, module.state_dict()[name])


def test_a_regularised_network_is_another_and_audit_heads_watch_it(tmp_path):
    module, heads, _ = fit(tmp_path, HeadSettings(taps=["1"], num_labels=4, factor=5.0), accumulate_grad_batches=2)
    assert "audit_rla/1" in heads.figures[-1]
    alone = Module()
    trainer(tmp_path, accumulate_grad_batches=2).fit(alone, loader(), loader(20, seed=2))
    assert not torch.allclose(alone.net[0].weight, module.net[0].weight)


def test_a_fit_that_is_resumed_ends_with_the_same_heads(tmp_path):
    def weights(heads):
        return heads.state_dict()["heads"]["own"]

    _, whole, _ = fit(tmp_path / "whole")
    _, _, fitting = fit(tmp_path / "part", max_epochs=1)
    fitting.save_checkpoint(tmp_path / "one.ckpt")
    heads = LightningHeads(SETTINGS, tmp_path / "part", network="net")
    trainer(tmp_path, heads).fit(Module(), loader(), loader(20, seed=2), ckpt_path=tmp_path / "one.ckpt")
    torch.testing.assert_close(weights(heads), weights(whole))


@pytest.mark.distributed
def test_two_ranks_write_one_ledger_with_every_sample(tmp_path):
    table = ledger_of_two_ranks(SCRIPT, tmp_path, NUM_SAMPLES)
    assert table.count.sum() == NUM_SAMPLES + 1  # one sample was given to both ranks, and is recorded once
    assert set(table.class_hit.astype(int)) <= {0, 1}


def test_wrong_settings_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"network is 'backbone'; the LightningModule has net, net.0"):
        trainer(tmp_path, LightningHeads(SETTINGS, tmp_path, network="backbone")).fit(Module(), loader())
    with pytest.raises(ValueError, match="reads no IndexedDataset"):
        trainer(tmp_path, LightningHeads(SETTINGS, tmp_path, network="net")).fit(Module(), loader(wrapped=False))


def test_held_out_images_need_no_index(tmp_path):
    heads = LightningHeads(SETTINGS, tmp_path, network="net")
    trainer(tmp_path, heads, max_epochs=1).fit(Module(), loader(), loader(20, wrapped=False))
    assert set(heads.figures[0]) == {"rla/1"}


if __name__ == "__main__":  # a rank of the test above
    import torch.distributed as dist

    folder = Path(sys.argv[1])
    _, ranks_heads, _ = fit(folder, max_epochs=1, devices=2, strategy="ddp")
    save_heads(ranks_heads.state_dict()["heads"], folder, dist.get_rank())
