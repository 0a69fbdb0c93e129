"""Initial weights from a local file: read through timm, compared with the model's tensors by name, then loaded."""

from __future__ import annotations

import inspect
import pickle
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from rlpheads.engine.config.errors import UserError, nearest

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")
LAST_WEIGHTS, LAST_AVERAGED_WEIGHTS = "last.safetensors", "last_ema.safetensors"
"""Files in the folder `weights` of a run that ended: its weights, and their moving average where it keeps one."""
_SHOWN = 3


class WeightsError(UserError):
    """A file of weights that cannot be read or does not fit; the message says what is in it and what is wanted."""


def load_weights(backbone: nn.Module, file: str) -> str:
    """Fill a timm model from a file, and return what was done in one line.

    The average of the weights is taken where the file has one (`state_dict_ema`), as timm does. Its wrappers' prefixes and
    our own (`backbone.`) are removed, and the architecture's own conversion is applied (which, for one, resizes position
    embeddings). A classifier for another number of classes is left as it was drawn.

    Raises:
        WeightsError: the file is missing, no file of weights, or of another network.
    """
    state, fresh = fit_weights(backbone, file)
    backbone.load_state_dict(state, strict=False)
    loaded = f"weights from {file}"
    return f"{loaded}; {', '.join(fresh)} drawn afresh: the file's is for other classes" if fresh else loaded


def fit_weights(backbone: nn.Module, file: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Read a file's tensors under the names of a model (which may be on the meta device).

    Returns:
        The tensors, and the names of the classifiers that are not among them.

    Raises:
        WeightsError: see `load_weights`.
    """
    state = _convert_state(_read(file), backbone)
    wanted = backbone.state_dict()
    fresh = tuple(name for name in classifier_names(backbone) if _differs_below(name, state, wanted))
    dropped = tuple(f"{name}." for name in fresh)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(dropped or "\0")}
    wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith(dropped or "\0")}
    if problems := "; ".join(_differences(state, wanted)):
        raise WeightsError(
            f"{file} is not of this network: {problems}. Give the model.name and model.args that it was trained with"
        )
    return state, fresh


def weights_file(place: str) -> Path:
    """Return the file that a place means: a run folder means the weights that the run ended with, averaged ones first."""
    for name in (LAST_AVERAGED_WEIGHTS, LAST_WEIGHTS):
        if (Path(place) / "config.yaml").is_file() and (path := Path(place) / "weights" / name).is_file():
            return path
    return Path(place)


def _read(place: str) -> dict[str, Tensor]:
    path = weights_file(place)
    file = str(path)
    allowed = f"allowed: a file of tensors that ends in {', '.join(SUFFIXES)}"
    if path.is_dir():
        raise WeightsError(f"{file} is {_folder_in_words(path)}")
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        match = nearest(path.name, siblings)
        raise WeightsError(f"{file}: no such file" + (f"; nearest: {path.parent / match}" if match else ""))
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{file} cannot be read; {allowed}")
    try:
        state = load_state_dict(file, weights_only=True)  # a pickle that is more than tensors is refused
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {error}; {allowed}") from error
    except (AttributeError, KeyError, TypeError) as error:  # timm takes the content for a mapping of tensors
        raise WeightsError(f"{file} holds no mapping of names to tensors; {allowed}") from error
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{file} holds no mapping of names to tensors; {allowed}")
    if all(name.startswith("backbone.") for name in state):
        state = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    return state


def _folder_in_words(path: Path) -> str:
    """Say what a folder is that holds no weights to begin with, and how to get some."""
    if (path / "manifest.json").is_file():
        run, step = shlex.quote(str(path.parent.parent)), path.name.removeprefix("step=").lstrip("0") or "0"
        return f"a run's checkpoint; its weights: rlpheads export {run} NAME.safetensors --step {step}"
    if (path / "config.yaml").is_file():
        export = f"rlpheads export {shlex.quote(str(path))} NAME.safetensors"
        return f"the folder of a run that has not ended; the weights of its newest checkpoint: {export}"
    return f"a folder, and no run's; allowed: a run folder, or a file of tensors that ends in {', '.join(SUFFIXES)}"


def _convert_state(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Apply the conversion that timm keeps beside the architecture, if any."""
    convert = getattr(inspect.getmodule(type(backbone)), "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return convert(state, backbone)
    except (KeyError, RuntimeError, ValueError, AttributeError, IndexError):  # of another network: compared as they are
        return state


def classifier_names(backbone: Any) -> Iterator[str]:
    """Yield the names of a timm model's classifiers, of which a distilled network has two."""
    found = backbone.get_classifier() if hasattr(backbone, "get_classifier") else None
    layers = found if isinstance(found, (tuple, list)) else (found,)
    for name, module in backbone.named_modules():
        if any(module is layer for layer in layers):
            yield name


def _differs_below(name: str, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether the tensors of a module are not all there in the shapes that are wanted."""
    return any(
        key.startswith(f"{name}.") and (key not in state or state[key].shape != tensor.shape)
        for key, tensor in wanted.items()
    )


def _differences(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    if missing := [name for name in wanted if name not in state]:
        yield f"{len(missing)} of {len(wanted)} tensors are not in it ({_some(missing)})"
    if unknown := [name for name in state if name not in wanted]:
        yield f"{len(unknown)} of its tensors are unknown here ({_some(unknown)})"
    shapes = [
        f"{name} is {tuple(state[name].shape)} in it and {tuple(tensor.shape)} here"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if shapes:
        yield f"{len(shapes)} of its tensors have another shape ({_some(shapes)})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
