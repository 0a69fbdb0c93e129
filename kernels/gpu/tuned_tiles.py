"""Autotuned tiles, cached in a file: `python -m rlpheads.kernels.tools.tune` writes it, a run only reads it.

A run times nothing. Tiles decide in which order sums are taken, and so their last bits: while the file stays as it is, a
run that is repeated or resumed has the same ones. It is tiles.json in the user's cache folder, or what RLPHEADS_TILES names;
where that is empty, or there is no home folder, there are none.
"""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rlpheads.kernels.cache_folder import cache_folder
from rlpheads.kernels.gpu.triton_tiles import TileConfig

FILE_VARIABLE = "RLPHEADS_TILES"
COMMAND = "python -m rlpheads.kernels.tools.tune"
FORMAT = "rlpheads tiles 2"

_T = TypeVar("_T")


@dataclass(frozen=True)
class TuningCase:
    """Key of autotuned tiles: the device, version of Triton, dtype and shape that they were measured for."""

    device: str
    """The GPU's name."""
    triton: str
    """Triton's version."""
    operands: str
    """Type of the matrix products' operands, and how float32 ones are multiplied."""
    rows: int
    features: int
    classes: int
    """Of the whole range that a call passes over."""
    pair: bool
    """Rows have two labels."""
    base: bool
    """With bases or moments."""
    bias: bool


@dataclass(frozen=True)
class Winner:
    """The fastest tiles of a case, and what was measured."""

    tiles: TileConfig
    milliseconds: float
    usual_milliseconds: float
    """Of the tiles that are taken where none were measured."""


def tiles_file() -> Path | None:
    """The file of measured tiles, which need not exist; None where there are to be none."""
    named = os.environ.get(FILE_VARIABLE)
    if named is None:
        folder = cache_folder()
        return None if folder is None else folder / "tiles.json"
    return Path(named) if named else None


def select_tiles(case: TuningCase, candidates: tuple[TileConfig, ...]) -> TileConfig:
    """The measured tiles of a case if there are any, else the first of the candidates.

    Raises:
        ValueError: the file cannot be read, or what it names is no candidate.
    """
    path = tiles_file()
    winner = None if path is None else _cached_winners(path).get(case)
    if winner is None:
        return candidates[0]
    if winner.tiles not in candidates:
        raise _unusable_file(path, f"{winner.tiles} is none of the tiles that {case} can have")
    return winner.tiles


def save_winner(path: Path, case: TuningCase, winner: Winner) -> None:
    """Write a case's winner into the file, beside those of other cases; the file is the old or the new one, never a part.

    Raises:
        ValueError: there is a file that cannot be read.
        OSError: it cannot be written.
    """
    winners = {**read_winners(path), case: winner} if path.exists() else {case: winner}
    entries = [{**asdict(case), **asdict(winner)} for case, winner in winners.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as writing:
        whole = Path(writing) / path.name
        whole.write_text(json.dumps({"format": FORMAT, "winners": entries}, indent=2) + "\n")
        whole.replace(path)
    _cached_winners.cache_clear()


def read_winners(path: Path) -> dict[TuningCase, Winner]:
    """Winners in the file, by case.

    Raises:
        ValueError: it cannot be read, or is none of ours.
    """
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
        return dict(map(_parse_entry, content["winners"]))
    except KeyError as error:
        raise _unusable_file(path, f"it has no {error}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unusable_file(path, str(error)) from error


def record() -> dict[str, Any] | None:
    """The measured tiles, for a run's environment record; None where there are none.

    Where the file is unusable its winners are None, and where it cannot even be read its hash is, too.
    """
    path = tiles_file()
    if path is None or not path.exists():
        return None
    found: dict[str, Any] = {"sha256": None, "winners": None}
    with suppress(OSError, ValueError):
        found["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        found["winners"] = [{**asdict(case), **asdict(winner)} for case, winner in read_winners(path).items()]
    return found


@cache
def _cached_winners(path: Path) -> dict[TuningCase, Winner]:
    """Winners in the file, read once in a process."""
    if not path.exists() and FILE_VARIABLE not in os.environ:
        return {}
    return read_winners(path)


def _parse_entry(entry: dict[str, Any]) -> tuple[TuningCase, Winner]:
    return _parse_dataclass(TuningCase, entry), _parse_dataclass(
        Winner, {**entry, "tiles": _parse_dataclass(TileConfig, entry["tiles"])}
    )


def _parse_dataclass(kind: type[_T], values: dict[str, Any]) -> _T:
    """A dataclass from values by name, each of the type that is declared."""
    chosen = {field.name: values[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    for field in fields(kind):  # type: ignore[arg-type]
        if not isinstance(chosen[field.name], field.type):  # type: ignore[arg-type]
            raise TypeError(f"{field.name} is {chosen[field.name]!r}")
    return kind(**chosen)


def _unusable_file(path: Path | None, reason: str) -> ValueError:
    return ValueError(
        f"{path} holds no tiles for the loss ({reason}): delete it, and measure anew if you like (`{COMMAND}`); or set "
        f"{FILE_VARIABLE} to another file, or to nothing to go without"
    )
