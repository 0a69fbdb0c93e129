"""Label noise and canaries: training samples with wrong classes, repeated images and near-duplicates, put in on purpose.

Canaries test whether a measure finds them. Which samples they are is a pure function of (seed, canonical index):
ranks, workers, loader and order do not matter. Each kind has a stream of its own and no sample is of two kinds; adding a
kind takes samples from another only where both chose the same. Without any, the source is returned itself, with its
fingerprint.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlpheads.loaders.contract.arrays import Int64Array
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.contract.hashing import hash64, stream_key
from rlpheads.loaders.contract.keyed_random import uniforms
from rlpheads.loaders.contract.manifest import Manifest
from rlpheads.loaders.decoding.decode import reindexed_errors
from rlpheads.loaders.sources.datasets import EncodedSource, ImageSource

MISLABELLED, REPEATED, NEAR_DUPLICATE, NOISY = "mislabelled", "repeated", "near_duplicate", "noisy"


@dataclass(frozen=True)
class CanarySpec:
    """Label noise and canaries of a training split.

    Attributes:
        label_noise: Fraction of the samples whose class is replaced by another, in [0, 1); the number is rounded.
        mislabelled: Samples whose class is replaced by another, each as likely; listed as a kind of their own beside the noise.
        repeated: Images that stand in the split several times.
        repeats: How many times in total, at least 2; the images take these numbers in turn.
        near_duplicates: Images of which a copy, a tenth darker, is added.
        noise_kind: Which class noise gives: "symmetric", each other one as likely, or "pairwise", always the next one.
    """

    label_noise: float = 0.0
    mislabelled: int = 0
    repeated: int = 0
    repeats: tuple[int, ...] = (2, 4, 8)
    near_duplicates: int = 0
    noise_kind: Literal["symmetric", "pairwise"] = "symmetric"


@dataclass(frozen=True)
class CanaryTruth:
    """Which samples are canaries or noisy, arrays (P,) sorted by index.

    Attributes:
        index: int64, canonical index.
        kind: "mislabelled", "repeated", "near_duplicate" or "noisy". Of the second and third kind are all copies of an
            image, the original among them.
        original: int64, index of the image that this one is a copy of; the index itself where it is no copy.
        true_class: int64, the class before it was replaced.
    """

    index: Int64Array
    kind: NDArray[np.str_]
    original: Int64Array
    true_class: Int64Array


@dataclass(frozen=True)
class CanarySource:
    """A source with label noise and canaries. Copies stand behind the source's own samples, each with an index of its own.

    Attributes:
        manifest: The samples, with the replaced classes; a copy is named after its original: NAME#2, NAME#darker.
        truth: Which samples are canaries or noisy.
        source: The images as they were; its manifest holds the true classes.
        copied: int64 (A,), index of the image behind each copy.
        num_exact: How many of the copies, from the first, are exact; the others are darker.
    """

    manifest: Manifest
    truth: CanaryTruth
    source: ImageSource
    copied: Int64Array
    num_exact: int

    def read(self, index: int) -> Tensor:
        """Read one image: uint8 (3, H, W).

        Raises:
            ImageReadError: If it cannot be read; with the index of the copy and the path of the original.
        """
        original, darker = self._original(index)
        with reindexed_errors(index):
            image = self.source.read(original)
        return image - image // 10 if darker else image

    def encoded(self, index: int) -> bytes | None:
        """Return the bytes of an image's file; None where there is none, or where a copy is not exact.

        Raises:
            ImageReadError: If it cannot be read; with the index of the copy and the path of the original.
        """
        original, darker = self._original(index)
        with reindexed_errors(index):
            return self.source.encoded(original) if isinstance(self.source, EncodedSource) and not darker else None

    def decode(self, index: int, data: bytes) -> Tensor:
        """Decode what `encoded` returned: uint8 (3, H, W).

        Raises:
            ImageReadError: If it is not a whole image; with the index of the copy and the path of the original.
        """
        assert isinstance(self.source, EncodedSource)
        with reindexed_errors(index):
            return self.source.decode(self._original(index)[0], data)

    def _original(self, index: int) -> tuple[int, bool]:
        """Return which image of the source this is, and whether it is a darker copy."""
        copy = index - self.source.manifest.num_samples
        return (index, False) if copy < 0 else (int(self.copied[copy]), copy >= self.num_exact)


def insert_canaries(source: ImageSource, spec: CanarySpec, seed: int) -> ImageSource:
    """Return the source with label noise and canaries; the very source where the spec asks for none.

    Raises:
        DatasetError: If more samples are asked for than there are, or fewer than one copy.
    """
    if spec.repeated and min(spec.repeats, default=0) < 1:
        raise DatasetError(f"repeats is {spec.repeats}; each number of copies must be at least 1")
    manifest = source.manifest
    chosen = _choose_samples(manifest, spec, seed)
    if not any(map(len, chosen.values())):
        return source
    targets_N = manifest.targets.copy()
    for kind in (MISLABELLED, NOISY):
        pairwise = kind == NOISY and spec.noise_kind == "pairwise"
        targets_N[chosen[kind]] = _other_classes(manifest, chosen[kind], seed, pairwise=pairwise)
    repeats = np.resize(np.asarray(spec.repeats, dtype=np.int64), len(chosen[REPEATED]))
    exact, darker = np.repeat(chosen[REPEATED], repeats - 1), chosen[NEAR_DUPLICATE]
    suffixes = [f"#{copy}" for count in repeats for copy in range(2, count + 1)] + ["#darker"] * len(darker)
    copied = np.concatenate([exact, darker])
    return CanarySource(
        manifest=_append_copies(replace(manifest, targets=targets_N), copied, suffixes),
        truth=_truth(manifest, chosen, np.repeat([REPEATED, NEAR_DUPLICATE], [len(exact), len(darker)]), copied),
        source=source,
        copied=copied,
        num_exact=len(exact),
    )


def _choose_samples(manifest: Manifest, spec: CanarySpec, seed: int) -> dict[str, Int64Array]:
    """Return the samples of each kind, sorted: those with the least hashes in the kind's stream that are still free."""
    num_samples = manifest.num_samples
    wanted = {
        MISLABELLED: spec.mislabelled,
        REPEATED: spec.repeated,
        NEAR_DUPLICATE: spec.near_duplicates,
        NOISY: round(spec.label_noise * num_samples),
    }
    if sum(wanted.values()) > num_samples:
        asked = ", ".join(f"{count} {kind}" for kind, count in wanted.items() if count)
        raise DatasetError(
            f"{asked}: these are {sum(wanted.values())} different samples to plant in, but split {manifest.split!r} has "
            f"{num_samples}; lower data.canaries or data.label_noise"
        )
    free_N = np.ones(num_samples, dtype=bool)
    chosen = {}
    for kind, count in wanted.items():
        chosen[kind] = _lowest_hashes(free_N, count, seed, kind)
        free_N[chosen[kind]] = False
    return chosen


def _lowest_hashes(free_N: NDArray[np.bool_], count: int, seed: int, stream: str) -> Int64Array:
    """Return the free samples with the least hashes in a stream, sorted: int64 (count,)."""
    if not count:
        return np.empty(0, dtype=np.int64)
    by_hash_N = np.argsort(hash64(seed, stream_key(stream), np.arange(len(free_N))))
    return np.sort(by_hash_N[free_N[by_hash_N]][:count])


def _other_classes(manifest: Manifest, index_B: Int64Array, seed: int, *, pairwise: bool) -> Int64Array:
    """Return for each sample one of the classes that it is not of, each as likely, or the next one: int64 (B,)."""
    num_classes = len(manifest.classes)
    if num_classes < 2 and len(index_B):
        raise DatasetError(f"split {manifest.split!r} has one class only: there is no wrong one to give to a sample")
    uniform_B = uniforms(seed, 0, index_B, 1, stream="wrong class")[:, 0]
    step_B = 1 + (0 if pairwise else (uniform_B * (num_classes - 1)).astype(np.int64))
    return (manifest.targets[index_B] + step_B) % num_classes


def _append_copies(manifest: Manifest, copied_A: Int64Array, suffixes: list[str]) -> Manifest:
    """Return the manifest with copies of some samples behind its own."""
    names = [f"{manifest.name(original)}{suffix}" for original, suffix in zip(copied_A, suffixes, strict=True)]
    copies = Manifest.from_columns(
        [os.fsencode(name) for name in names],
        manifest.targets[copied_A],
        manifest.sizes[copied_A],
        classes=manifest.classes,
        root=manifest.root,
        split=manifest.split,
    )
    return replace(
        manifest,
        name_bytes=np.concatenate([manifest.name_bytes, copies.name_bytes]),
        name_offsets=np.concatenate([manifest.name_offsets, manifest.name_offsets[-1] + copies.name_offsets[1:]]),
        targets=np.concatenate([manifest.targets, copies.targets]),
        sizes=np.concatenate([manifest.sizes, copies.sizes]),
        unreadable={**manifest.unreadable, **_unreadable_copies(manifest, copied_A)},
    )


def _unreadable_copies(manifest: Manifest, copied_A: Int64Array) -> dict[int, str]:
    """Return why copies are unreadable: because their originals are."""
    originals = enumerate(copied_A.tolist(), start=manifest.num_samples)
    return {index: manifest.unreadable[original] for index, original in originals if original in manifest.unreadable}


def _truth(
    manifest: Manifest, chosen: dict[str, Int64Array], kind_A: NDArray[np.str_], copied_A: Int64Array
) -> CanaryTruth:
    """List the canaries and noisy samples: the chosen ones, then the copies behind the split's own."""
    original = np.concatenate([*chosen.values(), copied_A])
    index = np.concatenate([*chosen.values(), manifest.num_samples + np.arange(len(copied_A))])
    kind = np.concatenate([np.repeat(list(chosen), [len(index) for index in chosen.values()]), kind_A])
    order = np.argsort(index)
    return CanaryTruth(index[order], kind[order], original[order], manifest.targets[original[order]])
