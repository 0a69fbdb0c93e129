"""The wiring of a run: from a configuration, images and a folder to everything that the loop drives."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.learner.evaluation import Split
from rlpheads.engine.learner.learner import Learner, build_learner, num_audit_draws
from rlpheads.engine.learner.step import Routes, TrainStep, build_routes
from rlpheads.engine.model.flops import Utilisation, head_flops, utilisation
from rlpheads.engine.model.plan import ModelPlan
from rlpheads.engine.runs import checkpoint
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.log import RunLog
from rlpheads.engine.runs.resume import Position, ResumePoint, identity
from rlpheads.engine.runs.sources import Sources
from rlpheads.engine.training.clock import Clock
from rlpheads.engine.training.device_wait import DeviceWait
from rlpheads.engine.training.label_choice import run_labels
from rlpheads.engine.training.loading import augment_spec, evaluation_loader, mix_spec, training_loader
from rlpheads.engine.training.meters import Meters
from rlpheads.engine.training.skipped_images import SkipNotices
from rlpheads.loaders.augment.mixing import Mixer
from rlpheads.loaders.augment.normalize import Normalize
from rlpheads.loaders.augment.pipeline import Augment
from rlpheads.loaders.contract.batch import Batch
from rlpheads.loaders.contract.loader import Loader
from rlpheads.loaders.contract.order import Order
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.memorization.baselines.head_only import least_squares_rla
from rlpheads.memorization.records.ledger import Ledger


@dataclass
class Training:
    """A run, ready to go from `position`."""

    config: Config
    launch: Launch
    folder: RunFolder
    log: RunLog
    sources: Sources
    learner: Learner
    loader: Loader
    running: Ledger
    clean: Split
    heldout: Split
    routes: Routes
    normalize: nn.Module
    augment: Augment
    mixer: Mixer
    meters: Meters
    clock: Clock
    utilisation: Utilisation
    position: Position = Position()
    saved: Position | None = None
    notices: SkipNotices = field(default_factory=SkipNotices)

    @property
    def step(self) -> TrainStep:
        """The training step, with the regulariser's present λ."""
        return TrainStep(
            learner=self.learner,
            table_MN=self.clean.table_MN,
            ledger=self.running,
            routes=self.routes,
            config=self.config,
            rank=self.launch.rank.rank,
        )

    @property
    def order(self) -> Order:
        """The order of the training samples."""
        return self.loader.order

    @property
    def epoch_has_steps_left(self) -> bool:
        """Whether the position's epoch is not trained to its end."""
        return self.order.step_at(self.position.consumed) < self.order.num_steps

    @property
    def reached_max_steps(self) -> bool:
        """Whether `max_steps` allows no further step."""
        return self.config.max_steps is not None and self.num_updates >= self.config.max_steps

    @property
    def num_updates(self) -> int:
        """Optimizer steps taken."""
        return self.position.epoch * self.order.num_steps + self.order.step_at(self.position.consumed)

    @property
    def rates(self) -> dict[str, float]:
        """How fast the training goes: images per second, share of waiting for data, and MFU where it is known."""
        rate = self.clock.images_per_second
        return {"images_per_second": rate, "data_wait": self.clock.data_wait, **self.utilisation.figures(rate)}

    @property
    def baselines_T(self) -> list[float]:  # noqa: N802 - shape suffix
        """What a least-squares head alone reaches at every tap, on features that know nothing of the labels."""
        manifest = self.sources.train.manifest
        num_samples = manifest.num_samples / self.config.heads.num_blocks(len(manifest.classes))
        return [least_squares_rla(self.config.heads.num_labels, num_samples / dim) for dim in self.learner.dims]

    def prepare(self, batch: Batch) -> Batch:
        """Announce what could not be read of a batch on the device, and return the batch with normalised images."""
        self.notices.announce(batch.skipped)
        return batch.with_images(self.normalize(batch.images))

    def prepare_training(self, batch: Batch) -> Batch:
        """Do the same with a training batch of the position's epoch, whose images are augmented and mixed too."""
        self.notices.announce(batch.skipped)
        epoch, step = self.position.epoch, self.order.step_at(self.position.consumed)
        augmented = batch.with_images(self.augment(batch.images, batch.index, epoch))
        return cast("Batch", self.mixer(augmented, epoch, step))

    def save(self) -> None:
        """Write a checkpoint of this moment. Collective."""
        state = self.learner.state() | {"ledger": self._merged_ledger()}
        facts = {"position": asdict(self.position), "regularizer_factor": self.routes.weights.factor}
        facts |= {"world_size": self.launch.world_size}
        facts |= identity(self.config, self.sources)
        keep = self.config.checkpoint.keep
        checkpoint.save(self.folder.checkpoints, self.num_updates, state, facts, self.launch, keep)
        self.saved = self.position

    def resume(self, point: ResumePoint) -> None:
        """Take up the state of a checkpoint. Collective."""
        state = self.learner.state() | {"ledger": self.running.tensors()}
        checkpoint.load(point.checkpoint, state, self.launch)
        self.learner.load_optimizers(state)
        if not self.launch.is_main:
            self.running.reset()  # the ranks' rows were merged when they were saved
        self.position = self.saved = point.position
        self.set_factor(point.factor)

    def set_factor(self, factor: float) -> None:
        """Set the regulariser's λ."""
        self.routes = replace(self.routes, weights=replace(self.routes.weights, factor=factor))

    def _merged_ledger(self) -> dict[str, Tensor]:
        tensors = self.running.tensors()
        if self.launch.world_size == 1:
            return tensors
        merged = {name: tensor.clone() for name, tensor in tensors.items()}
        for tensor in merged.values():
            torch.distributed.all_reduce(tensor)
        return merged


def build_training(
    config: Config, plan: ModelPlan, sources: Sources, folder: RunFolder, launch: Launch, *, fresh: bool = True
) -> Training:
    """Build everything that a run consists of, on this rank's device; `fresh`: it begins, and resumes nothing."""
    loader = training_loader(config, sources.train, launch.device, launch.rank)
    order = loader.order
    learner = build_learner(config, launch, plan, order.num_steps, fresh=fresh)
    routes = build_routes(config, learner.tapped, launch.world_size)
    heads = head_flops(config.heads, learner.dims, routes.terms.regularized, num_audit_draws(config))
    normalize = Normalize(config.data.mean, config.data.std)
    augment = Augment(augment_spec(config.data), normalize, order.seed)
    return Training(
        config=config,
        launch=launch,
        folder=folder,
        log=RunLog(folder, config.log, learner.tapped.taps),
        sources=sources,
        learner=learner,
        loader=loader,
        running=_ledger(config, sources.train, learner, launch),
        clean=_split(config, sources.train, learner, launch),
        heldout=_split(config, sources.heldout, learner, launch),
        routes=routes,
        normalize=normalize.to(launch.device),
        augment=augment.to(launch.device),
        mixer=Mixer(mix_spec(config.data), order.seed).to(launch.device),
        meters=Meters(launch.device, launch.world_size),
        clock=Clock(device_wait=None if launch.device.type == "cpu" else DeviceWait(launch.device)),
        utilisation=utilisation(config, plan.image_flops, heads, launch.device, launch.world_size),
    )


def _split(config: Config, source: ImageSource, learner: Learner, launch: Launch) -> Split:
    manifest = source.manifest
    table = run_labels(config, manifest, config.heads.draws + num_audit_draws(config), launch.device)
    loader = evaluation_loader(config, source, launch.device, launch.rank)
    return Split(loader, table, _ledger(config, source, learner, launch))


def _ledger(config: Config, source: ImageSource, learner: Learner, launch: Launch) -> Ledger:
    return Ledger(
        source.manifest.num_samples, len(learner.dims), config.heads.draws + num_audit_draws(config), launch.device
    )
