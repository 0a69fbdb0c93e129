"""The regularisers of a study compared where they remove equally much: interpolated over λ to one accuracy of the audit heads.

A regulariser that hides memory from its own heads looks stronger than it is; at equal accuracy of heads that it never saw,
what it costs can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlpheads.memorization.measures.matched import common_level, value_at_level

LEVEL = "audit_rla"
_ByArm = Mapping[str, Mapping[int, Mapping[str, float]]]


def match_paths(
    arms: Mapping[str, Mapping[str, Any]],
    values: _ByArm,
    reference: str,
    summarize: Callable[[Sequence[float]], dict[str, Any]],
) -> dict[str, Any]:
    """Compare the paths of a study: arms that differ in `regularizer.factor` alone, from the reference at factor 0 on.

    Args:
        arms: settings of every arm.
        values: measures of every arm, by seed.
        reference: the arm that all paths begin at.
        summarize: mean and interval of values over seeds.

    Returns:
        `level`, the accuracy of the audit heads that every path of every seed passes through, and `paths`: by kind, every
        measure there; empty where fewer than two points make a path, or paths share no level.
    """
    paths = _paths(arms, values, reference)
    seeds = [
        seed
        for seed in values.get(reference, {})
        if all(seed in values[arm] for path in paths.values() for arm in path)
    ]
    on_paths = [values[arm][seed] for path in paths.values() for arm in path for seed in seeds]
    if not on_paths or not all(LEVEL in found for found in on_paths):
        return {}
    level = common_level([[values[arm][seed][LEVEL] for arm in path] for path in paths.values() for seed in seeds])
    if math.isnan(level):
        return {}
    return {
        "level": level,
        "paths": {
            name: {measure: summarize(found) for measure, found in _measures_at(level, path, values, seeds)}
            for name, path in paths.items()
        },
    }


def _paths(arms: Mapping[str, Mapping[str, Any]], values: _ByArm, reference: str) -> dict[str, list[str]]:
    """Return the arms of each path, by its kind; those with any other difference from the reference belong to none."""
    if not values.get(reference) or _regularizer(arms[reference]).get("factor", 0) != 0:
        return {}
    paths: dict[str, list[str]] = {}
    for arm, settings in arms.items():
        regularizer = _regularizer(settings)
        others = {key: value for key, value in settings.items() if key != "regularizer"}
        own_others = {key: value for key, value in arms[reference].items() if key != "regularizer"}
        if arm != reference and values.get(arm) and others == own_others and set(regularizer) <= {"kind", "factor"}:
            paths.setdefault(str(regularizer.get("kind", "unlikelihood")), [reference]).append(arm)
    return paths


def _measures_at(
    level: float, path: Sequence[str], values: _ByArm, seeds: Sequence[int]
) -> Iterator[tuple[str, list[float]]]:
    shared = set.intersection(*(set(values[arm][seed]) for arm in path for seed in seeds))
    for measure in (name for name in values[path[0]][seeds[0]] if name in shared and name != LEVEL):
        yield (
            measure,
            [
                value_at_level(level, [(values[arm][seed][LEVEL], values[arm][seed][measure]) for arm in path])
                for seed in seeds
            ],
        )


def _regularizer(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    found = settings.get("regularizer", {})
    return found if isinstance(found, Mapping) else {}
