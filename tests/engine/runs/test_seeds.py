"""Each source of chance can be moved alone: what hangs on it changes, and nothing else."""

from dataclasses import replace

import pytest
from small_runs import small_config

from rlpheads.engine.config.ranges import range_errors
from rlpheads.engine.config.schema import Config, SeedsConfig
from rlpheads.engine.learner.learner import build_heads
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.runs.checkpoint import weights_sha256
from rlpheads.engine.runs.sources import open_sources, training_order
from rlpheads.engine.training.label_choice import run_labels
from rlpheads.loaders.sources.canary_source import CanarySource

CHANGED = {
    "split": {"held-out images", "kept images", "classes given"},  # the last two are chosen among the training images
    "subset": {"kept images", "classes given"},
    "canaries": {"classes given"},
    "order": {"order"},
    "labels": {"random labels"},
    "weights": {"weights", "head weights"},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    small = small_config(tmp_path_factory.mktemp("runs"), "seeds", epochs=1)
    subset = replace(small.data.subset, fraction=0.5)
    return replace(small, batch_size=16, data=replace(small.data, val_fraction=0.5, subset=subset, label_noise=0.1))


def figures(config: Config) -> dict[str, object]:
    sources = open_sources(config)
    assert isinstance(sources.train, CanarySource)
    return {
        "held-out images": sources.heldout.manifest.fingerprint,
        "kept images": sources.train.source.manifest.fingerprint,
        "classes given": sources.train.manifest.fingerprint,
        "order": training_order(config, sources.train).epoch_indices(0).tolist(),
        "random labels": run_labels(config, sources.train.manifest, 1).tolist(),
        "weights": weights_sha256(build_model(config, 10)),
        "head weights": weights_sha256(build_heads(config, (24,), "heads", 1)),
    }


@pytest.mark.parametrize("source", CHANGED)
def test_one_source_moves_alone(config, source):
    before, after = figures(config), figures(replace(config, seeds=SeedsConfig(**{source: 1})))
    assert {name for name in before if before[name] != after[name]} == CHANGED[source]


def test_the_seed_moves_all_that_have_none_of_their_own(config):
    held = replace(config, seed=1, seeds=SeedsConfig(**dict.fromkeys(CHANGED, 0)))
    assert figures(held) == figures(config)
    moved, before = figures(replace(config, seed=1)), figures(config)
    assert all(moved[name] != before[name] for name in before)


@pytest.mark.wrong("config")
def test_a_seed_below_zero_is_refused(config):
    (error,) = range_errors(replace(config, seeds=SeedsConfig(split=-1)))
    assert str(error).startswith("seeds.split: got -1; allowed: a number at least 0")
