"""Initial weights that lie somewhere: files read through timm, compared with the model's tensors by name, then loaded."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from rlpheads.engine.config.errors import UserError, nearest

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")
ALLOWED_FILES = f"allowed: a file of tensors that ends in {', '.join(SUFFIXES)}"
_SHOWN = 3


class WeightsError(UserError):
    """A file of weights that cannot be read or does not fit; the message says what is in it and what is wanted."""


class SavedWeights(NamedTuple):
    """Tensors on the CPU under the names that their file has, and where they lie, in words."""

    tensors: dict[str, Tensor]
    words: str


def load_weights(backbone: nn.Module, saved: SavedWeights) -> str:
    """Fill a timm model with saved weights, and return what was done in one line.

    Wrappers' prefixes and our own (`backbone.`) are removed, and the architecture's own conversion is applied (which, for
    one, resizes position embeddings). A classifier for another number of classes is left as it was drawn.

    Raises:
        WeightsError: they are of another network.
    """
    state, fresh = fit_weights(backbone, saved)
    backbone.load_state_dict(state, strict=False)
    loaded = f"weights from {saved.words}"
    return f"{loaded}; {', '.join(fresh)} drawn afresh: the file's is for other classes" if fresh else loaded


def fit_weights(backbone: nn.Module, saved: SavedWeights) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return saved tensors under the names of a model (which may be on the meta device).

    Returns:
        The tensors, and the names of the classifiers that are not among them.

    Raises:
        WeightsError: see `load_weights`.
    """
    state = saved.tensors
    if all(name.startswith("backbone.") for name in state):
        state = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    state = _convert_state(state, backbone)
    wanted = backbone.state_dict()
    fresh = tuple(name for name in classifier_names(backbone) if _differs_below(name, state, wanted))
    dropped = tuple(f"{name}." for name in fresh)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(dropped or "\0")}
    wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith(dropped or "\0")}
    if problems := "; ".join(_differences(state, wanted)):
        raise WeightsError(
            f"{saved.words} is not of this network: {problems}. Give the model.name and model.args that it was trained with"
        )
    return state, fresh


def read_weights_file(path: Path) -> SavedWeights:
    """Read a file of weights; of one that holds their average too (`state_dict_ema`), the average, as timm does.

    Raises:
        WeightsError: the file is missing, or none of weights.
    """
    file = str(path)
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        match = nearest(path.name, siblings)
        raise WeightsError(f"{file}: no such file" + (f"; nearest: {path.parent / match}" if match else ""))
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{file} cannot be read; {ALLOWED_FILES}")
    try:
        state = load_state_dict(file, weights_only=True)  # a pickle that is more than tensors is refused
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {error}; {ALLOWED_FILES}") from error
    except (AttributeError, KeyError, TypeError) as error:  # timm takes the content for a mapping of tensors
        raise WeightsError(f"{file} holds no mapping of names to tensors; {ALLOWED_FILES}") from error
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{file} holds no mapping of names to tensors; {ALLOWED_FILES}")
    return SavedWeights(state, file)


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
