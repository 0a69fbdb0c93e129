"""A run's loaders and augmentations, from its settings: trained with, evaluated without, the same after a resume."""

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlpheads.engine.config.command_line import help_text, parse_config
from rlpheads.engine.config.data import AugmentConfig, DataConfig, MixConfig
from rlpheads.engine.config.learning import RegularizerConfig
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed.launch import Rank
from rlpheads.engine.learner.step import forward_rows
from rlpheads.engine.runs.sources import open_sources
from rlpheads.engine.training import loading
from rlpheads.engine.training.loading import augment_spec, evaluation_loader, mix_spec, training_loader
from rlpheads.engine.training.training import Training
from rlpheads.loaders.contract.options import LoaderOptions
from rlpheads.loaders.factory import make_loader

Build = Callable[..., Training]
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


def with_data(config: Config, **changes: object) -> Config:
    return replace(config, data=replace(config.data, **changes))


@pytest.fixture
def augmented(tiny: Config) -> Config:
    return with_data(tiny, crop="pad", crop_padding=2, augment=AugmentConfig(cutout=3, erase=0.5))


def test_training_images_are_augmented_and_evaluated_ones_are_not(augmented: Config, build: Build):
    training = build(augmented)
    batch = next(iter(training.splits.trained.loader))
    images, plain = (
        training.preparation.for_training(batch, 0, 0).images,
        training.preparation.for_evaluation(batch).images,
    )
    assert torch.equal(plain, training.preparation.normalize(batch.images))
    assert (images != plain).flatten(1).any(1).all()
    # pad: the loader hands the whole image over
    assert torch.equal(batch.images[0], training.run.sources.train.read(int(batch.index[0])))


@pytest.mark.long
def test_an_augmented_image_depends_on_seed_epoch_and_index(augmented: Config, build: Build):
    one, two, other = build(augmented), build(augmented), build(augmented, seed=1)
    batch = next(iter(one.splits.trained.loader))
    first = one.preparation.for_training(batch, 0, 0).images
    assert torch.equal(two.preparation.for_training(batch, 0, 0).images, first)
    assert not torch.equal(other.preparation.for_training(batch, 0, 0).images, first)
    assert not torch.equal(two.preparation.for_training(batch, 1, 0).images, first)


def test_evaluation_sees_every_sample_once_at_any_world_size(tiny: Config):
    source = open_sources(replace(tiny, data=replace(tiny.data, val_fraction=0.1))).heldout
    for world_size in (1, 3):
        seen = []
        for rank in range(world_size):
            loader = evaluation_loader(tiny, source, CPU, Rank(rank, world_size, rank))
            assert loader.order.batch_size % world_size == 0
            seen += [index for batch in loader for index in batch.index.tolist() if index >= 0]
        assert sorted(seen) == list(range(source.manifest.num_samples))


@pytest.mark.parametrize("make", [training_loader, evaluation_loader])
def test_no_more_workers_than_cores(tiny: Config, make: Callable, monkeypatch: pytest.MonkeyPatch):
    made = []

    def recording(*arguments: object, options: LoaderOptions, **others: object) -> object:
        made.append(options)
        return make_loader(*arguments, options=options, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "make_loader", recording)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    for workers in (1, 64):
        make(with_data(tiny, workers=workers), open_sources(tiny).train, CPU, Rank(0, 1, 0))
    assert [options.num_workers for options in made] == [1, 2]


def test_no_augmentation_is_what_it_was(tiny: Config, build: Build):
    training = build(tiny)
    batch = next(iter(training.splits.trained.loader))
    assert torch.equal(
        training.preparation.for_training(batch, 0, 0).images, training.preparation.for_evaluation(batch).images
    )


@pytest.fixture
def mixed(tiny: Config) -> Config:
    still = replace(tiny.model, args={**tiny.model.args, "drop_rate": 0.0})
    return with_data(replace(tiny, model=still), mix=MixConfig(mixup=1.0, cutmix=1.0))


@pytest.mark.long
@pytest.mark.parametrize(
    "mix",
    [
        MixConfig(mixup=1.0, cutmix=1.0),
        MixConfig(mixup=1.0, cutmix=1.0, mode="elem"),
        MixConfig(cutmix_minmax=(0.3, 0.9), mode="batch"),
    ],
    ids=lambda mix: mix.mode,
)
def test_heads_learn_both_random_labels_of_a_mixed_row_and_score_the_dominant_one(
    mixed: Config, build: Build, mix: MixConfig
):
    """Every term is linear in the two labels: it equals the weighted sum of those of two plain passes."""
    regularized = replace(
        with_data(mixed, mix=mix),
        heads=replace(mixed.heads, joint=1.0),
        regularizer=RegularizerConfig(kind="unlikelihood", factor=1.0),
        model=replace(mixed.model, label_smoothing=0.1),
    )
    training = build(regularized)
    batch = training.preparation.for_training(next(iter(training.splits.trained.loader)), 0, 0)
    partners = batch.partners
    assert partners is not None
    table = training.splits.clean.table_MN
    rows = forward_rows(training.learner.bare, batch, table, training.step.routes)
    own = forward_rows(training.learner.bare, replace(batch, partners=None), table, training.step.routes)
    other = replace(batch, partners=None, index=partners.index, targets=partners.targets)
    theirs = forward_rows(training.learner.bare, other, table, training.step.routes)
    weight = partners.weight
    for prefix in ("heads", "audit"):
        losses, first, second = (getattr(each, prefix) for each in (rows, own, theirs))
        for name in ("cross_entropy_TMB", "regularizer_RMB", "joint_TMB"):
            if getattr(losses, name) is not None:
                expected = weight * getattr(first, name) + (1 - weight) * getattr(second, name)
                torch.testing.assert_close(getattr(losses, name), expected, rtol=1e-4, atol=1e-5)
        for name in ("hit_TMB", "bits_TMB", "margin_TMB"):
            torch.testing.assert_close(getattr(losses, name), getattr(first, name), rtol=1e-4, atol=1e-5)
    expected = weight * own.trained_loss_B + (1 - weight) * theirs.trained_loss_B
    torch.testing.assert_close(rows.trained_loss_B, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(rows.class_loss_B, own.class_loss_B)
    assert torch.equal(rows.class_hit_B, own.class_hit_B)


def test_a_batch_that_is_mixed_as_a_whole_is_mixed_by_its_step(mixed: Config, build: Build):
    training = build(with_data(mixed, mix=MixConfig(mixup=1.0, mode="batch")))
    batch = next(iter(training.splits.trained.loader))
    weights = []
    for step in range(3):
        partners = training.preparation.for_training(batch, 0, step).partners
        assert partners is not None
        assert len(partners.weight.unique()) == 1
        weights.append(partners.weight[0].item())
    assert len(set(weights)) == 3


@pytest.mark.long
def test_mixing_reaches_training_alone_and_accumulation_changes_rounding_only(mixed: Config, build: Build):
    whole, parts = build(mixed), build(mixed, accumulate=4)
    batch = next(iter(whole.splits.trained.loader))
    assert whole.preparation.for_evaluation(batch).partners is None
    whole.learner.train()
    parts.learner.train()
    shares = whole.step(whole.preparation.for_training(batch, 0, 0), 0, whole.term_weights)
    in_parts = parts.step(parts.preparation.for_training(batch, 0, 0), 0, parts.term_weights)
    for name, value in shares.items():
        torch.testing.assert_close(in_parts[name], value, rtol=1e-5, atol=1e-6)
    recorded, in_parts_recorded = whole.splits.trained.ledger.tensors(), parts.splits.trained.ledger.tensors()
    assert torch.equal(recorded["target"], in_parts_recorded["target"])
    index = batch.index
    assert torch.equal(recorded["target"][index], batch.targets)


def test_mixup_leaves_heads_that_only_measure_detached(mixed: Config, build: Build):
    """With λ = 0 the backbone is bit-identical with and without heads, mixed images or not."""
    with_heads, without = build(mixed), build(mixed, heads=replace(mixed.heads, taps="none"))
    for training in (with_heads, without):
        training.learner.train()
        batches = iter(training.splits.trained.loader)
        for number in range(3):
            training.step(training.preparation.for_training(next(batches), 0, 0), number, training.term_weights)
    left, right = (training.learner.tapped.state_dict() for training in (with_heads, without))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_recipes_of_the_documentation_are_settings():
    text = (ROOT / "docs" / "augmentation.md").read_text().split("## Recipes")[1].split("```")[1]
    recipes = [shlex.split(" ".join(recipe.splitlines()[1:])) for recipe in text.split("# ")[1:]]
    assert len(recipes) == 3
    for flags in recipes:
        config = parse_config(["--config", str(ROOT / "configs" / "digits_vit.yaml"), *flags])
        assert augment_spec(config.data) != augment_spec(DataConfig())
        mix_spec(config.data)


def test_help_tells_of_every_augmentation():
    text = help_text()
    for key in (
        "data.augment.policy",
        "data.augment.erase_fill",
        "data.augment.rand_operations",
        "data.augment.interpolation",
        "data.mix.cutmix",
        "data.mix.cutmix_minmax",
        "data.mix.mode",
        "data.subset.per_class",
        "model.loss",
    ):
        assert f"--{key}" in text
