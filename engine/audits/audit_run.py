"""The audit of a run: probes refitted to the features of one checkpoint, and the file of what they found."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from rlpheads.engine.audits.audit_features import FeatureReader, FeatureStore, SplitFeatures, parse_places
from rlpheads.engine.checks.device import why_no_cuda
from rlpheads.engine.config.errors import UserError, nearest
from rlpheads.engine.config.streams import stream_seed
from rlpheads.engine.distributed.launch import choose_device
from rlpheads.engine.runs.folder import json_text, write_atomically
from rlpheads.engine.runs.opened_run import OpenedRun, RunError
from rlpheads.engine.training.label_choice import run_labels
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.sources.canary_source import CanarySource
from rlpheads.memorization.audit.audit_labels import MIN_FRESH_DRAWS, AuditLabels, draw_audit_labels
from rlpheads.memorization.audit.feature_audit import FeatureAudit, HeadControl, audit_features, head_control
from rlpheads.memorization.audit.fresh_draws import DEFAULT_DRAWS, least_squares_draws
from rlpheads.memorization.baselines.head_only import NEAR_PERFECT_FIT
from rlpheads.memorization.probes.class_probe import (
    AnswerAudit,
    ClassAnswers,
    ClassProbeAudit,
    ImageClasses,
    audit_answers,
    audit_class_probe,
    fit_class_probe,
)
from rlpheads.memorization.probes.feature_moments import FeatureError
from rlpheads.memorization.probes.probe_heads import PROBES, ClassBlockProbe, LeastSquaresProbe, Probe, TwoLayerProbe

_LONGEST_NAME = 100
"""Characters of taps that stand in a file's name as they are."""
AUDIT_ERRORS = (UserError, DatasetError, FeatureError)
"""What keeps a run from being audited, each with the one message that its user needs."""


@dataclass(frozen=True)
class AuditOptions:
    """How a run is audited.

    Attributes:
        taps: places, as `rlpheads.engine.audits.audit_features.parse_places` reads them; None: the run's own taps.
        probe: kind of probe.
        hidden: hidden units of the two-layer probe; None: its default.
        draws: fresh draws of the labels; None: for least squares as many as a half-width of half a point needs, within a
            stated cost (`rlpheads.memorization.audit.fresh_draws`), for other probes 8.
        level: nominal coverage of the intervals.
        device: where model and probes run.
    """

    taps: str | None = None
    probe: str = "least_squares"
    hidden: int | None = None
    draws: int | None = None
    level: float = 0.95
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def check(self) -> None:
        """Raise RunError for a value out of its range, or a device that is not here."""
        if self.draws is not None and self.draws < MIN_FRESH_DRAWS:
            raise RunError(f"--draws is {self.draws}; intervals across draws need at least {MIN_FRESH_DRAWS}")
        if not 0 < self.level < 1:
            raise RunError(f"--level is {self.level}; it must lie strictly between 0 and 1")
        if self.device == "cuda" and (missing := why_no_cuda()) is not None:
            raise RunError(f"--device is cuda, but {missing}; allowed here: cpu or auto")


@dataclass(frozen=True)
class TapAudit:
    """What was found at one place.

    Attributes:
        tap: its name.
        num_features: D.
        control: what the probe reaches by itself.
        found: what it reached on these features.
        classes: what a least-squares probe of the classes reached on them.
    """

    tap: str
    num_features: int
    control: HeadControl
    found: FeatureAudit
    classes: ClassProbeAudit


@dataclass(frozen=True)
class RunAudit:
    """What the audit of one checkpoint found.

    Attributes:
        run: name of the run.
        checkpoint: name of the checkpoint's folder.
        step: optimizer steps taken.
        epoch: the epoch at whose end it was written, or None.
        probe: kind of probe, with its settings.
        num_labels: K.
        num_own_draws: M, draws of the run's own labels.
        num_fresh_draws: F.
        num_train: N, training samples behind own and fresh accuracy.
        num_equal: E, samples on either side of the membership excess.
        num_skipped: images of both splits that could not be read and were left out.
        network: how often the network's own answers are right on the same images.
        regularizer_factor: λ at the checkpoint.
        joint: μ of the run.
        fingerprint: of the training images.
        options: how it was audited.
        taps: what was found, in the order of depth.
    """

    run: str
    checkpoint: str
    step: int
    epoch: int | None
    probe: dict[str, Any]
    num_labels: int
    num_own_draws: int
    num_fresh_draws: int
    num_train: int
    num_equal: int
    num_skipped: int
    network: AnswerAudit
    regularizer_factor: float
    joint: float
    fingerprint: str
    options: AuditOptions
    taps: tuple[TapAudit, ...]

    @property
    def chance(self) -> float:
        """1/K."""
        return 1 / self.num_labels

    @property
    def is_saturated(self) -> bool:
        """Whether the probe fits nearly every fresh label somewhere, so that it can show no excess there."""
        fits = [values for tap in self.taps for values in (tap.found.fresh_F, tap.found.members_F, tap.found.heldout_F)]
        return any(fmean(values) >= NEAR_PERFECT_FIT for values in fits)

    def to_json(self) -> str:
        """Return everything as JSON text."""
        return json_text(asdict(self) | {"chance": self.chance}, indent=2)


def audit_run(run: OpenedRun, options: AuditOptions) -> RunAudit:
    """Read the features of the run's checkpoint and fit the probes.

    Raises:
        RunError: an unknown probe or place, a value out of its range, or no room for the features.
    """
    options.check()
    probe: Probe = make_probe(options)
    if run.config.heads.balance == "per_class":
        probe = ClassBlockProbe(probe)
    device = choose_device(options.device, local_rank=0)
    model = run.load_model().to(device)
    reader = FeatureReader(model, parse_places(options.taps, model), norm=run.config.heads.norm)
    with FeatureStore(run.config, reader, device) as store:
        train, heldout = store.read(run.sources.train), store.read(run.sources.heldout)
        classes, network = image_classes(run, train, heldout), _read_answers(train, heldout)
        level = 1 - (1 - options.level) / len(reader.places)  # Bonferroni: the intervals hold at all taps together
        num_draws = options.draws or _default_draws(run, train, heldout, probe, level)
        controls: dict[int, HeadControl] = {}
        taps = []
        for place, train_table, heldout_table in zip(reader.places, train.tables, heldout.tables, strict=True):
            labels = audit_labels(run, num_draws, train.is_read_N, heldout.is_read_N, str(place))
            num_features = train_table.table_ND.shape[1]
            if num_features not in controls:
                controls[num_features] = head_control(labels, num_features, probe)
            found = audit_features(train_table, heldout_table, labels, probe, level)
            answers = fit_class_probe(train_table, heldout_table, classes)
            of_classes = audit_class_probe(answers, network, classes, level)
            taps.append(TapAudit(str(place), num_features, controls[num_features], found, of_classes))
    return RunAudit(
        run=run.config.run.name,
        checkpoint=run.saved.path.name,
        step=run.saved.step,
        epoch=run.saved.epoch,
        probe=_probe_settings(make_probe(options)),
        num_labels=labels.num_labels,
        num_own_draws=len(labels.own_MN),
        num_fresh_draws=num_draws,
        num_train=labels.own_MN.shape[-1],
        num_equal=len(labels.members_E),
        num_skipped=int((~train.is_read_N).sum() + (~heldout.is_read_N).sum()),
        network=audit_answers(network, classes, options.level),
        regularizer_factor=run.saved.factor,
        joint=run.config.heads.joint,
        fingerprint=run.sources.train.manifest.fingerprint,
        options=options,
        taps=tuple(taps),
    )


def make_probe(options: AuditOptions) -> Probe:
    """Make the probe that the options name.

    Raises:
        RunError: there is no such probe, or it has no hidden layer, or that many hidden units cannot be.
    """
    if options.probe not in PROBES:
        close = nearest(options.probe, PROBES)
        hint = f"; nearest: {close}" if close else ""
        raise RunError(f"--probe: there is no probe {options.probe!r}; allowed: {', '.join(PROBES)}{hint}")
    kind = PROBES[options.probe]
    if options.hidden is None:
        return kind()
    if kind is not TwoLayerProbe:
        raise RunError(f"--hidden goes with --probe {TwoLayerProbe.name}; {options.probe} has no hidden layer")
    if options.hidden < 1:
        raise RunError(f"--hidden is {options.hidden}; it must be at least 1")
    return TwoLayerProbe(hidden=options.hidden)


def audit_labels(run: OpenedRun, num_draws: int, in_train_N: Tensor, in_heldout_N: Tensor, place: str) -> AuditLabels:
    """Return the run's own labels of its training images beside fresh ones, which no run of this seed was trained with.

    Args:
        run: the run.
        num_draws: F.
        in_train_N: bool, which training images are audited.
        in_heldout_N: bool, which held-out images are.
        place: name of the tap. Taps, epochs and runs have fresh labels of their own: with shared ones a chance excess would
            stand at all of them.
    """
    heads, train, heldout = run.config.heads, run.sources.train.manifest, run.sources.heldout.manifest
    own_MN = run_labels(run.config, train, heads.draws)
    classes = None
    if heads.balance == "per_class":
        classes = torch.from_numpy(train.targets)[in_train_N], torch.from_numpy(heldout.targets)[in_heldout_N]
    return draw_audit_labels(
        own_MN[:, in_train_N.to(own_MN.device)],
        int(in_heldout_N.sum()),
        heads.num_labels,
        num_draws=num_draws,
        seed=stream_seed(run.config.seed, f"refitted probes: {run.config.run.name}, {run.saved.step}, {place}"),
        balance=heads.label_balance,
        classes=classes,
    )


def image_classes(run: OpenedRun, train: SplitFeatures, heldout: SplitFeatures) -> ImageClasses:
    """Return the classes of the images that were read, and which training images were given a wrong one."""
    source = run.sources.train
    given_N, true_N = torch.from_numpy(source.manifest.targets), torch.from_numpy(source.manifest.targets.copy())
    if isinstance(source, CanarySource):
        true_N[torch.from_numpy(source.truth.index)] = torch.from_numpy(source.truth.true_class)
    given_N, true_N = given_N[train.is_read_N], true_N[train.is_read_N]
    mislabelled_P = torch.nonzero(given_N != true_N)[:, 0]
    return ImageClasses(
        given_N=given_N,
        heldout_H=torch.from_numpy(run.sources.heldout.manifest.targets)[heldout.is_read_N],
        mislabelled_P=mislabelled_P,
        true_P=true_N[mislabelled_P],
        num_classes=len(source.manifest.classes),
    )


def _read_answers(train: SplitFeatures, heldout: SplitFeatures) -> ClassAnswers:
    """Return the network's answers for the images that could be read."""
    return ClassAnswers(train.answer_N[train.is_read_N], heldout.answer_N[heldout.is_read_N])


def _default_draws(run: OpenedRun, train: SplitFeatures, heldout: SplitFeatures, probe: Probe, level: float) -> int:
    """Return F where the options leave it open."""
    if not isinstance(probe, LeastSquaresProbe):
        return DEFAULT_DRAWS
    num_samples, num_heldout = int(train.is_read_N.sum()), int(heldout.is_read_N.sum())
    num_features = max(table.table_ND.shape[1] for table in train.tables)
    num_equal = min(num_samples, num_heldout)
    return least_squares_draws(num_samples, num_equal, num_features, run.config.heads.num_labels, level)


def write_audit(run: OpenedRun, audit: RunAudit) -> Path:
    """Write what was found into the run folder in one move, over an older audit of that checkpoint, probe and taps."""
    path = audit_path(run, audit.options)
    write_atomically(path, audit.to_json())
    return path


def audit_path(run: OpenedRun, options: AuditOptions) -> Path:
    """Return where an audit of a run's checkpoint is written: `audit/STEP_PROBE.json`; of other taps `STEP_PROBE_TAPS.json`."""
    name = f"{run.saved.path.name}_{options.probe}"
    if options.taps is not None:
        taps = re.sub(r"[^\w.,-]", "", options.taps)
        name += f"_{taps}" if len(taps) <= _LONGEST_NAME else f"_{hashlib.sha256(taps.encode()).hexdigest()[:16]}"
    return run.folder.path / "audit" / f"{name}.json"


def _probe_settings(probe: Probe) -> dict[str, Any]:
    """Return the probe's name and settings."""
    return {field.name: getattr(probe, field.name) for field in fields(probe)}  # type: ignore[arg-type]
