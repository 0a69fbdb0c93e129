"""Shared and tensor memory, with a record of who touched what: races and uninitialised reads are faults.

Two accesses are ordered by a `bar.sync` of the whole block between them (PTX ISA, 8 "Memory Consistency Model"); those of
asynchronous operations also by the wait that completes them. What the generic proxy wrote is visible to the asynchronous
one after a fence.proxy.async (9.7.13 "membar, fence").
"""

from dataclasses import dataclass

import numpy as np

from rlpheads.kernels.tools.ptx.formats import Array

SEVERAL = -2


class KernelError(Exception):
    """What a kernel must not do."""


@dataclass(eq=False)
class Flight:
    """An asynchronous operation that has begun, on these cells, and which threads know that it is complete."""

    text: str
    cells: Array
    writes: bool
    is_in: Array
    knows: Array
    pipe: str = ""
    """Operations of one pipe stay in their order among themselves (9.7.16.6 "tcgen05 memory consistency")."""


class CheckedMemory:
    """Cells of one type, touched by the threads of a block."""

    def __init__(self, name: str, cells: int, kind: type, num_threads: int) -> None:
        self.data: Array = np.zeros(cells, kind)
        self._name, self._num_threads, self._epoch = name, num_threads, 1
        self._is_set, self._unfenced = np.zeros((2, cells), bool)
        self._writer, self._reader = np.full((2, cells), -1, np.int32)
        self._written_at, self._read_at = np.zeros((2, cells), np.int32)
        self.flights: list[Flight] = []

    def read(self, cells_TN: Array, threads_T: Array) -> Array:
        """Let each thread read its row of cells."""
        self._check(cells_TN, threads_T, False)
        if not self.is_set(cells_TN):
            raise KernelError(f"reads {self._name} that was never written")
        threads_T1 = threads_T[:, None]
        others = (self._read_at[cells_TN] == self._epoch) & (self._reader[cells_TN] != threads_T1)
        self._reader[cells_TN] = threads_T1
        self._reader[cells_TN[others | (self._reader[cells_TN] != threads_T1)]] = SEVERAL
        self._read_at[cells_TN] = self._epoch
        return self.data[cells_TN]

    def write(self, cells_TN: Array, threads_T: Array, values_TN: Array) -> None:
        """Let each thread write its row of cells; two may write the same values to one cell."""
        self._check(cells_TN, threads_T, True, values_TN=values_TN)
        self._land(cells_TN, threads_T, values_TN)
        if (self.data[cells_TN] != values_TN).any():
            raise KernelError(f"two threads write different values to one place of {self._name}")

    def _land(self, cells_TN: Array, threads_T: Array, values_TN: Array) -> None:
        self.data[cells_TN] = values_TN
        self._is_set[cells_TN] = self._unfenced[cells_TN] = True
        self._writer[cells_TN] = threads_T[:, None]
        self._written_at[cells_TN] = self._epoch

    def begin(
        self, text: str, cells_PN: Array, parties_P: Array, *, writes: bool, span: int = 1, proxy: bool, pipe: str = ""
    ) -> Flight:
        """Begin an asynchronous operation of parties of `span` threads; `proxy`: it goes by the asynchronous proxy."""
        self._check(cells_PN, parties_P, writes, span, pipe)
        if proxy and self._unfenced[cells_PN].any():
            raise KernelError(f"the asynchronous proxy meets {self._name} written without a fence.proxy.async")
        if not writes and not self.is_set(cells_PN):
            raise KernelError(f"reads {self._name} that was never written")
        self._is_set[cells_PN] = True
        is_in = np.zeros(len(self.data), bool)
        is_in[cells_PN] = True
        knows = np.zeros(self._num_threads, bool)
        self.flights.append(Flight(text, np.array([cells_PN.min(), cells_PN.max()]), writes, is_in, knows, pipe))
        return self.flights[-1]

    def fill(self, cells_N: Array, values_N: Array) -> None:
        """Write by the asynchronous proxy, what `begin` announced."""
        self.data[cells_N] = values_N

    def settle(self, flight: Flight, cells_TN: Array, threads_T: Array, values_TN: Array) -> None:
        """End a flight as a plain write of the threads that waited for it."""
        self.flights.remove(flight)
        self._land(cells_TN, threads_T, values_TN)

    def is_set(self, cells: Array) -> bool:
        """Whether all cells were written."""
        return bool(self._is_set[cells].all())

    def barrier(self) -> None:
        """bar.sync: what any thread knows, all know."""
        self._epoch += 1
        self.flights = [flight for flight in self.flights if not flight.knows.any()]

    def fence(self, threads: Array) -> None:
        """fence.proxy.async of some threads: what they wrote, or knew by an earlier barrier, the other proxy sees."""
        cells = np.flatnonzero(self._unfenced)
        seen = (self._written_at[cells] < self._epoch) | threads[self._writer[cells]]
        self._unfenced[cells[seen]] = False

    def _check(
        self,
        cells_PN: Array,
        parties_P: Array,
        writes: bool,
        span: int = 1,
        pipe: str = "",
        values_TN: Array | None = None,
    ) -> None:
        low, high = cells_PN.min(), cells_PN.max()
        if low < 0 or high >= len(self.data):
            raise KernelError(f"cell {low if low < 0 else high} lies outside the {len(self.data)} of {self._name}")
        for flight in self.flights:
            if (writes or flight.writes) and not (pipe and pipe == flight.pipe):
                self._check_flight(flight, cells_PN, parties_P, span)
        party_P1 = parties_P[:, None]
        clash = (self._written_at[cells_PN] == self._epoch) & (self._writer[cells_PN] // span != party_P1)
        if writes:
            clash |= (self._read_at[cells_PN] == self._epoch) & (self._reader[cells_PN] // span != party_P1)
        if values_TN is not None:
            clash &= self.data[cells_PN] != values_TN
        if clash.any():
            cell = cells_PN[clash][0]
            last = f"thread {self._writer[cell]} wrote in epoch {self._written_at[cell]}, now {self._epoch}"
            raise KernelError(f"race: {'writes' if writes else 'reads'} cell {cell} of {self._name} ({last})")

    def _check_flight(self, flight: Flight, cells_PN: Array, parties_P: Array, span: int) -> None:
        if cells_PN.min() > flight.cells[1] or cells_PN.max() < flight.cells[0]:
            return
        knows_P = np.asarray(flight.knows.reshape(-1, span).all(1))[parties_P]
        if (flight.is_in[cells_PN] & ~knows_P[:, None]).any():
            raise KernelError(
                f"race: touches {self._name} in use by an asynchronous operation not waited for: {flight.text}"
            )
