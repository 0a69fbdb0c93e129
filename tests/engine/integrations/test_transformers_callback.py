"""Hugging Face's Trainer trains a ViT with heads beside it: on one rank, over two, from a checkpoint, and wrongly set."""

import sys
from pathlib import Path

import pytest
import torch
from two_ranks import epoch_ledger, ledger_of_two_ranks, save_heads

from rlpheads.loaders.adapters.indexed_dataset import IndexedDataset

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]
transformers = pytest.importorskip(
    "transformers", reason="transformers is an extra: make test-integrations installs it"
)
pytest.importorskip("accelerate", reason="accelerate is an extra: make test-integrations installs it")

from rlpheads.engine.integrations.measurement import HeadSettings  # noqa: E402 - after what may skip
from rlpheads.engine.integrations.transformers_callback import TrainerHeads  # noqa: E402
from rlpheads.engine.model.tapped_model import TappedModel  # noqa: E402

SCRIPT = Path(__file__)
NUM_SAMPLES = 21
LAST = "vit.layers.1"


def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes)
    return transformers.ViTForImageClassification(config)


def images(num_samples=NUM_SAMPLES, seed=1):
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randn(num_samples, 3, 8, 8, generator=random)
    return [{"pixel_values": each, "labels": number % 3} for number, each in enumerate(pixels)]


def settings(**changes):
    return HeadSettings(**{"taps": [LAST], "num_labels": 4, "lr": 1e-2, **changes})


def trainer(folder, *callbacks, wrapped=True, **options):
    defaults = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "remove_unused_columns": False,
        "use_cpu": True,
    }
    defaults |= {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "learning_rate": 0.05, "seed": 3}
    train = IndexedDataset(images()) if wrapped else images()
    return transformers.Trainer(
        model=model(),
        args=transformers.TrainingArguments(output_dir=str(folder), **defaults | options),
        train_dataset=train,
        eval_dataset=IndexedDataset(images(12, 2)),
        callbacks=list(callbacks),
    )


def test_a_transformers_model_is_tapped_at_its_layers():
    backbone, pixels = model().eval(), torch.stack([image["pixel_values"] for image in images()])
    logits, (token,) = TappedModel(backbone, [LAST])(pixel_values=pixels)
    assert torch.equal(logits, backbone(pixel_values=pixels).logits)
    hidden = backbone(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(token, hidden[:, 0])


def test_every_epoch_has_a_ledger_and_figures_and_the_network_is_as_without_heads(tmp_path):
    heads = TrainerHeads(settings(), tmp_path / "run")
    measured = trainer(tmp_path / "hf", heads, eval_strategy="epoch")
    measured.train()
    for epoch in range(2):
        table = epoch_ledger(tmp_path / "run", epoch)
        assert heads.figures[epoch][f"rla/{LAST}"] == pytest.approx(table.hit.mean())
        assert 0 <= heads.figures[epoch][f"heldout_rla/{LAST}"] <= 1
    logged = [row for row in measured.state.log_history if f"rla/{LAST}" in row]
    assert [row["epoch"] for row in logged] == [1.0, 2.0]
    alone = trainer(tmp_path / "alone")
    alone.train_dataset = images()
    alone.train()
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, measured.model.state_dict()[name])


def test_a_regularised_network_is_another_and_audit_heads_watch_it(tmp_path):
    weights = []
    for factor in (0.0, 20.0):
        heads = TrainerHeads(settings(factor=factor), tmp_path / "run")
        regularised = trainer(tmp_path / "hf", heads, gradient_accumulation_steps=2)
        regularised.train()
        weights.append(regularised.model.vit.embeddings.cls_token.detach())
    assert f"audit_rla/{LAST}" in heads.figures[-1]
    assert not torch.allclose(*weights)


def test_a_training_that_is_resumed_ends_with_the_same_heads(tmp_path):
    """The network does not learn: transformers 5.24 loads no ViT from its own checkpoints."""
    whole = TrainerHeads(settings(), tmp_path / "whole")
    trainer(tmp_path / "hf", whole, save_strategy="epoch", learning_rate=0.0).train()
    first = tmp_path / "hf" / "checkpoint-6"
    resumed = TrainerHeads(settings(), tmp_path / "resumed")
    trainer(tmp_path / "hf", resumed, learning_rate=0.0).train(resume_from_checkpoint=str(first))
    torch.testing.assert_close(resumed.measurement.state_dict()["heads"], whole.measurement.state_dict()["heads"])


@pytest.mark.distributed
def test_two_ranks_write_one_ledger_with_every_sample(tmp_path):
    table = ledger_of_two_ranks(SCRIPT, tmp_path, NUM_SAMPLES)
    assert table.count.sum() > NUM_SAMPLES  # the last batch is filled up with samples from the beginning


def test_wrong_settings_are_told(tmp_path):
    with pytest.raises(ValueError, match="set remove_unused_columns=False"):
        trainer(tmp_path, TrainerHeads(settings(), tmp_path), remove_unused_columns=True)
    with pytest.raises(ValueError, match=r"no place 'vit.encoder.layer.1'.*nearest: vit"):
        trainer(tmp_path, TrainerHeads(settings(taps=["vit.encoder.layer.1"]), tmp_path)).train()
    with pytest.raises(ValueError, match="reads no IndexedDataset"):
        trainer(tmp_path, TrainerHeads(settings(), tmp_path), wrapped=False).train()
    with pytest.raises(ValueError, match="label_smoothing_factor and compute_loss_func"):
        trainer(tmp_path, TrainerHeads(settings(), tmp_path), label_smoothing_factor=0.1).train()


if __name__ == "__main__":  # a rank of the test above
    folder = Path(sys.argv[1])
    ranks_heads = TrainerHeads(settings(), folder)
    trained = trainer(folder / "hf", ranks_heads, num_train_epochs=1)
    trained.train()
    save_heads(ranks_heads.measurement.state_dict()["heads"], folder, trained.args.process_index)
