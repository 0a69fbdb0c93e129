"""tcgen05: tensor memory, and products whose accumulator lies there (PTX ISA, 9.7.16).

An address has the lane in its upper 16 bits and the column in its lower. A warp reaches the 32 lanes of its place among four.
"""

import numpy as np

from rlpheads.kernels.tools.ptx.asynchronous_copies import barrier_at
from rlpheads.kernels.tools.ptx.block import TENSOR_COLUMNS, TENSOR_LANES, Action, Block
from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import Array, elements
from rlpheads.kernels.tools.ptx.program import Address
from rlpheads.kernels.tools.ptx.step import Step
from rlpheads.kernels.tools.ptx.tensor_cores import matrix_cells


def allocate(step: Step) -> None:
    """tcgen05.alloc: columns for all lanes, their address into shared memory (9.7.16.7.1)."""
    block, columns = step.block, step.one(1)
    first = sum(block.tensor_columns.values())
    if first + columns > TENSOR_COLUMNS:
        raise KernelError("allocates more tensor memory than there is")
    block.tensor_columns[first] = columns
    cells, written = step.shared_cells(0, 4)[:1], np.array([[first]], np.uint32).view(np.uint8)
    block.shared.write(cells, step.threads[:1], written)
    block.shared.fence(
        step.active
    )  # the ISA names no proxy for this write, and Triton lets a tensor copy follow unfenced


def release(step: Step) -> None:
    """tcgen05.dealloc: no operation may still use the columns (9.7.16.7.1)."""
    block = step.block
    if block.tensor_columns.pop(step.one(0), None) != step.one(1):
        raise KernelError("frees tensor memory that it does not hold")
    if block.tensor_products or any(barrier.actions for barrier in block.barriers.values()):
        raise KernelError("frees tensor memory in use")


def _cells(block: Block, address: Array, lanes: Array, columns: Array) -> Array:
    """Cells at lane and column offsets from each thread's address."""
    lane, column = (address >> 16)[:, None] + lanes, (address & 0xFFFF)[:, None] + columns
    if (column >= sum(block.tensor_columns.values())).any() or (lane >= TENSOR_LANES).any():
        raise KernelError("tensor memory that is not allocated")
    return lane * TENSOR_COLUMNS + column


def _warp_cells(step: Step, place: int, number: int) -> Array:
    """Cells of each thread: .32x32b a lane a thread; .16x32bx2 16 lanes, the upper half-warp at an offset (9.7.16.2.3)."""
    address = step.addresses(place, "u32")
    lane, warp, is_whole = step.threads[:, None] % 32, step.threads // 32, "32x32b" in step.modifiers
    if (address >> 21 != warp % 4).any() or (is_whole and (address >> 16 & 31).any()):
        raise KernelError("a warp reaches for lanes of tensor memory that are not its own")
    if is_whole:
        return _cells(step.block, address, lane, np.arange(number)[None])
    offset = step.one(2 if place == 1 else 1)
    return _cells(step.block, address, lane % 16, np.arange(number)[None] + offset * (lane // 16))


def load_columns(step: Step) -> None:
    """tcgen05.ld: registers are there after tcgen05.wait::ld (9.7.16.8.3)."""
    tensor = step.block.tensor
    cells = _warp_cells(step, 1, len(step.parts(0)))
    tensor.read(cells, step.threads)
    land = lambda: step.write_columns(0, tensor.data[cells])  # noqa: E731
    if step.block.launch.late:
        step.put_off(0, step.block.tensor_loads, land)
    else:
        land()


def store_columns(step: Step) -> None:
    """tcgen05.st: in tensor memory after tcgen05.wait::st (9.7.16.8.4)."""
    tensor, threads, values_TN = step.block.tensor, step.threads, step.columns(len(step.operands) - 1, "b32")
    cells = _warp_cells(step, 0, values_TN.shape[1])
    flight = tensor.begin(step.instruction.text[:60], cells, threads, writes=True, proxy=False)
    if not step.block.launch.late:
        tensor.fill(cells, values_TN)
    step.block.tensor_stores.append(lambda: tensor.settle(flight, cells, threads, values_TN))


def wait(step: Step) -> None:
    """tcgen05.wait: for all loads, or all stores, so far (9.7.16.8.5)."""
    actions = step.block.tensor_loads if step.modifiers[0] == "wait::ld" else step.block.tensor_stores
    for action in actions:
        action()
    actions.clear()


def begin_product(step: Step) -> None:
    """tcgen05.mma by one thread: D = A·B (+ D), A in tensor or shared memory, B in shared memory (9.7.16.10.9)."""
    block, thread, text = step.block, step.thread(), step.instruction.text[:90]
    product = _Product(step)
    operands = [(block.shared, product.b), (block.tensor if product.a_in_tensor else block.shared, product.a)]
    flights = []
    for memory, cells in operands:
        is_shared = memory is block.shared
        block.launch.counts.shared_bytes += cells.size * is_shared
        pipe = "" if is_shared else "mma"
        flights.append(memory.begin(text, cells.reshape(1, -1), thread, writes=False, proxy=is_shared, pipe=pipe))
    total = product.d.reshape(1, -1)
    if product.adds and not block.tensor.is_set(total):
        raise KernelError("adds to tensor memory that was never written")
    flights.append(block.tensor.begin(text, total, thread, writes=True, proxy=False, pipe="mma"))
    block.tensor_products.append((flights, product.compute))
    if not block.launch.late:
        product.compute()


class _Product:
    """Operands of one tcgen05.mma, by its instruction descriptor (9.7.16.4.2)."""

    def __init__(self, step: Step) -> None:
        self._block, a, bits = step.block, step.operands[1], step.one(3)
        rows, columns, kind = (bits >> 24 & 31) * 16, (bits >> 17 & 63) * 8, (step.modifiers[2], bits >> 7 & 7)
        self.kind = {("kind::f16", 0): "f16", ("kind::f16", 1): "bf16", ("kind::tf32", 2): "tf32"}[kind]
        if bits >> 4 & 3 != 1 or bits >> 10 & 7 != bits >> 7 & 7 or bits >> 13 & 3 or bits & 0xC:
            raise NotImplementedError(f"instruction descriptor {bits:#x}")
        self.adds = bool(step.column(4, "pred")[step.active][0])
        lanes = np.arange(rows) if rows == TENSOR_LANES else np.arange(rows) // 16 * 32 + np.arange(rows) % 16
        self.d = _cells(self._block, np.array([step.one(0)]), lanes[:, None], np.arange(columns)[None])
        self.a_in_tensor = isinstance(a, Address)
        if self.a_in_tensor:
            self.a = _cells(self._block, np.array([step.one(1)]), lanes[:, None], np.arange(8)[None])
        else:
            self.a = _shared_matrix(step.one(1, "u64"), rows, bool(bits >> 15 & 1))
        self.b = _shared_matrix(step.one(2, "u64"), columns, bool(bits >> 16 & 1))

    def compute(self) -> None:
        """Multiply; rounded as in `tensor_cores`."""
        shared, tensor = self._block.shared, self._block.tensor
        a = tensor.data[self.a].view(np.uint8) if self.a_in_tensor else shared.data[self.a]
        product = elements(a, self.kind) @ elements(shared.data[self.b], self.kind).T
        if self.adds:
            product += tensor.data[self.d].view(np.float32)
        tensor.fill(self.d, product.astype(np.float32).view(np.uint32))


def _shared_matrix(descriptor: int, rows: int, across: bool) -> Array:
    return matrix_cells(descriptor, {0: 0, 2: 3, 4: 2, 6: 1}[descriptor >> 61], rows, across)


def commit(step: Step) -> None:
    """tcgen05.commit: an mbarrier is arrived at when all products so far are complete (9.7.16.11.1)."""
    step.thread()
    block, late = step.block, step.block.launch.late
    barrier = barrier_at(block, step.one(0))
    products, block.tensor_products = block.tensor_products, []

    def land() -> None:
        for flights, compute in products:
            if late:
                compute()
            barrier.flights += flights
        barrier.arrive(1, 0)

    queue: list[Action] = barrier.actions
    queue.append(land)
    if not late:
        barrier.land()


ACTIONS = {
    "alloc": allocate, "dealloc": release, "ld": load_columns, "st": store_columns, "mma": begin_product, "wait::ld": wait,
    "wait::st": wait, "commit": commit, "relinquish_alloc_permit": lambda _: None,  # no other block wants to allocate
}  # fmt: skip
INSTRUCTIONS = {"tcgen05": lambda step: ACTIONS[step.modifiers[0]](step)}
"""By the second part of the name."""
