"""tcgen05: tensor memory, and products whose accumulator lies there (PTX ISA, 9.7.16).

An address has the lane in its upper 16 bits and the column in its lower. A warp reaches the 32 lanes of its place among four.
"""

import numpy as np

from rlpheads.kernels.tools.ptx.block import TENSOR_COLUMNS, TENSOR_LANES, Block, complete
from rlpheads.kernels.tools.ptx.checked_memory import KernelError
from rlpheads.kernels.tools.ptx.formats import Array, elements
from rlpheads.kernels.tools.ptx.program import Address, Operand, parts
from rlpheads.kernels.tools.ptx.step import Step
from rlpheads.kernels.tools.ptx.tensor_cores import begin_reading, matrix_cells


def allocate(step: Step) -> None:
    """tcgen05.alloc: columns for all lanes, their address into shared memory (9.7.16.7.1).

    The ISA names no proxy for this write, and Triton lets a tensor copy follow unfenced.
    """
    block, (target, size) = step.block, step.operands
    first, columns = sum(block.tensor_columns.values()), step.one(size)
    if first + columns > TENSOR_COLUMNS:
        raise KernelError("allocates more tensor memory than there is")
    block.tensor_columns[first] = columns
    block.shared.write(step.shared_cells(target, 4)[:1], step.threads[:1], np.array([[first]], "u4").view(np.uint8))
    block.shared.fence(step.active)


def release(step: Step) -> None:
    """tcgen05.dealloc: no operation may still use the columns (9.7.16.7.1)."""
    block, (first, columns) = step.block, map(step.one, step.operands)
    if block.tensor_columns.pop(first, None) != columns:
        raise KernelError("frees tensor memory that it does not hold")
    if block.tensor_flights or any(barrier.actions for barrier in block.barriers.values()):
        raise KernelError("frees tensor memory in use")


def _cells(block: Block, address: Array, lanes: Array, columns: Array) -> Array:
    """Cells at lane and column offsets from each thread's address."""
    lane, column = (address >> 16)[:, None] + lanes, (address & 0xFFFF)[:, None] + columns
    if (column >= sum(block.tensor_columns.values())).any() or (lane >= TENSOR_LANES).any():
        raise KernelError("tensor memory that is not allocated")
    return lane * TENSOR_COLUMNS + column


def _warp_cells(step: Step, where: Operand, number: int, offset: int) -> Array:
    """Cells of each thread: .32x32b a lane a thread; .16x32bx2 16 lanes, the upper half-warp at an offset (9.7.16.2.3)."""
    address = step.addresses(where, "u32")
    lane, warp, lanes = step.threads[:, None] % 32, step.threads // 32, 32 if "32x32b" in step.modifiers else 16
    if (address >> 21 != warp % 4).any() or (lanes == 32 and (address >> 16 & 31).any()):
        raise KernelError("a warp reaches for lanes of tensor memory that are not its own")
    return _cells(step.block, address, lane % lanes, np.arange(number)[None] + offset * (lane // lanes))


def load_columns(step: Step) -> None:
    """tcgen05.ld: registers are there after tcgen05.wait::ld (9.7.16.8.3)."""
    target, where, *offset = step.operands
    tensor, cells = step.block.tensor, _warp_cells(step, where, len(parts(target)), *map(step.one, offset or [0]))
    tensor.read(cells, step.threads)
    step.write_later(target, step.block.tensor_loads, lambda: step.write_columns(target, tensor.data[cells]))


def store_columns(step: Step) -> None:
    """tcgen05.st: in tensor memory after tcgen05.wait::st (9.7.16.8.4)."""
    where, *offset, source = step.operands
    block, tensor, threads, values_TN = step.block, step.block.tensor, step.threads, step.columns(source, "b32")
    cells = _warp_cells(step, where, values_TN.shape[1], *map(step.one, offset or [0]))
    flight = tensor.begin(step.instruction.text[:90], cells, threads, writes=True, proxy=False)
    block.later(block.tensor_stores, lambda: tensor.data.__setitem__(cells, values_TN))
    block.tensor_stores.append(lambda: tensor.settle(flight, cells, threads))


def wait(step: Step) -> None:
    """tcgen05.wait: for all loads, or all stores, so far (9.7.16.8.5)."""
    complete(step.block.tensor_loads if step.modifiers[0] == "wait::ld" else step.block.tensor_stores)


KINDS = {("kind::f16", 0): "f16", ("kind::f16", 1): "bf16", ("kind::tf32", 2): "tf32"}
"""By the instruction's name and the type of A in its descriptor."""


def begin_product(step: Step) -> None:
    """tcgen05.mma by one thread: D = A·B (+ D), A in tensor or shared memory, B in shared memory (9.7.16.10.9).

    Sizes and types by the instruction descriptor (9.7.16.4.2); rounded as in `tensor_cores`.
    """
    total, a, b, described, scale = step.operands
    block, shared, tensor, bits = step.block, step.block.shared, step.block.tensor, step.one(described)
    rows, columns, kind = (bits >> 24 & 31) * 16, (bits >> 17 & 63) * 8, KINDS[step.modifiers[2], bits >> 7 & 7]
    if bits >> 4 & 3 != 1 or bits >> 10 & 7 != bits >> 7 & 7 or bits >> 13 & 3 or bits & 0xC:
        raise NotImplementedError(f"instruction descriptor {bits:#x}")
    (thread,), adds = step.thread(), step.read(scale, "pred")[step.active].all()
    lane = np.arange(rows)[:, None]
    lanes = lane if rows == TENSOR_LANES else lane // 16 * 32 + lane % 16
    d_cells = _cells(block, np.array([step.one(total)]), lanes, np.arange(columns)[None])
    b_cells = _shared_matrix(step.one(b, "u64"), columns, bool(bits >> 16 & 1))
    flights = [begin_reading(step, b_cells, thread)]

    def begin(cells: Array, *, writes: bool) -> None:
        text, flat = step.instruction.text[:90], cells.reshape(1, -1)
        flights.append(tensor.begin(text, flat, step.threads, writes=writes, proxy=False, pipe="mma"))

    if isinstance(a, Address):
        a_memory, a_cells = tensor, _cells(block, np.array([step.one(a)]), lanes, np.arange(8)[None])
        begin(a_cells, writes=False)
    else:
        a_memory, a_cells = shared, _shared_matrix(step.one(a, "u64"), rows, bool(bits >> 15 & 1))
        flights.append(begin_reading(step, a_cells, thread))
    if adds:
        tensor.require_set(d_cells)
    begin(d_cells, writes=True)

    def compute() -> None:
        product = elements(a_memory.data[a_cells].view(np.uint8), kind) @ elements(shared.data[b_cells], kind).T
        product += tensor.data[d_cells].view(np.float32) if adds else 0
        tensor.data[d_cells] = product.astype(np.float32).view(np.uint32)

    block.later(block.tensor_products, compute)
    block.tensor_flights += flights


def _shared_matrix(descriptor: int, rows: int, across: bool) -> Array:
    return matrix_cells(descriptor, {0: 0, 2: 3, 4: 2, 6: 1}[descriptor >> 61], rows, across)


def commit(step: Step) -> None:
    """tcgen05.commit: an mbarrier is arrived at when all products so far are complete (9.7.16.11.1)."""
    step.thread()
    block, barrier = step.block, step.block.barrier_at(step.one(step.operands[0]))
    products, flights = block.tensor_products, block.tensor_flights
    block.tensor_products, block.tensor_flights = [], []

    def land() -> None:
        complete(products)
        barrier.flights += flights
        barrier.arrive(1, 0)

    block.later(barrier.actions, land)


ACTIONS = {
    "alloc": allocate, "dealloc": release, "ld": load_columns, "st": store_columns, "mma": begin_product, "wait::ld": wait,
    "wait::st": wait, "commit": commit, "relinquish_alloc_permit": lambda _: None,  # no other block wants to allocate
}  # fmt: skip
INSTRUCTIONS = {"tcgen05": lambda step: ACTIONS[step.modifiers[0]](step)}
"""By the second part of the name."""
