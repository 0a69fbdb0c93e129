"""The evaluation of saved weights on any images: loss, accuracies, calibration error and every prediction."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from rlpheads.engine.checks.device import why_no_cuda
from rlpheads.engine.checks.model import make_plan
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.ranges import range_errors
from rlpheads.engine.config.schema import Config
from rlpheads.engine.distributed.launch import choose_device
from rlpheads.engine.learner.precision import autocast
from rlpheads.engine.model.builder import build_model
from rlpheads.engine.model.initial_weights import load_weights, read_weights_file
from rlpheads.engine.model.tapped_model import TappedModel
from rlpheads.engine.offline.saved_network import classifier_outputs, load_saved_network
from rlpheads.engine.plugins.loading import load_plugins
from rlpheads.engine.runs.checkpoint import MANIFEST, read_manifest
from rlpheads.engine.runs.opened_run import RunError, open_images, read_run
from rlpheads.engine.runs.sources import Sources, open_sources
from rlpheads.engine.training.loading import evaluation_loader
from rlpheads.engine.training.preparation import build_preparation
from rlpheads.loaders.sources.datasets import ImageSource
from rlpheads.loaders.sources.verification import nothing_readable
from rlpheads.memorization.atomic_file import atomic_file
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping
from rlpheads.memorization.measures.calibration import CalibrationBins


@dataclass(frozen=True)
class EvaluationOptions:
    """Which weights, and on which images.

    Attributes:
        split: "heldout" or "train".
        epoch: of a run, the checkpoint of the end of this epoch; None: by `step`.
        step: the checkpoint of this step; None: the newest.
        ema: the moving average of a run's weights.
        device: auto, cpu or cuda.
        settings: the command line's settings, over those of the run or beside those of the file.
    """

    split: str = "heldout"
    epoch: int | None = None
    step: int | None = None
    ema: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    settings: Sequence[str] = ()


@dataclass(frozen=True)
class EvaluatedWeights:
    """What an evaluation found.

    Attributes:
        weights: which weights, in words.
        split: name of the split.
        image_size: side of the images, in pixels: `eval.image_size`, or else `data.image_size`.
        num_samples: images that were read.
        num_skipped: images that could not be read (`data.on_error` skip).
        loss: mean cross-entropy, nats.
        top1: accuracy in [0, 1].
        top5: share of images whose class is among the five likeliest.
        ece: expected calibration error, in [0, 1].
        predictions: a row for each image that was read: index, file, class, class_name, predicted, predicted_name, confidence,
            loss, hit, hit5.
    """

    weights: str
    split: str
    image_size: int
    num_samples: int
    num_skipped: int
    loss: float
    top1: float
    top5: float
    ece: float
    predictions: pa.Table

    def figures(self) -> dict[str, Any]:
        """Return everything but the predictions."""
        return {name: value for name, value in vars(self).items() if name != "predictions"}

    def write_predictions(self, path: Path) -> None:
        """Write the predictions as Parquet, whole or not at all."""
        with atomic_file(path) as temporary:
            pq.write_table(self.predictions, temporary, compression="zstd")


@dataclass(frozen=True)
class _Weights:
    """A network with its weights, the settings that prepare its images, and the images."""

    words: str
    config: Config
    sources: Sources
    model: TappedModel


def evaluate_weights(place: Path, options: EvaluationOptions) -> EvaluatedWeights:
    """Evaluate a run's weights, or those in a file, on the images of the settings.

    Args:
        place: a run folder, one of its checkpoints, or a file of weights; `config.json` beside it says of what network.
        options: which weights of a run, which images.

    Raises:
        RunError: there is no such run or checkpoint, or the images have other classes.
        ConfigError: settings that cannot be used, or images that cannot be opened.
        WeightsError: the file is of another network.
        DatasetError: no image could be read.
    """
    if options.device == "cuda" and (missing := why_no_cuda()) is not None:
        raise RunError(f"--device is cuda, but {missing}; allowed here: cpu or auto")
    weights = _of_run(place, options) if place.is_dir() else _of_file(place, options)
    source = weights.sources.train if options.split == "train" else weights.sources.heldout
    return _evaluate(weights, source, choose_device(options.device, local_rank=0))


def _of_run(place: Path, options: EvaluationOptions) -> _Weights:
    folder, step = place, options.step
    if (place / MANIFEST).is_file():  # one of its checkpoints
        folder, step = place.resolve().parent.parent, read_manifest(place)["step"]
    run = read_run(folder, options.epoch, step)
    config = run.config
    if options.settings:
        # Those of the command line alone are imported: what a run folder names is code of whoever made it.
        config = _checked(["--config", str(folder / "config.yaml"), "--plugins", "[]", *options.settings])
        sources = open_sources(config, run_listing=run.folder.listing)
        run = replace(
            run, config=replace(run.config, model=config.model)
        )  # such as one that takes other sizes of images
    else:
        sources = open_images(run, "--data.root")
    if options.ema and config.model.ema_decay is None:
        raise RunError(f"{folder} has no moving average of its weights (model.ema_decay is null); leave --ema out")
    model = load_saved_network(run, "ema" if options.ema else "backbone")
    words = f"{folder}, step {run.saved.step}" + (", averaged weights" if options.ema else "")
    return _fitting(words, config, sources, model)


def _of_file(file: Path, options: EvaluationOptions) -> _Weights:
    with tempfile.TemporaryDirectory() as folder:
        described = Path(folder) / "described.yaml"
        settings, num_classes = _described_settings(file, options.settings)
        described.write_text(yaml.safe_dump(settings))
        config = _checked(["--config", str(described), *options.settings])
    sources = open_sources(config)
    try:
        model = build_model(config, num_classes or len(sources.train.manifest.classes))
    except ValueError as error:
        raise RunError(f"{file}: {error}") from error
    told = load_weights(model.backbone, read_weights_file(file))
    if "drawn afresh" in told:
        raise RunError(
            f"{file}: its classifier is for other classes than the {len(sources.train.manifest.classes)} here"
        )
    return _fitting(str(file), config, sources, model)


def _described_settings(file: Path, given: Sequence[str]) -> tuple[dict[str, Any], int | None]:
    """Return the settings in `config.json` beside a file of weights, and the number of its classes.

    Raises:
        RunError: there is none, and the command line names no network; or it is none of timm's.
    """
    path = file.with_name("config.json")
    if not path.is_file():
        if not any(word.split("=")[0] in ("--config", "--model.name") for word in given):
            raise RunError(
                f"{file} has no config.json beside it, as rlpheads export writes it; name its network: --model.name NAME"
            )
        return {}, None
    try:
        found = parse_mapping(path.read_bytes(), {"architecture": "text", "num_classes": "count"})
    except DamagedJsonError as error:
        raise RunError(f"{path} is none of timm's: {error}") from error
    prepared = found.get("pretrained_cfg", found)
    arguments = {name: value for name, value in found.get("model_args", {}).items() if name != "num_classes"}
    model = {"name": found["architecture"], "args": arguments}
    data: dict[str, Any] = {name: list(prepared[name]) for name in ("mean", "std") if name in prepared}
    if "input_size" in prepared:
        data["image_size"] = prepared["input_size"][-1]
    if "crop_pct" in prepared:
        data["eval_crop_fraction"] = prepared["crop_pct"]
    if "interpolation" in prepared:
        data["interpolation"] = prepared["interpolation"]
    sizes = {"image_size": prepared["test_input_size"][-1]} if prepared.get("test_input_size") else {}
    return {"model": model, "data": data, "eval": sizes, "heads": {"taps": "none"}}, found["num_classes"]


def _checked(words: Sequence[str]) -> Config:
    config = parse_config(words)
    for complaint in range_errors(config):
        raise ConfigError(str(complaint))
    load_plugins(config.plugins)
    return replace(config, data=replace(config.data, partial="pad"))  # nothing is trained: few images are no fault


def _fitting(words: str, config: Config, sources: Sources, model: TappedModel) -> _Weights:
    num_classes, there = classifier_outputs(model.backbone, config.model.name), len(sources.train.manifest.classes)
    if num_classes != there:
        raise RunError(f"{words}: the network tells {num_classes} classes apart, and the images have {there}")
    make_plan(config, num_classes)  # refuses a size of images that the network does not take
    return _Weights(words, config, sources, model.eval().requires_grad_(False))


@torch.no_grad()
def _evaluate(weights: _Weights, source: ImageSource, device: torch.device) -> EvaluatedWeights:
    config, network = weights.config, weights.model.backbone.to(device)
    preparation = build_preparation(config, device, seed=0)
    bins, columns, num_skipped = CalibrationBins(device=device), [], 0
    for delivered in evaluation_loader(config, source, device):
        batch = preparation.for_evaluation(delivered)
        num_skipped += len(batch.skipped)
        with autocast(device, config.precision):
            logits_BC = network(batch.images).float()
        is_real_B = batch.index >= 0
        confidence_B, predicted_B = logits_BC.softmax(-1).max(-1)
        hit_B = predicted_B == batch.targets
        bins.add(confidence_B, hit_B, is_real_B)
        likeliest = logits_BC.topk(min(5, logits_BC.shape[1])).indices
        rows = {
            "index": batch.index,
            "class": batch.targets,
            "predicted": predicted_B,
            "confidence": confidence_B,
            "loss": F.cross_entropy(logits_BC, batch.targets, reduction="none"),
            "hit": hit_B,
            "hit5": (likeliest == batch.targets[:, None]).any(1),
        }
        columns.append({name: values[is_real_B].cpu() for name, values in rows.items()})
    table = _predictions(columns, source)
    if not table.num_rows:
        raise nothing_readable(source.manifest)
    means = {name: float(table.column(name).to_numpy().astype(float).mean()) for name in ("loss", "hit", "hit5")}
    return EvaluatedWeights(
        weights=weights.words,
        split=source.manifest.split,
        image_size=config.evaluation_size,
        num_samples=table.num_rows,
        num_skipped=num_skipped,
        loss=means["loss"],
        top1=means["hit"],
        top5=means["hit5"],
        ece=float(bins.error(table.num_rows)),
        predictions=table,
    )


def _predictions(columns: list[dict[str, Tensor]], source: ImageSource) -> pa.Table:
    """Return the rows of all batches, with file and class names, in canonical order."""
    whole = {name: torch.cat([each[name] for each in columns]).numpy() for name in columns[0]}
    index, manifest = whole["index"], source.manifest
    names = [os.fsencode(manifest.name(int(number))).decode(errors="backslashreplace") for number in index]
    classes = pa.array([os.fsencode(name).decode(errors="backslashreplace") for name in manifest.classes])
    table = pa.table(
        {
            "index": index,
            "file": names,
            "class": whole["class"],
            "class_name": classes.take(pa.array(whole["class"])),
            "predicted": whole["predicted"],
            "predicted_name": classes.take(pa.array(whole["predicted"])),
            **{name: whole[name] for name in ("confidence", "loss", "hit", "hit5")},
        }
    )
    return table.sort_by("index")


def figures_json(found: EvaluatedWeights) -> str:
    """Return the figures as JSON text."""
    return json.dumps(found.figures(), indent=2)
