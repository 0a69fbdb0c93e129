"""Images copied to each node's own disk before the first step (data.stage), by the first rank of each node; the others wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rlpheads.engine.config.data import DataConfig
from rlpheads.engine.distributed.launch import Launch
from rlpheads.engine.distributed.stop_flag import StopFlag
from rlpheads.loaders.contract.errors import DatasetError
from rlpheads.loaders.sources.local_copy import LocalCopy, make_local_copy
from rlpheads.loaders.sources.staging import Splits, copied_manifests, copy_name, files_to_copy, staged

_DONE, _MOVED, _FAILED = "staging done", "staging moved", "staging failed"
_STOP_WANTED, _STOPPED, _LEFT = "staging stop wanted", "staging stopped", "staging left"
_LEAVING_S = 10.0
_TURN_S = 0.5
_LINE_S = 30.0
_GB = 1e9


class StagingStoppedError(RuntimeError):
    """A stop signal came before the images were copied; the message names it. The same command goes on with the copy."""


def stage_splits(
    data: DataConfig, splits: Splits, launched: Launch, say: Callable[[str], object], stop_flag: StopFlag
) -> Splits:
    """Return the images as they lie on this node's disk; the very splits without `data.stage`. Collective.

    A rank that waits does so without a collective, whose time-out a long copy would exceed: the watchdog counts its time anew
    whenever some node's copy has grown.

    Args:
        data: this rank's own settings of the images: a variable in a path may differ between nodes.
        splits: the images as they are opened in `data.root`.
        launched: this rank among the others.
        say: gets lines on the copy that this rank makes.
        stop_flag: catches the stop signals already.

    Raises:
        DatasetError: the images cannot be copied on some node.
        StagingStoppedError: some rank was asked to stop while a node's copy was made; the same at every rank.
    """
    if data.stage is None or data.root is None:
        return splits
    launched.progress.enter("staging")
    root, place = Path(data.root).expanduser(), Path(data.stage).expanduser()
    try:
        manifests = copied_manifests(splits)
        folder = place / copy_name(splits, root, manifests)
        if launched.rank.local_rank == 0:
            fingerprints = [manifest.fingerprint for manifest in manifests]
            _Stager(LocalCopy(root, folder, fingerprints, files_to_copy(splits, root)), launched, say, stop_flag).run()
    except StagingStoppedError as stopped:
        launched.store.set(_STOPPED, str(stopped))
        _leave(launched)
        raise
    except (DatasetError, OSError) as error:
        launched.store.set(_FAILED, f"rank {launched.rank.rank}: data.stage: {error}")
        raise DatasetError(f"data.stage: {error}") from error
    _wait_for_all(launched, stop_flag)
    train, heldout = (staged(source, root, folder) for source in splits)
    return train, heldout


def _wait_for_all(launched: Launch, stop_flag: StopFlag) -> None:
    """Wait until the first rank of each node has its copy.

    A rank that waits only asks those that copy to stop. One that does has not said that it is done, and never will: so either
    all ranks go on, or all stop.

    Raises:
        DatasetError: one has failed.
        StagingStoppedError: one has stopped.
    """
    store, moved = launched.store, -1
    store.add(_DONE, 1)
    while store.add(_DONE, 0) < launched.world_size:
        if store.check([_FAILED]):
            raise DatasetError(store.get(_FAILED).decode())
        if store.check([_STOPPED]):
            reason = store.get(_STOPPED).decode()
            _leave(launched)
            raise StagingStoppedError(reason)
        if stop_flag.is_wanted:
            store.set(_STOP_WANTED, stop_flag.reason)
        if (now := store.add(_MOVED, 0)) != moved:
            moved = now
            launched.progress.restart_phase()
        time.sleep(_TURN_S)


def _leave(launched: Launch) -> None:
    """Stay a little, until every rank knows of the stop: the store may end with the rank that holds it."""
    launched.store.add(_LEFT, 1)
    until = time.monotonic() + _LEAVING_S
    while launched.store.add(_LEFT, 0) < launched.world_size and time.monotonic() < until:
        time.sleep(_TURN_S / 10)


class _Stager:
    """Makes a node's copy, and tells of it."""

    def __init__(self, copy: LocalCopy, launched: Launch, say: Callable[[str], object], stop_flag: StopFlag):
        self._copy, self._launched, self._say, self._stop_flag = copy, launched, say, stop_flag
        self._said = 0.0
        self._num_bytes = copy.num_bytes

    def run(self) -> None:
        began = time.monotonic()
        copied = make_local_copy(self._copy, self._told)
        took = f"{copied / _GB:.2f} GB copied in {time.monotonic() - began:.0f} s" if copied else "all there already"
        self._say(f"data.stage: {len(self._copy.files):,} files in {self._copy.folder}, {took}")

    def _told(self, num_bytes: int | None) -> None:
        if self._stop_flag.is_wanted:
            raise StagingStoppedError(self._stop_flag.reason)
        if self._launched.store.check([_STOP_WANTED]):
            raise StagingStoppedError(self._launched.store.get(_STOP_WANTED).decode())
        self._launched.store.add(_MOVED, 1)
        self._launched.progress.restart_phase()
        if time.monotonic() - self._said < _LINE_S:
            return
        self._said = time.monotonic()
        if num_bytes is None:
            self._say(f"data.stage: another process of this node copies to {self._copy.folder}; waiting for it")
        else:
            done = f"{num_bytes / _GB:.2f} of {self._num_bytes / _GB:.2f} GB"
            self._say(f"data.stage: copying to {self._copy.folder}, {done}")
