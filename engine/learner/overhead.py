"""What heads cost: steps with them and without them, timed in turn on one batch, and the memory that they keep.

Made for the end of a run, when everything is written: the steps move the weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import Tensor

from rlpheads.engine.learner.learner import Learner
from rlpheads.engine.learner.parts import FrozenPart
from rlpheads.engine.learner.step import TrainStep
from rlpheads.loaders.contract.batch import Batch
from rlpheads.memorization.heads.class_shards import is_dtensor
from rlpheads.memorization.heads.combined_loss import TermWeights
from rlpheads.memorization.records.ledger import Ledger

_WARMUP = 2
_MOST_PAIRS = 10
_LEAST_PAIRS = 3
_STEPS_A_PAIR = 20
"""Steps of the run for each timed pair, so that the timing takes a small share of it."""


@dataclass(frozen=True)
class Overhead:
    """What heads and audit heads cost a step, at one rank.

    Attributes:
        with_seconds: median time of a step with heads; the batch is there already.
        without_seconds: that of a step of the network alone.
        num_pairs: steps of each kind.
        kept_bytes: the heads' weights and optimizer state, labels, and their columns of the ledger.
        step_bytes: by how much more a step with heads allocates at its peak; None where the device does not tell.
        taps_stay: the taps are read in both, as in a compiled network.
    """

    with_seconds: float
    without_seconds: float
    num_pairs: int
    kept_bytes: int
    step_bytes: int | None
    taps_stay: bool

    @property
    def share(self) -> float:
        """Time that heads add, in shares of a step of the network alone."""
        return self.with_seconds / self.without_seconds - 1

    def describe(self) -> str:
        """Return one line of text."""
        peak = "" if self.step_bytes is None else f", and {self.step_bytes / 2**20:,.1f} MiB more at a step's peak"
        stay = "; taps are read in both" if self.taps_stay else ""
        return (
            f"overhead of the heads: {100 * self.share:+.1f}% time a step ({1000 * self.with_seconds:.1f} ms, without heads "
            f"{1000 * self.without_seconds:.1f} ms: medians of {self.num_pairs}, in turn on the last batch{stay}); "
            f"{self.kept_bytes / 2**20:,.1f} MiB of weights, optimizer state, labels and ledger{peak}"
        )


def num_timed_pairs(num_steps: int) -> int:
    """Return how many pairs of steps may be timed after so many of a run; 0 where it is too short."""
    pairs = min(_MOST_PAIRS, num_steps // _STEPS_A_PAIR)
    return pairs if pairs >= _LEAST_PAIRS else 0


def time_heads(
    step: TrainStep, batch: Batch, num_updates: int, weights: TermWeights, num_pairs: int
) -> Overhead | None:
    """Time steps with heads and without; None where there are no heads, or they are all that is trained. Collective.

    Args:
        step: the run's own step; weights, optimizers and the ledger in memory are other ones afterwards.
        batch: prepared, on the device.
        num_updates: optimizer steps taken.
        weights: λ and μ.
        num_pairs: timed steps of each kind.
    """
    learner = step.learner
    if learner.heads is None or isinstance(learner.backbone, FrozenPart):
        return None
    taps_stay = bool(step.config.runtime.compile)  # without them it would be compiled again
    watches = {kind: _DeviceWatch(batch.images.device) for kind in (True, False)}
    bare = _without_heads(step)

    def take(with_heads: bool) -> None:
        if with_heads or taps_stay:
            (step if with_heads else bare)(batch, num_updates, weights)
            return
        with learner.tapped.without_taps():
            bare(batch, num_updates, weights)

    for kind in (True, False) * _WARMUP:
        watches[kind].forget_peak()
        take(kind)
        watches[kind].keep_peak()
    for pair in range(num_pairs):
        for kind in (True, False) if pair % 2 else (False, True):
            with watches[kind].timing():
                take(kind)
    ours, theirs = watches[True].peak, watches[False].peak
    return Overhead(
        with_seconds=median(watches[True].seconds()),
        without_seconds=median(watches[False].seconds()),
        num_pairs=num_pairs,
        kept_bytes=_kept_bytes(step),
        step_bytes=None if ours is None or theirs is None else ours - theirs,
        taps_stay=taps_stay,
    )


def _without_heads(step: TrainStep) -> TrainStep:
    """Return the step of the same network alone."""
    routes = replace(step.routes.measuring(), num_draws=0)
    ledger = Ledger(step.ledger.num_samples, 0, 1, step.table_MN.device)
    learner = replace(step.learner, heads=None, audit=None)
    return replace(step, learner=learner, table_MN=step.table_MN[:0], ledger=ledger, routes=routes)


def _kept_bytes(step: TrainStep) -> int:
    return sum(_bytes(tensors) for tensors in (_head_tensors(step.learner), [step.table_MN], _ledger_columns(step)))


def _head_tensors(learner: Learner) -> Iterator[Tensor]:
    for part in (learner.heads, learner.audit):
        if part is not None:
            yield from part.module.parameters()
            for state in part.optimizer.state.values():
                yield from (each for each in state.values() if isinstance(each, Tensor))


def _ledger_columns(step: TrainStep) -> list[Tensor]:
    rows = step.ledger.tensors()
    return [rows[name] for name in ("hit", "bits", "margin")]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum((each.to_local() if is_dtensor(each) else each).nbytes for each in tensors)


@dataclass
class _DeviceWatch:
    """Takes times on the device's own stream, which is waited for once at the end; on a CPU on the host."""

    device: torch.device
    peak: int | None = None
    _host: list[float] = field(default_factory=list)
    _events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    @contextmanager
    def timing(self) -> Iterator[None]:
        if self.device.type != "cuda":
            before = time.perf_counter()
            yield
            self._host.append(time.perf_counter() - before)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._events.append((begin, end))

    def seconds(self) -> list[float]:
        """Return the times, once the device has come so far."""
        if self._events:
            self._events[-1][1].synchronize()
        return self._host + [begin.elapsed_time(end) / 1000 for begin, end in self._events]

    def forget_peak(self) -> None:
        """Begin to look for the most memory that is allocated."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def keep_peak(self) -> None:
        """Keep the most memory that was allocated since, in bytes."""
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
