"""A run folder opened for reading: its settings, its images and the weights of one checkpoint, without training anything."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import ConfigError, UserError, nearest
from rlpheads.engine.config.files import read_config_file
from rlpheads.engine.config.ranges import range_errors
from rlpheads.engine.config.schema import Config
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.model.tapped_model import TappedModel
from rlpheads.engine.plugins.loading import load_plugins
from rlpheads.engine.runs.checkpoint import CheckpointError, list_whole, verify
from rlpheads.engine.runs.checkpoint_metadata import fill_state
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.resume import check_images
from rlpheads.engine.runs.run_manifest import Position, read_run_manifest
from rlpheads.engine.runs.sources import Sources, open_sources


class RunError(UserError):
    """A run folder, a checkpoint or the images cannot be read as asked; the message says what is there."""


@dataclass(frozen=True)
class SavedState:
    """A checkpoint of a run.

    Attributes:
        path: its folder.
        step: optimizer steps taken.
        position: whole epochs trained, and samples of the unfinished one.
        factor: the regulariser's λ at that moment, which `regularizer.target` moves.
    """

    path: Path
    step: int
    position: Position
    factor: float

    @property
    def epoch(self) -> int | None:
        """The epoch at whose end it was written; None where that is in the middle of one, or before the first."""
        return self.position.epoch - 1 if self.position.consumed == 0 and self.position.epoch else None


@dataclass(frozen=True)
class OpenedRun:
    """A run as it was at one checkpoint.

    Attributes:
        folder: the run folder; its lock is not taken.
        config: the run's own settings (`data.root` may be another).
        sources: the very images that it was trained and evaluated on.
        saved: the checkpoint.
    """

    folder: RunFolder
    config: Config
    sources: Sources
    saved: SavedState

    def load_model(self) -> TappedModel:
        """Build the model on the CPU with the checkpoint's weights (the live ones, not their average), for evaluation."""
        model = build_saved_model(self.folder, self.config, len(self.sources.train.manifest.classes))
        self.load_weights("backbone", model)
        return model.eval().requires_grad_(False)

    def load_weights(self, part: str, module: nn.Module) -> None:
        """Fill a module with the checkpoint's weights of one part (`backbone`, `heads`, ...), in place."""
        state = {part: module.state_dict()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is: one process reads all
            try:
                fill_state(self.saved.path, state, no_dist=True)
            except CheckpointException as error:  # of many lines, with a traceback
                raise RunError(
                    f"{self.saved.path} does not hold the weights of {part} that its manifest promises; name another "
                    "checkpoint with --epoch"
                ) from error


def build_saved_model(folder: RunFolder, config: Config, num_classes: int) -> TappedModel:
    """Build the model of a run's settings, with other weights than its own.

    Raises:
        RunError: the settings name no model that can be built.
    """
    try:
        return build_model(config, num_classes)
    except ValueError as error:
        raise RunError(f"{folder.path / 'config.yaml'}: {error}{_plugins_hint(folder, config)}") from error


@dataclass(frozen=True)
class SavedRun:
    """A run folder and one of its checkpoints, for whoever needs no images.

    Attributes:
        folder: the run folder; its lock is not taken.
        config: the run's own settings.
        saved: the checkpoint.
    """

    folder: RunFolder
    config: Config
    saved: SavedState


def read_run(
    path: Path, epoch: int | None = None, step: int | None = None, root: Path | None = None, *, plugins: bool = False
) -> SavedRun:
    """Read the settings of the run folder `path`, and find its checkpoint at the end of `epoch`, at `step`, or the newest.

    `root` is where the images are now, if they were moved. The modules that the settings name in `plugins` are imported where
    `plugins` says so: a run folder may be a stranger's.

    Raises:
        RunError: there is no such run, checkpoint, epoch or step.
        ConfigError: the run's settings cannot be read, or a number is out of its range.
        CheckpointError: the checkpoint's manifest is damaged.
    """
    if not (path / "config.yaml").is_file():
        raise RunError(describe_missing_run(path))
    folder = RunFolder(path)
    config = parse_config(["--config", str(path / "config.yaml")])
    for complaint in range_errors(config):
        raise ConfigError(f"{path / 'config.yaml'}: {complaint}")
    if plugins:
        load_plugins(config.plugins)
    else:
        config = replace(config, plugins=[])
    if root is not None:
        config = replace(config, data=replace(config.data, root=str(root)))
    return SavedRun(folder, config, _choose_checkpoint(folder, epoch, step))


def open_images(run: SavedRun, flag: str = "--root") -> Sources:
    """List the very images that a run was trained and evaluated on.

    `flag`: by which the command that asks is told where they are now.

    Raises:
        RunError: the images are others.
        ConfigError: the images cannot be opened.
    """
    try:
        sources = open_sources(run.config, run_listing=run.folder.listing)
    except ConfigError as error:
        if hint := _plugins_hint(run.folder, run.config):
            raise ConfigError(f"{error}{hint}") from error
        if run.config.data.root is None:
            raise
        raise ConfigError(f"{error}; if the images were moved, name their folder: {flag} FOLDER") from error
    try:
        check_images(sources, read_run_manifest(run.saved.path))
    except CheckpointError as error:
        raise RunError(str(error)) from error
    return sources


def _plugins_hint(folder: RunFolder, config: Config) -> str:
    """Say which plug-ins a run names that were not imported."""
    named = read_config_file(str(folder.path / "config.yaml")).get("plugins") or []
    if not named or config.plugins:
        return ""
    return f"; this run names the plug-ins {', '.join(named)}, code of whoever made it: --plugins imports them"


def open_checkpoint(
    path: Path, epoch: int | None = None, root: Path | None = None, *, plugins: bool = False
) -> OpenedRun:
    """Open the run folder `path`, with its images, at the end of `epoch` or at its newest checkpoint.

    Args:
        path: the run folder.
        epoch: number of a finished epoch, from 0, whose checkpoint is still kept.
        root: where the images are now, if they were moved.
        plugins: import the modules that the run's settings name in `plugins`, which may be a stranger's code.

    Raises:
        RunError: there is no such run, checkpoint or epoch, or the images are others.
        ConfigError: the run's settings cannot be read, or the images cannot be opened.
        CheckpointError: the checkpoint is damaged.
    """
    run = read_run(path, epoch, root=root, plugins=plugins)
    sources = open_images(run)
    try:
        verify(run.saved.path, read_run_manifest(run.saved.path).files)
    except CheckpointError as error:
        raise RunError(str(error)) from error
    return OpenedRun(run.folder, run.config, sources, run.saved)


def list_checkpoints(folder: RunFolder) -> list[SavedState]:
    """Return the whole checkpoints of a run, the oldest first."""
    manifests = [(path, read_run_manifest(path)) for path in list_whole(folder.checkpoints)]
    return [SavedState(path, manifest.step, manifest.position, manifest.factor) for path, manifest in manifests]


def _choose_checkpoint(folder: RunFolder, epoch: int | None, step: int | None) -> SavedState:
    kept = list_checkpoints(folder)
    if not kept:
        raise RunError(
            f"{folder.path} has no whole checkpoint in {folder.checkpoints.name}/; let the run write one first"
        )
    if step is not None:
        return _at_step(folder, kept, step)
    if epoch is None:
        return kept[-1]
    chosen = next((saved for saved in kept if saved.epoch == epoch), None)
    if chosen is None:
        there = ", ".join(str(saved.epoch) for saved in kept if saved.epoch is not None) or "none"
        raise RunError(
            f"{folder.path} has no checkpoint of the end of epoch {epoch}; kept are the ends of epochs: {there}. "
            "More are kept with --checkpoint.keep and --checkpoint.every"
        )
    return chosen


def _at_step(folder: RunFolder, kept: list[SavedState], step: int) -> SavedState:
    chosen = next((saved for saved in kept if saved.step == step), None)
    if chosen is None:
        there = ", ".join(str(saved.step) for saved in kept)
        raise RunError(f"{folder.path} has no checkpoint of step {step}; kept are those of steps: {there}")
    return chosen


def describe_missing_run(path: Path) -> str:
    """Say why a folder is no run folder, and which run may have been meant."""
    if not path.is_dir():
        siblings = [each.parent.name for each in path.parent.glob("*/config.yaml")]
        match = nearest(path.name, siblings)
        return f"there is no run folder {path}" + (f"; nearest: {path.parent / match}" if match else "")
    runs = sorted(each.parent.name for each in path.glob("*/config.yaml"))
    inside = f"; the folder holds these runs: {', '.join(runs)}" if runs else ""
    return f"{path} is no run folder (it has no config.yaml){inside}"
