"""Weights of the network alone: written as safetensors files, and found in a file, a run folder or one of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from rlpheads.engine.model.initial_weights import SUFFIXES, SavedWeights, WeightsError, read_weights_file
from rlpheads.engine.runs.checkpoint import MANIFEST, CheckpointError, DamagedCheckpointError, list_whole, verify
from rlpheads.engine.runs.folder import RunFolder
from rlpheads.engine.runs.run_manifest import read_run_manifest
from rlpheads.memorization.atomic_file import atomic_file

LAST_WEIGHTS, LAST_AVERAGED_WEIGHTS = "last.safetensors", "last_ema.safetensors"
"""Files in the folder `weights` of a run that ended: its weights, and their moving average where it keeps one."""
_PARTS = {"ema.backbone.": ", averaged", "backbone.backbone.": ""}
"""Where a checkpoint holds a network, the average before the live one, and what is told of that."""


def write_weights(path: Path, network: nn.Module, facts: Mapping[str, Any]) -> None:
    """Write a network's weights and buffers, whole or not at all.

    Args:
        path: the file; an older one is replaced.
        network: on any device; its own names are those in the file.
        facts: what is told of them, as text, in the file's header.
    """
    # copies: tied weights are two names of one tensor, which the format refuses
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in network.state_dict().items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={name: str(value) for name, value in facts.items()})


def read_weights(place: str) -> SavedWeights:
    """Read the weights that a place means: a file's, a checkpoint's, or those that a run ended with or saved last.

    Averaged weights come before live ones, as in timm's files. A checkpoint's files are compared with their hashes first.

    Raises:
        WeightsError: there are none, or they are incomplete or damaged; the message says what is there.
    """
    path = Path(place)
    if not path.is_dir():
        return read_weights_file(path)
    if (path / MANIFEST).is_file():
        return _read_checkpoint(path)
    if not (path / "config.yaml").is_file():
        raise WeightsError(f"{path} is {_no_run_in_words(path)}")
    folder = RunFolder(path)
    for name in (LAST_AVERAGED_WEIGHTS, LAST_WEIGHTS):
        if (folder.weights / name).is_file():
            return read_weights_file(folder.weights / name)
    try:
        whole = list_whole(folder.checkpoints)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    if not whole:
        raise WeightsError(
            f"{path} is a run that has saved nothing yet: neither weights/ nor a whole checkpoint is in it"
        )
    return _read_checkpoint(whole[-1])


def _read_checkpoint(checkpoint: Path) -> SavedWeights:
    from rlpheads.engine.runs.checkpoint_metadata import MetadataError, read_tensors  # a run begins without it

    try:
        verify(checkpoint, read_run_manifest(checkpoint).files)
        found = ((read_tensors(checkpoint, prefix), words) for prefix, words in _PARTS.items())
        tensors, words = next(((tensors, words) for tensors, words in found if tensors), ({}, ""))
    except DamagedCheckpointError as error:
        raise WeightsError(f"{error.problem}; name another checkpoint, or a file of weights") from error
    except (CheckpointError, MetadataError) as error:
        raise WeightsError(f"{checkpoint}: {error}") from error
    if not tensors:
        raise WeightsError(f"{checkpoint} holds no network's weights")
    return SavedWeights(tensors, f"{checkpoint}{words}")


def _no_run_in_words(path: Path) -> str:
    """Say what a folder is that is neither a run's nor a whole checkpoint."""
    if path.name.startswith("step=") and path.parent.name == "checkpoints":
        return f"a checkpoint without {MANIFEST}, which is written last: it was never finished, or is damaged"
    return (
        "a folder, and neither a run's nor a checkpoint's; allowed: a run folder, one of its checkpoints (RUN/checkpoints/"
        f"step=…), or a file of tensors that ends in {', '.join(SUFFIXES)}"
    )
