"""Networks that are trained together are those that would be trained alone: weights, rates, decay, clipping, crops."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_runs import small_config

from rlpheads.engine.config.learning import OptimConfig, ScheduleConfig
from rlpheads.engine.learner.optimizer import build_optimizer
from rlpheads.engine.learner.schedule import Span, build_scheduler
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.retraining.epoch_images import EpochImages
from rlpheads.engine.retraining.stacked_networks import RetrainingError, StackedNetworks
from rlpheads.engine.retraining.subset_training import SubsetPlan, check_retrainable, train_on_subsets
from rlpheads.engine.runs.sources import open_sources

pytestmark = pytest.mark.long
CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path):
    config = small_config(tmp_path, "judged", epochs=3)
    config = replace(config, optim=OptimConfig(lr=3e-3, weight_decay=0.1, clip_norm=0.5), schedule=ScheduleConfig())
    return replace(config, data=replace(config.data, crop_scale=(0.7, 1.0)))


def train_alone(config, plan, images, targets_N, number):
    """Train one network of a plan by itself, as plainly as can be."""
    torch.manual_seed(0)
    seeded = replace(config, seeds=replace(config.seeds, weights=plan.weights_seed(number)))
    model = build_model(seeded, 10)
    optimizer = build_optimizer(model, config.optim, config.optim.lr)
    num_steps = plan.num_inside // config.batch_size
    scheduler = build_scheduler(
        optimizer, config.optim.lr, config.schedule, Span(config.epochs, num_steps, config.batch_size)
    )
    subset = plan.subset(number)
    for epoch in range(config.epochs):
        order = plan.order(number, epoch)
        for step in range(num_steps):
            rows = subset[order[step * config.batch_size :][: config.batch_size]]
            F.cross_entropy(model(images.trained(epoch)[rows])[0], targets_N[rows]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
            scheduler.step_update(epoch * num_steps + step)
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        return F.cross_entropy(model.eval()(images.plain())[0], targets_N, reduction="none")


def test_a_network_among_others_is_the_network_alone(config):
    source = open_sources(config).train
    targets_N = torch.from_numpy(source.manifest.targets)
    plan, images = SubsetPlan(config.seed, len(targets_N), 0.6), EpochImages(config, source, CPU)
    found = train_on_subsets(config, plan, images, targets_N, 10, range(1, 4))
    assert found.first == 1
    for position, number in enumerate((1, 2, 3)):
        assert found.inside_GN[position].nonzero()[:, 0].equal(plan.subset(number))
        alone_N = train_alone(config, plan, images, targets_N, number)
        assert torch.allclose(found.loss_GN[position].float(), alone_N, atol=5e-3)
    assert not torch.allclose(found.loss_GN[0], found.loss_GN[1], atol=0.05)


def test_images_are_cropped_anew_each_epoch_as_in_the_run(config):
    images = EpochImages(config, open_sources(config).train, CPU)
    assert not images.trained(0).equal(images.trained(1))
    assert images.trained(0).equal(images.trained(0))
    assert (images.trained(0).flatten(1).abs().sum(1) > 0).all()  # none is missing, in a last partial batch either
    still = replace(config, data=replace(config.data, crop_scale=(1.0, 1.0)))
    plain = EpochImages(still, open_sources(still).train, CPU)
    assert plain.trained(0).allclose(plain.plain(), atol=1e-6)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("heads", {"joint": 1.0}, "the run sets heads.joint"),
        ("regularizer", {"factor": 2.0}, "the run sets regularizer.factor"),
        ("optim", {"clip_value": 1.0}, "the run sets optim.clip_value"),
    ],
)
@pytest.mark.wrong("config")
def test_runs_that_learn_otherwise_are_refused(config, section, changes, message):
    changed = replace(config, **{section: replace(getattr(config, section), **changes)})
    with pytest.raises(RetrainingError, match=message):
        check_retrainable(changed)
    check_retrainable(config)


@pytest.mark.wrong("config")
def test_networks_that_would_mix_are_refused(config):
    networks = StackedNetworks(config, 10, [0, 1], CPU)
    with pytest.raises(RetrainingError, match="treats every weight alone"):
        networks.optimizer(replace(config, optim=replace(config.optim, name="lamb")))
    wide = replace(config, model=replace(config.model, name="wrn_16_4", args={}))
    with pytest.raises(RetrainingError, match="batch norm"):
        StackedNetworks(wide, 10, [0], CPU)
