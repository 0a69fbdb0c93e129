"""The help of every key, section by section; jsonargparse writes it from the dataclasses and their docstrings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rlpheads.engine.config.errors import ConfigError, nearest
from rlpheads.engine.config.keys import known_keys
from rlpheads.engine.config.reference_names import FILE_FLAG, names_of
from rlpheads.engine.config.schema import Config

USAGE = "torchrun engine/train.py [--config FILE ...] [--KEY VALUE ...]"
GENERAL = "general"
"""Section of the keys that stand in no group."""

_EPILOG = """\
Files are YAML or TOML and are layered in the order given; flags override files. A flag is a key of the file with dots:
--optim.lr 3e-4, --heads.taps 0,-1, --model.args.depth 6. A switch may stand alone: --verbose is --verbose true.
--config takes the name of a file that comes with rlpheads, too: digits_vit. ~ and $NAME in paths are expanded.
An entry of model.args from an earlier file is removed with null.

--help SECTION prints one of the sections below, or a part of it: --help data, --help data.augment, --help optim.lr.

Without a file, configs/cifar100_wrn.yaml is read; the defaults below are those of keys that no file names.
--ifile FILE layers FILE over configs/cifar100_wrn.yaml. The names in "also:" are the reference system's."""


def wanted_section(argv: Sequence[str]) -> str | None:
    """Return what the word behind `--help` or `-h` asks for; None: everything."""
    place = next(place for place, word in enumerate(argv) if word in ("-h", "--help"))
    return next((word for word in argv[place + 1 : place + 2] if not word.startswith("-")), None)


def help_text(section: str | None = None) -> str:
    """Return the help: keys with their meaning, type and default.

    Args:
        section: `general`, or a dotted key: of a group, or of one key; None: every key.

    Raises:
        ConfigError: there is no such section or key.
    """
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(usage=USAGE, description=f"Train a classifier and measure what it memorises.\n\n{_EPILOG}")
    parser.add_argument("--config", metavar="FILE", help="YAML or TOML file of keys; may be given several times.")
    parser.add_argument(f"--{FILE_FLAG}", metavar="FILE", help="The same, over configs/cifar100_wrn.yaml.")
    parser.add_class_arguments(Config)
    for action in parser._actions:  # hide what jsonargparse adds and is not accepted here: --optim FILE, --heads.taps+
        action.option_strings = [option for option in action.option_strings if not option.endswith("+")]
        if action.dest in known_keys().groups:
            action.help = argparse.SUPPRESS
        elif names := names_of(action.dest):
            action.help = f"{action.help} Also: {', '.join(f'--{name}' for name in names)}."
    sections = _named_sections(parser)
    if section is not None:
        _keep_section(parser, sections, section.removeprefix("--"))
    return parser.format_help()


def _named_sections(parser: argparse.ArgumentParser) -> dict[str, argparse._ArgumentGroup]:
    """Head every group of the help with its key, its meaning below, and return the groups by key."""
    sections = {}
    for group in parser._action_groups:
        dest = next((action.dest for action in group._group_actions if action.dest in known_keys().leaves), None)
        if dest is None:
            continue
        name = dest.rpartition(".")[0] or GENERAL
        group.title, group.description = name, group.title
        sections[name] = group
    return sections


def _keep_section(parser: argparse.ArgumentParser, sections: dict[str, argparse._ArgumentGroup], wanted: str) -> None:
    """Leave one section in the help, with those inside it, or one key."""
    for name, group in sections.items():
        if name != wanted and not name.startswith(f"{wanted}."):
            group._group_actions = [action for action in group._group_actions if action.dest == wanted]
    kept = [group for group in sections.values() if group._group_actions]
    if not kept:
        match = nearest(wanted.replace("-", "_"), [*sections, *known_keys().leaves])
        tops = ", ".join(name for name in sections if "." not in name)
        hint = f"nearest: {match}" if match else f"sections: {tops}"
        raise ConfigError(f"--help {wanted}: no such section or key; {hint}")
    parser._action_groups = kept
    parser.usage, parser.description = argparse.SUPPRESS, None
