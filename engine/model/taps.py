"""Taps: places in the network where heads read features, their names, and pooling into one vector for each image.

Names of places:

    3            the output of block 3 (of a stage, where the network is built of stages); -1 is the last
    3.attn       inside block 3, the residual stream after attention was added
    3.mlp        inside block 3, the residual stream after the MLP was added: the block's output, by another name
    layer2.0     the output of the module of that name
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Pool = Literal["token", "mean"]
Tap = int | str
"""The name of a place: a block's number, or text."""

_NO_BLOCKS = (
    "this network is none of timm's, so its blocks have no numbers; name modules, as named_modules() lists them"
)
_INSIDE = re.compile(r"(-?\d+)(?:\.(attn|mlp))?")


class Place(NamedTuple):
    """Where features are read: after block `block`, inside it after `part`, or after the module called `module`."""

    block: int = -1
    part: str | None = None
    module: str | None = None

    @property
    def name(self) -> Tap:
        """The number of a block, or the text that names a place of another kind."""
        if self.module is not None:
            return self.module
        return f"{self.block}.{self.part}" if self.part else self.block

    @property
    def is_inside(self) -> bool:
        """Whether this is the residual stream inside a block."""
        return self.part == "attn"

    def __str__(self) -> str:
        return str(self.name)


@dataclass(frozen=True)
class Layout:
    """Places where a network can be tapped, and their order in depth.

    Attributes:
        block_ranks: depth of each block's output, as a number that orders the places of this network.
        module_ranks: the same for each module by name.
        attention_ranks: the same for the attention of each block that has a tap inside.
        closed: why the other blocks have none.
    """

    block_ranks: Sequence[float]
    module_ranks: Mapping[str, float]
    attention_ranks: Mapping[int, float]
    closed: str = ""

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self.block_ranks)

    def rank(self, place: Place) -> float:
        """Depth of a place; two names of one place have one rank."""
        if place.module is not None:
            return self.module_ranks[place.module]
        return self.attention_ranks[place.block] if place.is_inside else self.block_ranks[place.block]


def select_places(spec: Tap | Sequence[Tap], layout: Layout) -> tuple[Place, ...]:
    """Places that `spec` names, in order of depth, without repeats.

    Args:
        spec: "all" blocks, "none", "inside" (after attention and after the MLP of every block), or names of places.
        layout: where the network can be tapped.

    Raises:
        ValueError: an unknown word, an empty list, no such place, one place named twice, or a place inside a block that
            has no taps inside.
    """
    if isinstance(spec, (int, str)):
        places = _places_of_word(spec, layout)
    elif spec:
        places = [_read_place(name, layout) for name in spec]
    else:
        raise ValueError("an empty list of taps: name at least one block, or write 'none' for no heads")
    for place in places:
        if place.part and place.block not in layout.attention_ranks:
            raise ValueError(f"tap {place}: {layout.closed}; use {place.block}")
    by_rank: dict[float, Place] = {}
    for place in places:
        before = by_rank.setdefault(layout.rank(place), place)
        if before is not place:
            raise ValueError(f"taps name one place twice, as {before} and as {place}: each place at most once")
    return tuple(by_rank[rank] for rank in sorted(by_rank))


def _places_of_word(spec: Tap, layout: Layout) -> list[Place]:
    parts_by_word: dict[Tap, tuple[str | None, ...]] = {"all": (None,), "none": (), "inside": ("attn", "mlp")}
    if spec not in parts_by_word:
        close = _nearest(str(spec), map(str, parts_by_word))
        raise ValueError(f"unknown taps {spec!r}: use all, none, inside or a list of places{close}")
    if spec != "none" and not layout.num_blocks:
        raise ValueError(f"taps {spec!r}: {_NO_BLOCKS}")
    return [Place(block, part) for block in range(layout.num_blocks) for part in parts_by_word[spec]]


def _read_place(name: Tap, layout: Layout) -> Place:
    if isinstance(name, int) and not isinstance(name, bool):
        return Place(_block(name, layout.num_blocks))
    if not isinstance(name, str):
        raise ValueError(f"a tap is a whole number or text, got {name!r}")
    if not layout.num_blocks and name in layout.module_ranks:
        return Place(module=name)  # also of a sequence, whose modules are called "0", "1", …
    if match := _INSIDE.fullmatch(name):
        return Place(_block(int(match[1]), layout.num_blocks), match[2])
    if name in layout.module_ranks:
        return Place(module=name)
    inside = [f"{block}.{part}" for block in layout.attention_ranks for part in ("attn", "mlp")]
    close = _nearest(name, [*inside, *layout.module_ranks])
    if not layout.num_blocks:
        raise ValueError(f"there is no place {name!r}; allowed: names of modules, as named_modules() lists them{close}")
    raise ValueError(
        f"there is no place {name!r}; allowed: a block's number, such as 0 or -1, places inside blocks, such as 3.attn or "
        f"3.mlp, and names of modules{close}"
    )


def _block(number: int, num_blocks: int) -> int:
    """Return the block that a possibly negative number names."""
    if not num_blocks:
        raise ValueError(f"tap {number}: {_NO_BLOCKS}")
    if not -num_blocks <= number < num_blocks:
        nearest = num_blocks - 1 if number > 0 else -num_blocks
        raise ValueError(
            f"tap {number} is not there: the network has {num_blocks} blocks, 0 to {num_blocks - 1}, or "
            f"{-num_blocks} to -1 from the end; the nearest is {nearest}"
        )
    return number % num_blocks


def _nearest(word: str, choices: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" (nearest: {matches[0]})" if matches else ""
