"""Names of the reference system: its flags, which are the keys of its parameter files too, and its values.

An old command line or file sets what these name, and one line says which key that is (`rlpheads.engine.config.command_line`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rlpheads.engine.config.errors import nearest, refusal

FILE_FLAG = "ifile"
"""Its flag for a parameter file: laid over its defaults, which are those of configs/cifar100_wrn.yaml."""

_VIT_SIZES = {"S": "vit_small_patch32_224", "B": "vit_base_patch32_224", "L": "vit_large_patch32_224"}


class ReferenceName(NamedTuple):
    """What one of its names means here."""

    key: str
    """Dotted key."""
    values: Mapping[str, str] = {}
    """Our value by its word for it; any other value is taken as it is."""
    only: bool = False
    """Whether these words are all that there are."""


REFERENCE_NAMES: dict[str, ReferenceName] = {
    "subLabels": ReferenceName("heads.labels"),
    "regFactor": ReferenceName("regularizer.factor"),
    "reg": ReferenceName("regularizer.factor"),
    "batchSize": ReferenceName("batch_size"),
    "model": ReferenceName("model.name", {"WRN": "wrn_16_4", "ViT": _VIT_SIZES["B"]}),
    "ViTSize": ReferenceName("model.name", _VIT_SIZES, only=True),
    "dataset": ReferenceName("data.dataset", {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "ImageNet": "imagefolder"}),
    "labelNoise": ReferenceName("data.label_noise"),
    "logDir": ReferenceName("run.dir"),
    "logSubDir": ReferenceName("run.name"),
    "contin": ReferenceName("run.resume", {"true": "must", "false": "never"}, only=True),
    "truncate": ReferenceName("run.overwrite"),
}
"""Every name of the reference that is no key here; `epochs` and `verbose` are both."""

SWITCHES = frozenset({"contin", "truncate"})
"""Names that may stand alone on a command line."""


def translate(where: str, name: str, value: object, current: object) -> object:
    """Return our value for what a reference name was given.

    Args:
        where: how a message calls the name, such as --ViTSize.
        name: one of `REFERENCE_NAMES`.
        value: what it was given; text from a command line, anything plain from a file.
        current: present value of the key. `--model ViT` leaves a ViT of another size as it is, so that the order of
            --model and --ViTSize does not matter.

    Raises:
        ConfigError: the name takes certain words only, and this is none of them.
    """
    meaning = REFERENCE_NAMES[name]
    word = str(value).lower() if isinstance(value, bool) else value
    if name == "model" and word == "ViT" and current in _VIT_SIZES.values():
        return current
    if isinstance(word, str) and word in meaning.values:
        return meaning.values[word]
    if not meaning.only:
        return value
    words = list(meaning.values)
    match = nearest(word, words) if isinstance(word, str) else None
    allowed = f"{', '.join(words[:-1])} or {words[-1]}" + (f" (nearest: {match})" if match else "")
    raise refusal(where, value, allowed)


def names_of(key: str) -> list[str]:
    """Return the reference's names for a dotted key."""
    return [name for name, meaning in REFERENCE_NAMES.items() if meaning.key == key]
