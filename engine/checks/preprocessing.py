"""Weights to start from that were trained on images prepared otherwise than the run's: refused, with the flags to give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm

from rlpheads.engine.config.data import DataConfig
from rlpheads.engine.config.errors import ConfigError
from rlpheads.engine.config.files import read_config_file
from rlpheads.engine.config.schema import Config
from rlpheads.engine.runs.checkpoint import MANIFEST, CheckpointError
from rlpheads.engine.runs.folder import goes_on
from rlpheads.engine.runs.ownership import is_run_folder
from rlpheads.engine.runs.run_manifest import read_run_manifest
from rlpheads.memorization.json_reading import DamagedJsonError, parse_mapping

_SAME_TO = 1e-3
"""Difference up to which means, deviations and crops are rounded otherwise, and no others."""
_Prepared = tuple[float, ...] | str
"""Numbers or a word that say how images were prepared."""


def preprocessing_errors(config: Config) -> Iterator[ConfigError]:
    """Yield an error where weights had other normalisation, interpolation or, at their size, centre crop.

    Of weights that say nothing of it, nothing is said; nor where the run goes on from a checkpoint of its own.
    """
    model = config.model
    if model.pretrained:
        published = timm.get_pretrained_cfg(model.name, allow_unregistered=True)
        weights = f"model.pretrained: the weights of {model.name}"
        described = published.to_dict() if published is not None and published.has_weights else {}
    elif model.checkpoint is not None and not goes_on(config.run):
        weights = f"model.checkpoint: the weights in {model.checkpoint}"
        described = _describe(Path(model.checkpoint))
    else:
        return
    if differing := dict(_differences(config, described)):
        of_run, of_weights = (
            ", ".join(f"data.{name} {_words(pair[which])}" for name, pair in differing.items()) for which in (0, 1)
        )
        flags = " ".join(f'--data.{name} "{_words(theirs)}"' for name, (_, theirs) in differing.items())
        yield ConfigError(f"{weights} were trained with {of_weights}, but the run has {of_run}; give {flags}")


def _differences(config: Config, described: Mapping[str, Any]) -> Iterator[tuple[str, tuple[_Prepared, _Prepared]]]:
    """Yield the keys of `data` in which a run differs from what weights say, as timm says it, with both values."""
    data = config.data
    pairs = {name: (getattr(data, name), described.get(name)) for name in ("mean", "std", "interpolation")}
    crop = described.get("crop_pct")
    for side, used in (("input_size", crop), ("test_input_size", described.get("test_crop_pct") or crop)):
        size = described.get(side)
        if isinstance(size, (list, tuple)) and size and size[-1] == config.evaluation_size:
            pairs["eval_crop_fraction"] = (data.eval_crop_fraction, used)
    for name, (ours, theirs) in pairs.items():
        here, there = _prepared(ours), _prepared(theirs)
        if _are_comparable(here, there) and not _is_same(here, there):
            yield name, (here, there)


def _describe(place: Path) -> Mapping[str, Any]:
    """Return how images were prepared for the weights in a place, as timm says it; nothing where that is not known.

    A run folder, its checkpoints and its files of weights have the run's settings; any other file may have timm's config.json
    beside it, as `rlpheads export` and timm write it.
    """
    run = place.parent.parent if place.parent.name == "weights" else place
    try:
        if (place / MANIFEST).is_file():
            return _as_timm_says(read_run_manifest(place).config)
        if is_run_folder(run):
            return _as_timm_says(read_config_file(str(run / "config.yaml")))
        described = parse_mapping(place.with_name("config.json").read_bytes())
    except (OSError, CheckpointError, ConfigError, DamagedJsonError):
        return {}  # what keeps the weights from being read is told elsewhere
    prepared = described.get("pretrained_cfg", described)
    return prepared if isinstance(prepared, Mapping) else {}


def _as_timm_says(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how a run of these settings prepares images; a setting that they lack had its default."""
    given, evaluation = (settings.get(name) or {} for name in ("data", "eval"))
    if not isinstance(given, Mapping) or not isinstance(evaluation, Mapping):
        return {}
    data = asdict(DataConfig()) | dict(given)
    return {
        **{name: data[name] for name in ("mean", "std", "interpolation")},
        "input_size": (evaluation.get("image_size") or data["image_size"],),
        "crop_pct": data["eval_crop_fraction"],
    }


def _prepared(value: Any) -> _Prepared:
    """Return a value as it is compared; what is neither a word nor numbers is no number."""
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values if all(isinstance(each, (int, float)) for each in values) else ()


def _are_comparable(ours: _Prepared, theirs: _Prepared) -> bool:
    """Whether both are words, or as many numbers: a file may hold anything under timm's names."""
    return isinstance(ours, str) == isinstance(theirs, str) and (isinstance(ours, str) or len(ours) == len(theirs))


def _is_same(ours: _Prepared, theirs: _Prepared) -> bool:
    if isinstance(ours, str) or isinstance(theirs, str):
        return ours == theirs
    return all(abs(one - other) <= _SAME_TO for one, other in zip(ours, theirs, strict=True))


def _words(prepared: _Prepared) -> str:
    if isinstance(prepared, str):
        return prepared
    return str(prepared[0]) if len(prepared) == 1 else str(list(prepared))
