"""Files and flags to one `Config`.

The order of precedence: the defaults of `rlpheads.engine.config.schema`, then every `--config` file in the order given, then
every flag in the order given, wherever the flags stand among the files. A layer sets the keys that it names; mappings
such as `model.args` are merged key by key. Without any file, configs/cifar100_wrn.yaml is the one that is read.
The names of `rlpheads.engine.config.reference_names` stand for keys, on the command line and at the top of a file.

jsonargparse writes the help (`rlpheads.engine.config.help`). Values are read here, since it would alter them: after a strict
parse it still turns the text '1e3' inside `model.args` into 1000.0 and 'null' into null, drops keys such as `__path__`, accepts
null, .inf and .nan for a plain number and a scalar for a whole group.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_origin, get_type_hints

from rlpheads.engine.config.errors import ConfigError, nearest, show_value
from rlpheads.engine.config.files import SHIPPED, dump_yaml, find_config_file, read_config_file
from rlpheads.engine.config.help import USAGE, help_text, wanted_section
from rlpheads.engine.config.keys import known_keys
from rlpheads.engine.config.launcher_options import LAUNCHER_OPTIONS
from rlpheads.engine.config.launcher_variables import is_first
from rlpheads.engine.config.paths import PATH_KEYS, expand_path
from rlpheads.engine.config.reference_names import FILE_FLAG, REFERENCE_NAMES, SWITCHES, translate
from rlpheads.engine.config.schema import Config
from rlpheads.engine.config.values import convert_text, convert_value, describe

__all__ = ["ConfigError", "dump_config", "parse_config"]

_DEFAULT = SHIPPED / "cifar100_wrn.yaml"
_MODEL_NAME = re.compile(r"[\w.:/@-]+")


class _Flag(NamedTuple):
    name: str
    """As written, with its dashes."""
    text: str | None
    """Its value; None where nothing that could be one followed."""


def _ignore_note(line: str) -> None:
    """The note of a caller that prints none."""


def parse_config(argv: Sequence[str], note: Callable[[str], None] = _ignore_note) -> Config:
    """Return the configuration that the command line `argv` (without the program's name) describes.

    `-h` or `--help` prints every key with its meaning and default, `--help data` those of a section, and exits with 0 (under
    torchrun, rank 0 prints).

    Args:
        argv: the command line.
        note: called with a line for each reference name that sets a key, for the default file where it is read, and where
            the warm-up is cut.

    Raises:
        ConfigError: with the one message a user needs: where, what was given, what is allowed.
    """
    if "-h" in argv or "--help" in argv:
        text = help_text(wanted_section(argv))
        if is_first("RANK"):
            print(text)
        raise SystemExit(0)
    flags = _split(argv)
    files = [file for flag in flags if flag.name in _FILE_FLAGS for file in _files_of(flag)]
    if not files:
        files = [str(_default_file())]
        note(f"no --config: reading {_DEFAULT.parent.name}/{_DEFAULT.name}")
    values = _flatten(dataclasses.asdict(Config()))
    for file in files:
        _read_file(file, values, note)
    for flag in flags:
        if flag.name not in _FILE_FLAGS:
            key, value = _read_flag(flag, values)
            values[key] = _layer(values[key], value)
            if flag.name.removeprefix("--") in REFERENCE_NAMES:
                note(f"{flag.name} sets {key} to {show_value(value)}")
    values["run.name"] = values["run.name"] or Path(files[-1]).stem
    for key in PATH_KEYS:
        if values[key] is not None:
            values[key] = expand_path(key, values[key])
    return _cut_warmup(_build(Config, values), note)


def _cut_warmup(config: Config, note: Callable[[str], None]) -> Config:
    """Return `config` with a warm-up that ends with the first cycle at the latest, so that `--epochs 1` is a short run."""
    schedule = config.schedule
    longest = schedule.first_cycle(config.epochs)
    if not 0 < longest < schedule.warmup_epochs:
        return config
    whole = "of the run" if longest == config.epochs else "of one cycle"
    note(f"schedule.warmup_epochs: {schedule.warmup_epochs:g} cut to {longest:g}, the epochs {whole}")
    return dataclasses.replace(config, schedule=dataclasses.replace(schedule, warmup_epochs=longest))


def dump_config(config: Config) -> str:
    """Return `config` as YAML with every key, which `parse_config` reads back to an equal object.

    (But for paths in which `~` or `$` stands for itself; `parse_config` gives none.)
    """
    return dump_yaml(dataclasses.asdict(config))


def _split(argv: Sequence[str]) -> list[_Flag]:
    """Split a command line into flags: `--name=value`, or `--name` and what follows unless that begins with `--`."""
    flags: list[_Flag] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        name, equals, text = token.partition("=")
        if not token.startswith("-"):
            meant = f"--{token}" if equals else f"--config {token}" if Path(token).suffix in (".yaml", ".toml") else ""
            raise ConfigError(f"{token}: not a flag; allowed: --KEY VALUE" + (f" (meant: {meant})" if meant else ""))
        if equals:
            flags.append(_Flag(name, text))
        elif tokens and not tokens[0].startswith("--"):
            flags.append(_Flag(name, tokens.pop(0)))
        else:
            flags.append(_Flag(name, None))
    return flags


_FILE_FLAGS = ("--config", f"--{FILE_FLAG}")


def _files_of(flag: _Flag) -> list[str]:
    """Return the files that a flag asks for."""
    if not flag.text:
        raise ConfigError(f"{flag.name}: a value is missing; allowed: the name of a YAML or TOML file")
    file = str(find_config_file(flag.text))
    return [file] if flag.name == "--config" else [str(_default_file()), file]


def _default_file() -> Path:
    if not _DEFAULT.is_file():  # installed without configs/
        raise ConfigError(_nothing_given())
    return _DEFAULT


def _read_file(file: str, values: dict[str, Any], note: Callable[[str], None]) -> None:
    """Override `values` by a file, in place."""
    for given, key, value in _walk(read_config_file(file), file, values):
        values[key] = _layer(values[key], convert_value(f"{file}: {given}", value, known_keys().leaves[key]))
        if given != key:
            note(f"{file}: {given} sets {key} to {show_value(values[key])}")


def _read_flag(flag: _Flag, values: dict[str, Any]) -> tuple[str, Any]:
    """Return the dotted key of the field that a flag sets, and the value."""
    key = flag.name.removeprefix("--")
    if _is_reference_name(key, flag.text) and flag.name.startswith("--"):
        return _read_reference_flag(flag, key, values)
    if key in known_keys().groups:
        raise ConfigError(_group_given_a_value("", key, dashes="--", given=flag.text))
    field, entry = _find_field(key)
    if not field or not flag.name.startswith("--"):
        raise ConfigError(_unknown(flag.name, key, dashes="--"))
    field_hint = known_keys().leaves[field]
    hint = Any if entry else field_hint
    text = "true" if flag.text is None and hint is bool else flag.text
    if text is None:
        raise ConfigError(f"{flag.name}: a value is missing; allowed: {describe(hint)}")
    value = convert_text(flag.name, text, hint)
    if not entry:
        return field, value
    for name in reversed(entry.split(".")):
        value = {name: value}
    return field, convert_value(flag.name, value, field_hint)


def _is_reference_name(name: str, value: object) -> bool:
    """Whether a name is the reference system's; `model` is a group here unless it is given the name of a model."""
    if name not in REFERENCE_NAMES:
        return False
    return name not in known_keys().groups or (isinstance(value, str) and _MODEL_NAME.fullmatch(value) is not None)


def _read_reference_flag(flag: _Flag, name: str, values: dict[str, Any]) -> tuple[str, Any]:
    key = REFERENCE_NAMES[name].key
    hint = known_keys().leaves[key]
    text = "true" if flag.text is None and name in SWITCHES else flag.text
    if text is None:
        raise ConfigError(f"{flag.name}: a value is missing; allowed: {describe(hint)}")
    text = text.lower() if name in SWITCHES else text
    return key, convert_text(flag.name, str(translate(flag.name, name, text, values[key])), hint)


def _find_field(key: str) -> tuple[str, str]:
    """Split a dotted key into its field and the entry of a mapping field (model.args, depth); "" where there is none."""
    leaves = known_keys().leaves
    if key in leaves:
        return key, ""
    field = next((leaf for leaf in leaves if key.startswith(f"{leaf}.") and get_origin(leaves[leaf]) is dict), "")
    entry = key[len(field) + 1 :]
    return (field, entry) if all(entry.split(".")) else ("", "")


def _walk(
    mapping: dict[str, Any], file: str, values: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str, Any]]:
    """Yield (name as given, dotted key, raw value) of a file's mapping; every key is checked against the dataclasses."""
    for name, value in mapping.items():
        key = prefix + name
        if "." in name and key in known_keys().leaves:
            raise ConfigError(f"{file}: {key}: a dotted key; allowed in a file: nested keys, {_nested(key)}")
        if key in known_keys().leaves:
            yield key, key, value
        elif _is_reference_name(key, value):
            meant = REFERENCE_NAMES[key].key
            yield key, meant, translate(f"{file}: {key}", key, value, values[meant])
        elif key not in known_keys().groups:
            raise ConfigError(f"{file}: {_unknown(key, key, dashes='')}")
        elif isinstance(value, dict):
            yield from _walk(value, file, values, f"{key}.")
        else:
            raise ConfigError(_group_given_a_value(f"{file}: ", key, dashes="", given=value))


def _nested(key: str) -> str:
    *groups, leaf = key.split(".")
    return "".join(f"{group}: {{" for group in groups) + f"{leaf}: …" + "}" * len(groups)


def _group_given_a_value(where: str, key: str, *, dashes: str, given: object) -> str:
    below = ", ".join(dashes + name for name in known_keys().groups[key])
    return f"{where}{dashes}{key}: got {show_value(given)}, but this is a group; allowed: the keys in it: {below}"


def _unknown(given: str, key: str, *, dashes: str) -> str:
    """Say that there is no such key, and which was meant: one that ends alike (`lr`), else the one spelt most alike."""
    alike = [leaf for leaf in known_keys().leaves if leaf.rpartition(".")[2] == key.rpartition(".")[2]]
    known = [*known_keys().leaves, *known_keys().groups, *REFERENCE_NAMES, "config", FILE_FLAG]
    launchers = {name.replace("-", "_"): name for name in LAUNCHER_OPTIONS} if dashes else {}
    close = nearest(key.replace("-", "_"), [*known, *launchers])
    if close in launchers and not alike:
        return (
            f"{given}: no such key; nearest: --{launchers[close]} of rlpheads train, or of torchrun before the script"
        )
    meant = [close] if close and not alike else alike
    hint = f"nearest: {', '.join(dashes + name for name in meant)}" if meant else "--help lists every key"
    return f"{given}: no such key; {hint}"


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + name
        flat.update({key: value} if key in known_keys().leaves else _flatten(value, f"{key}."))
    return flat


def _layer(below: Any, above: Any) -> Any:
    """Return `below` overridden by `above`: mappings are merged key by key, anything else is replaced."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: _layer(below.get(key), value) for key, value in above.items()}


def _build(cls: type[Any], values: dict[str, Any], prefix: str = "") -> Any:
    return cls(
        **{
            name: values[prefix + name] if prefix + name in values else _build(hint, values, f"{prefix}{name}.")
            for name, hint in get_type_hints(cls).items()
        }
    )


def _nothing_given() -> str:
    return f"no configuration given, and there is no {_DEFAULT} to read; allowed: {USAGE}"
