"""The wiring of a run: from a configuration, images and a folder to everything that the loop drives."""

from __future__ import annotations

from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.gauges.gauges import build_gauges
from rlpheads.engine.learner.learner import Learner, build_initial_model, build_learner, num_audit_draws
from rlpheads.engine.learner.runtime import SideStream
from rlpheads.engine.learner.split import Split
from rlpheads.engine.learner.step import TrainStep, build_routes
from rlpheads.engine.model.flops import head_flops, utilisation
from rlpheads.engine.model.plan import ModelPlan
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.log import RunLog
from rlpheads.engine.runs.run_setup import RunSetup
from rlpheads.engine.runs.sources import Sources
from rlpheads.engine.runs.weights_files import read_weights
from rlpheads.engine.training.label_choice import run_labels
from rlpheads.engine.training.loading import evaluation_loader, training_loader
from rlpheads.engine.training.preparation import Repeats, build_preparation
from rlpheads.engine.training.training import Splits, Training
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.memorization.records.ledger import Ledger


def build_training(
    config: Config, plan: ModelPlan, sources: Sources, folder: RunFolder, launch: Launch, *, fresh: bool = True
) -> Training:
    """Build everything that a run consists of, on this rank's device; `fresh`: it begins, and resumes nothing."""
    loader = training_loader(config, sources.train, launch.device, launch.rank)
    place = config.model.checkpoint if fresh else None
    given = None if place is None else read_weights(place)
    initial = build_initial_model(config, plan.num_classes, fresh=fresh, given=given)
    learner = build_learner(config, launch, plan, loader.order.num_steps, initial)
    routes = build_routes(config, learner.tapped, launch.world_size)
    clean = _evaluation_split(config, sources.train, learner, launch)
    trained = Split(loader, clean.table_MN, _ledger(config, sources.train, learner, launch))
    head_arithmetic = head_flops(config.heads, learner.dims, routes.terms.regularized, num_audit_draws(config))
    mfu = utilisation(config, plan.image_flops, head_arithmetic, launch.device, launch.world_size)
    gauges = build_gauges(launch, mfu, config.stability)
    return Training(
        run=RunSetup(config, launch, folder, RunLog(folder, config.log, learner.tapped.taps), sources),
        learner=learner,
        splits=Splits(trained, clean, _evaluation_split(config, sources.heldout, learner, launch)),
        step=TrainStep(
            learner,
            trained.table_MN,
            trained.ledger,
            routes,
            config,
            launch.rank.rank,
            timed=gauges.own_time.work.measuring,
            heads_stream=SideStream.of_device(launch.device),
        ),
        preparation=build_preparation(
            config, launch.device, loader.order.seed, Repeats.of(loader.order, launch.rank, launch.device)
        ),
        gauges=gauges,
    )


def _evaluation_split(config: Config, source: ImageSource, learner: Learner, launch: Launch) -> Split:
    table_MN = run_labels(config, source.manifest, config.heads.draws + num_audit_draws(config), launch.device)
    loader = evaluation_loader(config, source, launch.device, launch.rank)
    return Split(loader, table_MN, _ledger(config, source, learner, launch))


def _ledger(config: Config, source: ImageSource, learner: Learner, launch: Launch) -> Ledger:
    num_draws = config.heads.draws + num_audit_draws(config)
    return Ledger(source.manifest.num_samples, len(learner.dims), num_draws, launch.device)
