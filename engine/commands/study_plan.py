"""What a study trains: its file of arms, a grid and seeds, expanded into the settings of every run before any is started."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from rlpheads.engine.audits.audit_run import AuditOptions
from rlpheads.engine.checks.checks import check_config
from rlpheads.engine.checks.settings import folder_name_error
from rlpheads.engine.config.command_line import parse_config
from rlpheads.engine.config.errors import ConfigError, nearest, refusal
from rlpheads.engine.config.files import dump_yaml, find_config_file, read_config_file
from rlpheads.engine.config.paths import expand_path
from rlpheads.engine.config.schema import Config, RandomSource
from rlpheads.engine.config.values import convert_value
from rlpheads.engine.runs.folder import write_atomically
from rlpheads.memorization.audit.audit_labels import MIN_FRESH_DRAWS
from rlpheads.memorization.probes.probe_heads import PROBES

ALL_SOURCES = "all"
"""What a study's file calls all sources of chance at once: the run's `seed`."""


@dataclass(frozen=True)
class Study:
    """A study as its file says it.

    Attributes:
        name: name of the file without its suffix.
        config: configuration files that every run begins with, in their order.
        settings: keys that every run has on top.
        arms: keys that the runs of an arm have on top of those, by the arm's name; the grid's points are arms too.
        seeds: a run for each, in every arm.
        vary: sources of chance that take them while the others stay as they are, each with runs of its own; None: all at once.
        reference: the arm that the others are compared with.
        audit: how every finished run is audited; None: not at all.
    """

    name: str
    config: tuple[Path, ...]
    settings: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    reference: str
    vary: tuple[RandomSource | None, ...] = (None,)
    audit: AuditOptions | None = field(default_factory=AuditOptions)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        arm: the arm it belongs to.
        seed: its seed.
        source: the source of chance that takes the seed; None: all.
        config: its settings.
        settings_file: where those of the study among them are written.
        command: arguments of engine/train.py.
    """

    arm: str
    seed: int
    source: RandomSource | None
    config: Config
    settings_file: Path
    command: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.run.dir) / self.config.run.name


def read_study(path: Path) -> Study:
    """Read a study's file (YAML or TOML).

    Raises:
        ConfigError: it cannot be read, or has an unknown key or a value that is not allowed.
    """
    given = read_config_file(str(path))
    allowed = ("config", "settings", "arms", "grid", "seeds", "vary", "reference", "audit")
    for key in given:
        if key not in allowed:
            close = nearest(key, allowed)
            raise refusal(f"{path}: {key}", given[key], ", ".join(allowed) + (f"; nearest: {close}" if close else ""))
    arms = _expand_arms(path, _read_mapping(path, given, "arms"), _read_mapping(path, given, "grid"))
    seeds = _read_seeds(path, given.get("seeds", [0]))
    _check_folder_names(path, arms, seeds)
    reference = given.get("reference", next(iter(arms)))
    if reference not in arms:
        raise refusal(f"{path}: reference", reference, f"an arm: {', '.join(arms)}")
    return Study(
        name=path.stem,
        config=_read_config_files(path, given.get("config")),
        settings=_nest(_read_mapping(path, given, "settings")),
        arms=arms,
        seeds=seeds,
        reference=reference,
        vary=_read_sources(path, given.get("vary", ALL_SOURCES)),
        audit=_read_audit(path, given.get("audit", {})),
    )


def plan_runs(study: Study, folder: Path, world_size: int) -> list[PlannedRun]:
    """Write the settings of every run into `folder`, and check them, before any is started.

    Runs are ordered by seed, then by source of chance and arm: a study that is stopped early has as many seeds of each arm as
    there was time for. Where a source of chance takes the seed that the others have too, the run is that of another source:
    both are planned, with one folder.

    Raises:
        ConfigError: the settings of a run cannot be run; the message names the file that holds them.
    """
    planned = itertools.product(study.seeds, study.vary, study.arms)
    runs = _share_equal([_plan_run(study, arm, seed, source, folder) for seed, source, arm in planned])
    for run in runs[: len(study.arms)]:
        try:
            check_config(run.config, world_size)
        except ConfigError as error:
            raise ConfigError(f"arm {run.arm} ({run.settings_file}): {error}") from error
    return runs


def _plan_run(study: Study, arm: str, seed: int, source: RandomSource | None, folder: Path) -> PlannedRun:
    name = _run_name(arm, seed, source if len(study.vary) > 1 else None)
    settings = _merge(study.settings, study.arms[arm])
    seeded = {"seed": seed} if source is None else {"seeds": {source: seed}}
    settings = _merge(settings, seeded | {"run": {"dir": str(folder), "name": name}})
    path = folder / "settings" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, dump_yaml(settings))
    command = [part for file in (*study.config, path) for part in ("--config", str(file))]
    return PlannedRun(arm, seed, source, parse_config(command), path, tuple(command))


def _share_equal(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Give runs of the same arm and the same seeds the settings, and so the folder, of the first of them."""
    first: dict[tuple[str | int, ...], PlannedRun] = {}
    shared = []
    for run in runs:
        seeds = (run.config.seed_of(source) for source in get_args(RandomSource))
        kept = first.setdefault((run.arm, run.config.seed, *seeds), run)
        shared.append(replace(kept, seed=run.seed, source=run.source))
    return shared


def _run_name(arm: str, seed: int, source: RandomSource | None = None) -> str:
    """Return the name of a run's folder; `source` where the study varies more than one source of chance."""
    return f"{arm}.{source or 'seed'}{seed}"


def _check_folder_names(path: Path, arms: Mapping[str, Any], seeds: Sequence[int]) -> None:
    """Refuse arms whose runs would lie elsewhere than in the study's folder, or in no folder at all.

    Raises:
        ConfigError: the name of the arm, which for a point of the grid holds its values.
    """
    for arm in arms:
        if folder_name_error("arm", max((_run_name(arm, seed) for seed in seeds), key=len), ""):
            error = folder_name_error(
                f"{path}: arm", arm, "its runs lie in --out; give a path as a setting of a named arm"
            )
            raise error or refusal(f"{path}: arm", arm, "a shorter name")


def _read_config_files(path: Path, config: object) -> tuple[Path, ...]:
    names = config if isinstance(config, list) else [config]
    if not names or not all(isinstance(name, str) for name in names):
        allowed = "a configuration file, named from where the study's file is, one that comes with rlpheads, or a list of them"
        raise refusal(f"{path}: config", config, allowed)
    found = (path.parent / expand_path(f"{path}: config", str(name)) for name in names)
    return tuple(file if file.suffix else find_config_file(file.name) for file in found)


def _read_mapping(path: Path, given: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = given.get(key, {})
    if not isinstance(value, dict):
        raise refusal(f"{path}: {key}", value, "a mapping")
    return value


def _expand_arms(path: Path, arms: Mapping[str, Any], grid: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every arm at every point of the grid, by name."""
    for name, settings in arms.items():
        if not isinstance(settings, dict):
            raise refusal(
                f"{path}: arms.{name}", settings, "a mapping of keys to values, such as {regularizer.factor: 2}"
            )
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise refusal(f"{path}: grid.{key}", values, "a list of values")
    if not arms and not grid:
        raise ConfigError(f"{path}: nothing to compare; allowed: arms, a grid, or both")
    found = {}
    for name, settings in (arms or {"": {}}).items():
        for point in itertools.product(*grid.values()):
            coordinates = [f"{key.rpartition('.')[2]}={value}" for key, value in zip(grid, point, strict=True)]
            on_top = _nest(dict(zip(grid, point, strict=True)))
            found["_".join(filter(None, (name, *coordinates)))] = _merge(_nest(settings), on_top)
    return found


def _read_seeds(path: Path, seeds: object) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise refusal(f"{path}: seeds", seeds, "a list of whole numbers")
    if len(set(seeds)) < len(seeds):
        raise refusal(f"{path}: seeds", seeds, "each seed once")
    return tuple(seeds)


def _read_sources(path: Path, given: object) -> tuple[RandomSource | None, ...]:
    names = given if isinstance(given, list) else [given]
    allowed = (ALL_SOURCES, *get_args(RandomSource))
    for name in names:
        if name not in allowed:
            close = nearest(str(name), allowed)
            listed = f"{', '.join(allowed)}, or a list of some" + (f"; nearest: {close}" if close else "")
            raise refusal(f"{path}: vary", name, listed)
    if not names or len(set(names)) < len(names):
        raise refusal(f"{path}: vary", given, "each source of chance once")
    return tuple(
        source for name in names for source in (None, *get_args(RandomSource)) if (source or ALL_SOURCES) == name
    )


def _read_audit(path: Path, given: object) -> AuditOptions | None:
    if given is None:
        return None
    names = [each.name for each in fields(AuditOptions)]
    if not isinstance(given, dict) or not set(given) <= set(names):
        raise refusal(f"{path}: audit", given, f"null, or a mapping with keys among {', '.join(names)}")
    hints = get_type_hints(AuditOptions)
    given = {name: convert_value(f"{path}: audit.{name}", value, hints[name]) for name, value in given.items()}
    options = AuditOptions(**given)
    if options.probe not in PROBES or not _are_draws(options.draws):
        allowed = f"a probe among {', '.join(PROBES)} and at least {MIN_FRESH_DRAWS} draws, or null"
        raise refusal(f"{path}: audit", given, allowed)
    return options


def _are_draws(draws: object) -> bool:
    return draws is None or (type(draws) is int and draws >= MIN_FRESH_DRAWS)


def _nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nest dotted keys: {"a.b": 1} becomes {"a": {"b": 1}}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        for name in reversed(key.split(".")):
            value = {name: _nest(value) if isinstance(value, dict) else value}
        found = _merge(found, value)
    return found


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; where both have a key, `above` decides."""
    merged = dict(below)
    for key, value in above.items():
        both_nest = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if both_nest else value
    return merged
