"""Traces of training steps by torch's profiler, for looking at where the time goes. They change no result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import profiler

from rlpheads.engine.config.run import ProfileConfig
from rlpheads.engine.distributed.launch import Launch
from rlpheads.memorization.atomic_file import atomic_file


class StepTracer:
    """Traces the steps that `runtime.profile` asks for and writes them as one Chrome trace a rank.

    Waiting for a batch, the step and what is done between steps are in it; evaluations are not, unless the window reaches over
    one. Starting and writing cost seconds, in which nothing is trained.

    Args:
        config: which steps, at which ranks.
        launch: this rank and its device.
        folder: where the traces go, made when there is one: `steps=000010-000014.rank=0000.json`, which Perfetto
            (ui.perfetto.dev) and chrome://tracing open.
        say: is told where a trace is, or that there is none.
    """

    def __init__(self, config: ProfileConfig, launch: Launch, folder: Path, say: Callable[[str], None]):
        self._first = config.first
        self._last = -1 if config.first is None else config.first + config.steps - 1
        self._taken = config.ranks == "all" or launch.is_main
        self._rank = launch.rank.rank
        self._activities = [profiler.ProfilerActivity.CPU]
        if launch.device.type == "cuda":
            self._activities.append(profiler.ProfilerActivity.CUDA)
        self._folder = folder
        self._say = say
        self._profile: profiler.profile | None = None
        self._traced: list[int] = []

    @property
    def is_on(self) -> bool:
        """Whether this rank traces any step."""
        return self._first is not None and self._taken

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Trace what is done inside, if optimizer step `number` (from 0) is one of those asked for."""
        if self._first is None or not self._taken or not self._first <= number <= self._last:
            yield
            return
        if self._profile is None:
            self._profile = profiler.profile(activities=self._activities)
            self._profile.start()
        with profiler.record_function(f"training step {number}"):
            yield
        self._traced.append(number)
        if number == self._last:
            self._write(self._profile)

    def close(self) -> None:
        """Write the trace of a run that ends inside the window; say if no step was traced."""
        if self._profile is not None:
            self._write(self._profile)
        elif self._first is not None and self._taken and not self._traced:
            self._say(
                f"no step was traced: runtime.profile.first is {self._first}, and no step from there on was trained"
            )

    def _write(self, profile: profiler.profile) -> None:
        self._profile = None
        profile.stop()
        if not self._traced:  # the first step of the window failed
            return
        steps = f"{self._traced[0]:06d}-{self._traced[-1]:06d}"
        path = self._folder / f"steps={steps}.rank={self._rank:04d}.json"
        with atomic_file(path) as temporary:
            profile.export_chrome_trace(str(temporary))
        self._say(f"trace of steps {self._traced[0]} to {self._traced[-1]}: {path}")
