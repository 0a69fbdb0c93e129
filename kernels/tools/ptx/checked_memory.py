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
    extent: tuple[int, int]
    """Lowest and highest cell."""
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
        self._check(cells_TN, threads_T, writes=False)
        threads_T1 = threads_T[:, None]
        others = (self._read_at[cells_TN] == self._epoch) & (self._reader[cells_TN] != threads_T1)
        self._reader[cells_TN] = threads_T1
        self._reader[cells_TN[others | (self._reader[cells_TN] != threads_T1)]] = SEVERAL
        self._read_at[cells_TN] = self._epoch
        return self.data[cells_TN]

    def write(self, cells_TN: Array, threads_T: Array, values_TN: Array) -> None:
        """Let each thread write its row of cells; two may write the same values to one cell."""
        self._check(cells_TN, threads_T, writes=True, values_TN=values_TN)
        self.data[cells_TN] = values_TN
        self._written(cells_TN, threads_T)
        if (self.data[cells_TN] != values_TN).any():
            raise KernelError(f"two threads write different values to one place of {self._name}")

    def _written(self, cells_TN: Array, threads_T: Array) -> None:
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
        self._is_set[cells_PN] = True
        is_in, knows = np.zeros(len(self.data), bool), np.zeros(self._num_threads, bool)
        is_in[cells_PN] = True
        self.flights.append(Flight(text, (cells_PN.min(), cells_PN.max()), writes, is_in, knows, pipe))
        return self.flights[-1]

    def settle(self, flight: Flight, cells_TN: Array, threads_T: Array) -> None:
        """End a flight as a plain write of the threads that waited for it."""
        self.flights.remove(flight)
        self._written(cells_TN, threads_T)

    def require_set(self, cells: Array) -> None:
        """Refuse a read of cells that were never written."""
        if not self._is_set[cells].all():
            raise KernelError(f"reads {self._name} that was never written")

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
        party_P1 = parties_P[:, None]
        for flight in self.flights:
            keeps_order = not (writes or flight.writes) or (pipe and pipe == flight.pipe)
            if keeps_order or low > flight.extent[1] or high < flight.extent[0]:
                continue
            knows_P1 = np.asarray(flight.knows.reshape(-1, span).all(1))[party_P1]
            if (flight.is_in[cells_PN] & ~knows_P1).any():
                raise KernelError(
                    f"race: touches {self._name} in use by an asynchronous operation not waited for: {flight.text}"
                )
        clash = (self._written_at[cells_PN] == self._epoch) & (self._writer[cells_PN] // span != party_P1)
        if writes:
            clash |= (self._read_at[cells_PN] == self._epoch) & (self._reader[cells_PN] // span != party_P1)
        else:
            self.require_set(cells_PN)
        if values_TN is not None:
            clash &= self.data[cells_PN] != values_TN
        if clash.any():
            cell = cells_PN[clash][0]
            last = f"thread {self._writer[cell]} wrote in epoch {self._written_at[cell]}, now {self._epoch}"
            raise KernelError(f"race: {'writes' if writes else 'reads'} cell {cell} of {self._name} ({last})")
