"""The record of the networks that were trained on subsets: one file a group, written whole, only ever added to."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from rlpheads.engine.retraining.stacked_networks import RetrainingError
from rlpheads.engine.retraining.subset_training import SubsetNetworks
from rlpheads.memorization.atomic_file import atomic_file

_NAME = re.compile(r"networks=(\d{6})-(\d{6})\.npz")


@dataclass(frozen=True)
class TruthIdentity:
    """What networks must share to be counted together.

    Attributes:
        fingerprint: of the training images.
        seed: of the run.
        fraction: of the images that each network was trained on.
    """

    fingerprint: str
    seed: int
    fraction: float


class TruthRecord:
    """The folder RUN/truth, of networks of one identity, numbered from 0.

    Args:
        folder: it; `make_folder` makes it.
        identity: of the networks.
        num_samples: training images N.
    """

    def __init__(self, folder: Path, identity: TruthIdentity, num_samples: int):
        self._folder, self._identity, self._num_samples = folder, identity, num_samples

    def make_folder(self) -> None:
        """Make the folder, before anything is trained for it.

        Raises:
            OSError: it cannot be made.
        """
        self._folder.mkdir(exist_ok=True)

    def missing(self, num_networks: int, at_once: int) -> list[range]:
        """Return the groups, of at most `at_once`, that are to be trained for the first `num_networks` to be there."""
        there = {number for numbers in self._files() for number in numbers}
        left = [number for number in range(num_networks) if number not in there]
        groups: list[range] = []
        for number in left:
            if groups and groups[-1].stop == number and len(groups[-1]) < at_once:
                groups[-1] = range(groups[-1].start, number + 1)
            else:
                groups.append(range(number, number + 1))
        return groups

    def add(self, found: SubsetNetworks) -> None:
        """Add a group, whole or not at all."""
        last = found.first + len(found.hit_GN) - 1
        with (
            atomic_file(self._folder / f"networks={found.first:06d}-{last:06d}.npz") as temporary,
            temporary.open("wb") as file,
        ):
            np.savez(
                file,
                identity=np.array(json.dumps(asdict(self._identity))),
                inside=np.packbits(found.inside_GN.numpy(), axis=1),
                hit=np.packbits(found.hit_GN.numpy(), axis=1),
                loss=found.loss_GN.numpy(),
            )

    def read(self) -> SubsetNetworks:
        """Read all groups, in the order of their numbers.

        Raises:
            RetrainingError: there is none, or one is damaged or of other networks.
        """
        groups = [
            self._read_group(path, numbers) for numbers, path in sorted(self._files().items(), key=lambda x: x[0].start)
        ]
        if not groups:
            raise RetrainingError(f"{self._folder} holds no networks yet")
        columns = (torch.from_numpy(np.concatenate(column)) for column in zip(*groups, strict=True))
        return SubsetNetworks(0, *columns)

    def _files(self) -> dict[range, Path]:
        found = ((_NAME.fullmatch(path.name), path) for path in self._folder.glob("networks=*.npz"))
        return {range(int(name[1]), int(name[2]) + 1): path for name, path in found if name is not None}

    def _read_group(self, path: Path, numbers: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shape = (len(numbers), self._num_samples)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                identity = json.loads(str(content["identity"]))
                inside, hit = (
                    np.unpackbits(content[name], axis=1, count=self._num_samples).astype(bool)
                    for name in ("inside", "hit")
                )
                loss = content["loss"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise RetrainingError(
                f"{path} is damaged ({error}); delete it, and its networks are trained again"
            ) from error
        if identity != asdict(self._identity):
            raise RetrainingError(
                f"{path} is of networks with {identity}, not {asdict(self._identity)}; give --fraction as then, or delete "
                f"{self._folder}"
            )
        if any(array.shape != shape for array in (inside, hit, loss)):
            raise RetrainingError(f"{path} is damaged (its arrays are not {shape}); delete it")
        return inside, hit, loss
