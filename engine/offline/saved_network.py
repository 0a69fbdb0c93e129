"""The network of a saved run with the weights of its checkpoint, whatever the images are now."""

from __future__ import annotations

import torch
from torch import nn

from rlpheads.engine.model.initial_weights import classifier_names
from rlpheads.engine.model.tapped_model import TappedModel
from rlpheads.engine.runs.checkpoint import verify
from rlpheads.engine.runs.checkpoint_metadata import read_tensors
from rlpheads.engine.runs.opened_run import RunError, SavedRun, build_saved_model
from rlpheads.engine.runs.run_manifest import read_run_manifest


def load_saved_network(run: SavedRun, part: str) -> TappedModel:
    """Build the network on the CPU with a checkpoint's weights; the number of classes is that of the weights.

    Args:
        run: a run and one of its checkpoints.
        part: "backbone", the live weights, or "ema", their moving average.

    Raises:
        CheckpointError: the checkpoint is damaged.
        RunError: the settings name no model that can be built, or another than the checkpoint's.
    """
    verify(run.saved.path, read_run_manifest(run.saved.path).files)
    tensors = read_tensors(run.saved.path, f"{part}.backbone.")
    with torch.device("meta"):
        name = _classifier_name(build_saved_model(run.folder, run.config, 2).backbone, run.config.model.name)
    model = build_saved_model(run.folder, run.config, len(tensors[f"{name}.weight"]))
    try:
        model.backbone.load_state_dict(tensors)
    except RuntimeError as error:
        given = f"{run.config.model.name} with model.args {run.config.model.args}"
        raise RunError(f"{run.saved.path}: its weights are not those of {given}: {error}") from error
    return model


def classifier_outputs(backbone: nn.Module, name: str) -> int:
    """Return how many classes the last layer of the model called `name` tells apart.

    Raises:
        RunError: it does not say which layer that is.
    """
    return len(backbone.get_parameter(f"{_classifier_name(backbone, name)}.weight"))


def _classifier_name(backbone: nn.Module, name: str) -> str:
    found = next(classifier_names(backbone), None)
    if found is None:
        raise RunError(f"{name} has no get_classifier() that gives its last layer, as timm's models have")
    return found
