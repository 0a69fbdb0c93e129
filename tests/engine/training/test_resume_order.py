"""After a resume: the order of the epoch that it is in, and random generators in the state of an undisturbed run."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from rlpheads.engine.config.data import AugmentConfig, MixConfig, ProgressiveConfig
from rlpheads.engine.runs.resume import ResumePoint
from rlpheads.engine.runs.run_manifest import Position
from rlpheads.engine.training.training import Training
from rlpheads.memorization.records.ledger_file import SKIPPED


def sealed_generators() -> tuple:
    """The states of all generators of the process that code might draw from."""
    name, keys, position, *_ = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), (name, keys.tolist(), position)


def train(training, num_steps: int) -> None:
    training.learner.train()
    training.splits.trained.loader.set_epoch(training.position.epoch, training.position.consumed)
    batches = iter(training.splits.trained.loader)
    for _ in range(num_steps):
        training.train_on(next(batches))


def resumed_at(training, build):
    training.save()
    training.saver.wait()
    saved = max(training.run.folder.checkpoints.iterdir())
    again = build(training.run.config)
    again.resume(ResumePoint(saved, training.position, 0.0))
    return again


def assert_same_weights(first: Training, second: Training) -> None:
    for ours, theirs in zip(first.learner.tapped.parameters(), second.learner.tapped.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("position", [Position(1, 0), Position(1, 64), Position(0, 32)], ids=str)
def test_order_after_a_resume_is_that_of_its_epoch(tiny, build, position):
    """Epoch 0's order after every resume is a known way to train on half of the images."""
    training = build(tiny)
    training.move_to(position)
    again = resumed_at(training, build)
    again.splits.trained.loader.set_epoch(again.position.epoch, again.position.consumed)
    batch = next(iter(again.splits.trained.loader))
    step = position.consumed // tiny.batch_size
    expected = again.order.rank_indices(position.epoch, step, 0, 1)
    assert batch.index.tolist() == expected.tolist()
    assert expected.tolist() != again.order.rank_indices(1 - position.epoch, step, 0, 1).tolist()


@pytest.mark.long
def test_generators_end_in_the_same_state_and_only_torchs_is_drawn_from(tiny, build):
    """With dropout, whatever the generators held when the run went on."""
    first = sealed_generators()
    undisturbed = build(tiny)
    train(undisturbed, 4)
    expected = sealed_generators()
    assert expected[1:] == first[1:]
    halfway = build(tiny)
    train(halfway, 2)
    torch.manual_seed(12345)
    again = resumed_at(halfway, build)
    train(again, 2)
    assert sealed_generators() == expected
    assert_same_weights(again, undisturbed)


def test_repeats_are_augmented_otherwise_recorded_once_and_resume_at_the_same_bits(tiny, build):
    data = replace(tiny.data, repeats=4, mix=MixConfig(mixup=0.8), augment=AugmentConfig("rand", erase=0.5))
    config = replace(tiny, data=data)
    undisturbed, halfway = build(config), build(config)
    train(undisturbed, 4)
    train(halfway, 2)
    again = resumed_at(halfway, build)
    train(again, 2)
    assert_same_weights(again, undisturbed)
    rows = undisturbed.splits.trained.ledger.tensors()
    for name, values in rows.items():
        assert torch.equal(again.splits.trained.ledger.tensors()[name], values), name
    assert rows["count"].unique().tolist() == [0, 4]
    assert int((rows["count"] == 4).sum()) == undisturbed.splits.trained.ledger.num_seen == 4 * tiny.batch_size // 4
    loader = undisturbed.splits.trained.loader
    loader.set_epoch(0)
    prepared = undisturbed.preparation.for_training(next(iter(loader)), 0, 0)
    assert prepared.is_first.sum() == tiny.batch_size // 4
    of_one = prepared.images[prepared.index == prepared.index[0]]
    weights = prepared.partners.weight[prepared.index == prepared.index[0]]
    assert len(of_one.flatten(1).unique(dim=0)) == len(weights.unique()) == 4
    undisturbed.count_skipped(1)
    assert rows["count"].sum() == 3 * tiny.batch_size
    assert int((rows["status"] == SKIPPED).sum()) == tiny.batch_size // 4


def test_in_the_middle_of_growing_images_a_resume_ends_at_the_same_bits(tiny, build):
    grows = ProgressiveConfig(first_size=4, end_epoch=2, multiple=4)
    data = replace(tiny.data, image_size=12, progressive=grows, val_fraction=0.9)
    model = replace(tiny.model, args=tiny.model.args | {"dynamic_img_size": True})
    config = replace(tiny, epochs=3, data=data, model=model)
    undisturbed, halfway = build(config), build(config)
    for training in (undisturbed, halfway):
        training.move_to(Position(1, 0))
    train(undisturbed, 4)
    train(halfway, 2)
    again = resumed_at(halfway, build)
    train(again, 2)
    assert_same_weights(again, undisturbed)
    sizes = []
    for epoch in range(3):
        again.splits.trained.loader.set_epoch(epoch)
        sizes.append(next(iter(again.splits.trained.loader)).images.shape[-1])
    assert sizes == [4, 8, 12]
    assert next(iter(again.splits.clean.loader)).images.shape[-1] == 12


def test_a_checkpoint_of_before_predictions_were_recorded_goes_on(tiny, build, monkeypatch):
    """Their rows are not known then; all others are as they were saved."""
    training = build(tiny)
    train(training, 1)
    rows = {name: tensor.clone() for name, tensor in training.splits.trained.ledger.tensors().items()}
    older = {name: tensor for name, tensor in rows.items() if name not in ("predicted", "confidence")}
    with monkeypatch.context() as version:
        version.setattr(type(training), "_merged_ledger", lambda _: older)
        training.save()
        training.saver.wait()
    (saved,) = training.run.folder.checkpoints.iterdir()
    again = build(tiny)
    again.resume(ResumePoint(saved, training.position, 0.0))
    found = again.splits.trained.ledger.tensors()
    assert all(torch.equal(found[name], older[name]) for name in older)
    seen = rows["status"] == 1
    assert seen.sum() == tiny.batch_size
    assert (found["predicted"][seen] == -1).all()
    assert found["confidence"][seen].isnan().all()
