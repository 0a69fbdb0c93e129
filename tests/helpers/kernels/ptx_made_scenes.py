"""Launches of one kernel with arguments made for it, in which faults show that the works leave unseen.

Numbers of a tensor are of one size, since what a steep row holds would hide the error of a flat one. Sizes that Triton
specialises by (1, multiples of 16) stay what they were.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

MANY_TILES = 300
"""More than `merge_tiles` takes at a time."""

Arguments = dict[str, Any]


def made_arguments(kernel: str, named: Arguments, num_heads: int) -> Iterator[Arguments]:
    """Arguments in place of those of a launch of that kernel."""
    if kernel == "merge_tiles_kernel":
        for seed in range(4):
            yield many_tiles(named, seed)
    elif kernel == "align_tiles_kernel":
        yield lifted_tiles(named)
    elif kernel in ("class_tiles_kernel", "row_shifts_kernel") and num_heads == 1:
        end = -(-named["num_classes"] // named["CLASSES"]) * named["CLASSES"]
        if kernel == "class_tiles_kernel":
            beyond = with_classes(named, end + (12 if named["num_classes"] % 16 else 16))
            yield with_logits(beyond, normal(beyond), labels_at=-1)
        if named["num_classes"] % 16:
            named = with_classes(named, end - 4)
        logits_BK = normal(named)
        yield with_logits(named, logits_BK)
        yield with_logits(named, -1 - logits_BK.abs())
        for place in (0, -1):
            yield with_logits(named, logits_BK, labels_at=place)
        for value in (-4.0, 4.0):
            for seed in range(2):
                yield with_logits(named, one_other(logits_BK / 10, value, seed))


def normal(named: Arguments) -> Tensor:
    """Logits of each row and class."""
    return torch.randn(named["num_rows"], named["num_classes"], generator=torch.Generator().manual_seed(0))


def many_tiles(named: Arguments, seed: int) -> Arguments:
    """Tiles that fill all threads more than once, labels in all: a label's own has the largest maximum, or others lift."""
    generator, rows = torch.Generator().manual_seed(seed), named["num_rows"]
    num_classes = MANY_TILES * named["TILE_CLASSES"] - 7
    changed: Arguments = {"num_tiles": MANY_TILES, "num_classes": num_classes}
    labels = torch.randint(num_classes, named["labels"].shape, generator=generator)
    for name in ("tile_max", "tile_sum", "tile_moment", "tile_logits"):
        if named[name].numel():
            changed[name] = torch.randn(MANY_TILES, rows, generator=generator)
    if seed % 2:
        changed["tile_max"] *= named["LIMIT"]  # in powers of two: some tiles are lifted
    else:
        changed["tile_max"][labels.flatten()[:rows] // named["TILE_CLASSES"], torch.arange(rows)] += 8
    changed["tile_sum"] = changed["tile_sum"].exp()
    return named | changed | {"labels": named["start"] + labels, "shift": torch.randn(rows, generator=generator)}


def lifted_tiles(named: Arguments) -> Arguments:
    """Rows that must be lowered by 0 to 2 powers of two, in all tiles."""
    generator = torch.Generator().manual_seed(0)
    changed: Arguments = {"tile_max": torch.zeros_like(named["tile_max"]), "shift": torch.zeros_like(named["shift"])}
    changed["lift"] = torch.randint(3, named["lift"].shape, generator=generator).to(named["lift"].dtype)
    for name in ("exps", "moments", "base"):
        if named[name].numel():
            changed[name] = like(named[name], torch.rand(named[name].shape, generator=generator) + 0.5)
    return named | changed


def with_classes(named: Arguments, number: int) -> Arguments:
    """As many classes, each with a row of the weight; the tiles stay those that there were."""
    weight, changed = named["weight"], {"num_classes": number, "classes_apart": number}
    rows = torch.zeros(number, named["stride_w"], dtype=getattr(weight, "base", weight).dtype)
    changed["weight"] = replace(weight, base=rows, shape=list(rows.shape)) if hasattr(weight, "block_shape") else rows
    if named["HAS_BIAS"]:
        changed["bias"] = torch.zeros(number, dtype=named["bias"].dtype)
    for name, stride in (("exps", "stride_e"), ("moments", "stride_m")):
        if named.get(stride):
            changed[stride] = -(-number // 64) * 64
            changed[name] = torch.zeros(len(named[name]), changed[stride], dtype=named[name].dtype)
    return named | changed


def with_logits(named: Arguments, logits_BK: Tensor, labels_at: int | None = None) -> Arguments:
    """Features of which each row has one 1, and so a column of the weight for its logits; labels in all classes, or in one."""
    rows, classes, features = named["num_rows"], named["num_classes"], named["num_features"]
    generator = torch.Generator().manual_seed(1)
    x_BD, w_KD = torch.zeros(rows, features), torch.zeros(classes, features)
    bias_K = torch.randn(classes, generator=generator) / 10
    for row in range(rows):
        x_BD[row, row % features] = 1
        w_KD[:, row % features] = logits_BK[row] - bias_K * named["HAS_BIAS"]
    labels = torch.randint(classes, named["labels"].shape, generator=generator)
    if labels_at is not None:
        labels = torch.full_like(labels, labels_at % classes)
    changed = {"features": like(named["features"], x_BD), "weight": like(named["weight"], w_KD)}
    changed["labels"] = labels + named["start"]
    if named["HAS_BIAS"]:
        changed["bias"] = like(named["bias"], bias_K)
    if "exps" in named:
        changed["shift"] = like(named["shift"], torch.rand(rows, generator=generator))
        changed["base"] = like(named["base"], torch.rand(named["base"].shape, generator=generator))
    return named | changed


def one_other(values_BK: Tensor, value: float, seed: int) -> Tensor:
    """One class of each row as large or as small as given, in each row another."""
    rows, classes = values_BK.shape
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    changed_BK = values_BK.clone()
    changed_BK[torch.arange(rows), order[torch.arange(rows) % classes]] = value
    return changed_BK


def moved(named: Arguments, gap: int) -> Iterator[Arguments]:
    """A size lowered by a gap, with no bias and no rows of a step beyond it; or labels moved by it to either side.

    Where features are fewer, rows are so long as before, or no longer than they: the last one then ends with its buffer.
    """
    for name, value in named.items():
        lowered = value + gap if name.startswith("num_") and type(value) is int else 0
        if gap < 0 and lowered > 1 and (lowered % 16 == 0) == (value % 16 == 0):
            changed: Arguments = {name: lowered}
            bias = named.get("bias") if name == "num_classes" else None
            changed |= {} if bias is None else {"bias": bias[:lowered].clone()}
            if name == "num_kept_rows" and "scaled" in named:
                changed |= {key: like(named[key][:lowered], named[key][:lowered]) for key in ("exps", "scaled")}
            yield named | changed
            if name == "num_features" and type(named.get("features")) is type(named.get("weight")) is Tensor:
                yield named | changed | with_narrow_rows(named, lowered)
    if gap and "labels" in named and "num_classes" in named:
        start = named.get("start", 0)
        for step in (gap, -gap):
            labels = (named["labels"] - start + step) % named["num_classes"]
            yield named | {"labels": labels + start}


def with_narrow_rows(named: Arguments, width: int) -> Arguments:
    """Features and weight whose rows hold so many features and nothing behind them."""
    strides = {"features": "stride_x", "weight": "stride_w"}
    rows = {name: named[name].reshape(-1, named[stride])[:, :width].contiguous() for name, stride in strides.items()}
    return rows | dict.fromkeys(strides.values(), width)


def like(wanted: Any, values: Tensor) -> Any:
    """Values in the dtype, the strides and the tensor descriptor of an argument."""
    if hasattr(wanted, "block_shape"):
        return replace(wanted, base=like(wanted.base, values))
    size = 1 + sum((number - 1) * stride for number, stride in zip(wanted.shape, wanted.stride(), strict=True))
    made = torch.zeros(size, dtype=wanted.dtype).as_strided(wanted.shape, wanted.stride())
    return made.copy_(values.reshape(wanted.shape) if values.numel() == wanted.numel() else values)
