"""Strict reading and writing of YAML and TOML configuration files.

A configuration file is YAML or TOML by its suffix, and both are read with the same strictness: a key given twice,
syntax that is not understood and bytes that are not UTF-8 are errors that name the file and, where there is one, the
line.

YAML is read by the plain rules of YAML 1.2: `1e-3` is a number, `010`, `1:30`, `yes`, `off` and dates are text. (PyYAML
follows YAML 1.1, where they are text, 8, 90, true, false and a date object.) Aliases and tags are refused: they can
build self-containing and foreign objects, and no configuration needs them.
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import yaml

from rlpheads.engine.config.errors import ConfigError, nearest, refusal, show_value
from rlpheads.engine.config.paths import expand_path

_MOST_BYTES = 1 << 18  # a second of PyYAML; the largest configuration that comes with rlpheads has 3,000
_TOO_LONG = "a whole number of thousands of digits"  # which Python's int() refuses
# The plain scalars of YAML 1.2 (and `_` between the digits of an integer, as TOML has it), with their first characters.
_PLAIN_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)", [*"-+0123456789"]),
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
}


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's loader with YAML 1.2's plain scalars, and without aliases, tags, merge keys and duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own registry)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _yaml_error("aliases (*name) are not accepted", event)
        if getattr(event, "tag", None) is not None:
            raise _yaml_error("tags (!name) are not accepted", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _yaml_error(f"a key must be text, got {show_value(key)}", key_node)
            if key in mapping:
                raise _yaml_error(f"the key {key!r} is given twice", key_node)
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping

    def construct_plain_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value)

    def construct_plain_float(self, node: yaml.ScalarNode) -> float:
        return float(re.sub(r"\.(?=inf|nan)", "", node.value.lower()))


def _yaml_error(problem: str, where: Any) -> yaml.MarkedYAMLError:
    """Return PyYAML's kind of error at an event or a node."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, but every text and number it writes is read back as it was, and it never writes aliases.

    (PyYAML writes the text 1e-3 without quotes, and U+0085 in quotes of a kind in which it is read as a line break.)
    """

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def represent_text(self, data: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')

    def represent_inline_list(self, data: list[Any] | tuple[Any, ...]) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


for _name, (_pattern, _first) in _PLAIN_SCALARS.items():
    for _class in (_StrictLoader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_plain_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_plain_float)
_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(list, _Dumper.represent_inline_list)
_Dumper.add_representer(tuple, _Dumper.represent_inline_list)


def parse_yaml(text: str) -> Any:
    """Return the value that `text` is in YAML.

    Raises:
        ConfigError: "line N: what is wrong", without the name of a file.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"line {line}: the character U+{error.character:04X} is not allowed in YAML") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"line {mark.line + 1}: {problem}" if mark else problem) from error
    except RecursionError as error:
        raise ConfigError("nested too deeply") from error
    except ValueError as error:
        raise ConfigError(_TOO_LONG) from error


def parse_toml(text: str) -> Any:
    """Return the table that `text` is in TOML.

    Raises:
        ConfigError: what is wrong and, in brackets, at which line, without the name of a file.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError("nested too deeply") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise ConfigError(_TOO_LONG) from error


SHIPPED = Path(__file__).resolve().parents[2] / "configs"
"""The configurations that come with rlpheads, in the source tree and in an installed package alike."""

_PARSERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    ".yaml": ("YAML", parse_yaml),
    ".yml": ("YAML", parse_yaml),
    ".toml": ("TOML", parse_toml),
}


def find_config_file(name: str) -> Path:
    """Return the file that is meant by a path, or by the name of a configuration that comes with rlpheads (`digits_vit`).

    Raises:
        ConfigError: the name ends as no configuration file does, and none comes with rlpheads under it.
    """
    path = Path(expand_path("--config", name))
    if path.suffix in _PARSERS:
        return path
    names = {each.stem: each for each in SHIPPED.glob("*") if each.suffix in _PARSERS}
    if name not in names:
        close = nearest(name, names)
        known = f", or one that comes with rlpheads: {', '.join(sorted(names))}" if names else ""
        hint = f"; nearest: {close}" if close else ""
        raise refusal("--config", name, f"a file that ends in {', '.join(_PARSERS)}{known}{hint}")
    return names[name]


def read_config_file(name: str) -> dict[str, Any]:
    """Return the mapping that the YAML or TOML file `name` holds.

    Raises:
        ConfigError: the file is missing, unreadable, too large, not UTF-8, empty, badly written, or no mapping at its top
            level.
    """
    path = Path(name)
    if path.suffix not in _PARSERS:
        raise ConfigError(f"--config: got {show_value(name)}; allowed: a file that ends in {', '.join(_PARSERS)}")
    language, parse = _PARSERS[path.suffix]
    text = _read_text(path, name)
    try:
        content = parse(text)
    except ConfigError as error:
        raise ConfigError(f"{name}: not valid {language}: {error}") from error
    if content is None or content == {}:
        raise ConfigError(f"{name}: the file is empty; allowed: keys and values, such as epochs: 90")
    if not isinstance(content, dict):
        raise ConfigError(
            f"{name}: got {show_value(content)} at the top level; allowed: keys and values, such as epochs: 90"
        )
    return content


def _read_text(path: Path, name: str) -> str:
    content = _read_start(path, name)
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{name}: the file has more than {_MOST_BYTES:,} bytes, which no configuration needs")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text (byte {error.start})") from error


def _read_start(path: Path, name: str) -> bytes:
    """Read a byte more than a configuration may have."""
    try:
        if not stat.S_ISFIFO(path.stat().st_mode):  # which might never begin
            with path.open("rb") as file:
                return file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{name}: no such file{_nearest_file(path)}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{name}: this is a folder; allowed: a file that ends in {', '.join(_PARSERS)}") from error
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a null byte in the name
        raise ConfigError(f"{show_value(name)}: cannot be read: {error}") from error
    raise ConfigError(f"{name}: this is a pipe; allowed: a file that ends in {', '.join(_PARSERS)}")


def _nearest_file(path: Path) -> str:
    if (SHIPPED / path.name).is_file():
        return f" from here; --config {path.stem} is the one that comes with rlpheads"
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    match = nearest(path.name, (entry.name for entry in path.parent.iterdir() if entry.suffix in _PARSERS))
    return f"; nearest: {path.parent / match}" if match else ""


def dump_yaml(mapping: dict[str, Any]) -> str:
    """Return `mapping` as YAML: in its order, lists on one line, text quoted where YAML 1.1 or 1.2 would misread it."""
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)
