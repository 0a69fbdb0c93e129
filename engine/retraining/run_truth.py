"""The ground truth of a finished run: its networks trained where they are missing, and its scores judged by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rlpheads.engine.learner.learner import num_parameters
from rlpheads.engine.retraining.epoch_images import EpochImages
from rlpheads.engine.retraining.stacked_networks import RetrainingError
from rlpheads.engine.retraining.subset_training import SubsetPlan, check_retrainable, train_on_subsets
from rlpheads.engine.retraining.truth_record import TruthIdentity, TruthRecord
from rlpheads.engine.retraining.truth_report import RunTruth, judge_scores
from rlpheads.engine.runs.opened_run import SavedRun, build_saved_model, open_images
from rlpheads.engine.runs.sources import Sources
from rlpheads.memorization.measures.sample_history import gather_history, sample_measures
from rlpheads.memorization.records.ledger_file import read_ledger

TRUTH_FOLDER, TRUTH_FILE = "truth", "truth.json"


class RetrainedRun:
    """A run whose networks are trained again on subsets of its images.

    Args:
        run: its folder and settings.
        fraction: of the images that each network is trained on.
        device: where.

    Raises:
        RetrainingError: its settings cannot be retrained.
    """

    def __init__(self, run: SavedRun, fraction: float, device: torch.device):
        check_retrainable(run.config)
        self._run, self._device = run, device
        self._sources: Sources = open_images(run)
        manifest = self._sources.train.manifest
        self._plan = SubsetPlan(run.config.seed, manifest.num_samples, fraction)
        identity = TruthIdentity(manifest.fingerprint, run.config.seed, fraction)
        self._record = TruthRecord(run.folder.path / TRUTH_FOLDER, identity, manifest.num_samples)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._run.folder.path

    def num_missing(self, num_networks: int) -> int:
        """Return how many of the first `num_networks` are still to be trained."""
        return sum(map(len, self._record.missing(num_networks, 1)))

    def train_missing(self, num_networks: int, at_once: int, advance: Callable[[int], object]) -> None:
        """Train what is missing of the first `num_networks`, some at once; each group is kept as soon as it is trained.

        `advance` is called with the epochs, times networks, that were trained.
        """
        groups = self._record.missing(num_networks, at_once)
        if not groups:
            return
        self._record.make_folder()
        config, manifest = self._run.config, self._sources.train.manifest
        images = EpochImages(config, self._sources.train, self._device)
        targets_N = torch.from_numpy(manifest.targets).to(self._device)
        for numbers in groups:
            found = train_on_subsets(config, self._plan, images, targets_N, len(manifest.classes), numbers, advance)
            self._record.add(found)

    def judge(self, phase: str) -> RunTruth:
        """Compare the scores of the run's ledgers of one phase with the networks that are there.

        Raises:
            RetrainingError: there are no networks, or no ledgers of this phase.
            LedgerError: a ledger is damaged.
        """
        paths = sorted(self.folder.glob(f"ledger/epoch=*/{phase}.parquet"))
        if not paths:
            raise RetrainingError(f"{self.folder} has no {phase} ledger; train with --ledger.every 1")
        scores = sample_measures(gather_history(map(read_ledger, paths)))
        network = build_saved_model(self._run.folder, self._run.config, len(self._sources.train.manifest.classes))
        return judge_scores(self.folder.name, num_parameters(network), self._record.read(), scores)
